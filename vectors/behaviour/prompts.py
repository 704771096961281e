"""Open-ended prompts: the bytes of a file -> prompts that a model answers in its own words."""

from __future__ import annotations

from dataclasses import dataclass

from vectors.data.items import Message
from vectors.data.row import Row, shown
from vectors.data.rows import read_rows
from vectors.errors import InvalidData

MIN_PROMPTS = 8
"""The fewest prompts from which anything can be concluded: no p below 0.05 comes from fewer than five."""

_FIELDS = ("prompt", "messages", "question")
_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class OpenPrompt:
    """The turns that a model answers, the last one the user's; `line` (1-based) is where it was read."""

    messages: tuple[Message, ...]
    line: int

    @property
    def instruction(self) -> str:
        """The turns as one text: a single turn alone, several each after its role."""
        if len(self.messages) == 1:
            return self.messages[0].content
        return "\n".join(f"{message.role}: {message.content}" for message in self.messages)


def read_prompts(content: bytes, name: str) -> tuple[OpenPrompt, ...]:
    """The prompts of JSONL, a JSON list, CSV or Parquet; `name` is for messages only.

    A row has one of `prompt`, `messages` (a list of `role` and `content`, the user last) and `question`, of which the
    first counts; other fields are ignored, so files of multiple choice can be used as they are. Raises `InvalidData`
    (also for fewer than `MIN_PROMPTS`) and `MissingDependency` (Parquet without pyarrow).
    """
    prompts = tuple(OpenPrompt(_messages(row), row.line) for row in read_rows(content, name))
    if len(prompts) < MIN_PROMPTS:
        raise InvalidData(f"expected at least {MIN_PROMPTS} prompts, got {len(prompts)}", name)
    return prompts


def _messages(row: Row) -> tuple[Message, ...]:
    field = next((field for field in _FIELDS if field in row.fields), None)
    if field is None:
        given = ", ".join(name[:40] for name in list(row.fields)[:12]) or "none"
        raise row.error(f"expected one of the fields {', '.join(_FIELDS)}, got {given}")
    if field != "messages":
        return (Message("user", row.text(field)),)
    turns = row.fields[field]
    if not isinstance(turns, list) or not turns:
        raise row.error(f"messages: expected a list of messages, got {shown(turns)}")
    messages = []
    for place, turn in enumerate(turns):
        if not isinstance(turn, dict):
            raise row.error(f"messages[{place}]: expected an object with role and content, got {shown(turn)}")
        role = turn.get("role")
        if role not in _ROLES:
            raise row.error(f"messages[{place}].role: expected one of {', '.join(_ROLES)}, got {shown(role)}")
        messages.append(Message(role, row.clean(turn.get("content"), f"messages[{place}].content")))
    if messages[-1].role != "user":
        raise row.error(f"messages: expected the user's turn last, got the {messages[-1].role}'s")
    return tuple(messages)
