"""Content parts: the text of a message that is given in parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

IGNORED_IN_PARTS = ("_meta", "annotations", "cache_control", "meta", "prompt_cache_breakpoint")
"""Fields that clients and MCP servers put into text parts; they are accepted and not read."""

IGNORED_IN_ANSWERS = (*IGNORED_IN_PARTS, "citations", "id", "index", "logprobs", "parsed")
"""The same for the parts of an earlier answer."""

_ANSWERED = frozenset({"output_text", "refusal"})


class AnsweredRefusal(TypedDict):
    """A refusal in an earlier answer, which is part of its text."""

    type: Literal["refusal"]
    refusal: str


def texts_of(value: Any, kinds: Sequence[str], *, is_answer: bool = False, may_be_empty: bool = False) -> list[str]:
    """The texts of a list of content parts of `kinds`. A validator, whose errors have the index of the part.

    `is_answer`: the parts are those of an earlier answer.
    """
    if not isinstance(value, list) or not (value or may_be_empty):
        raise PydanticCustomError("invalid_type", "expected a string or a list of content parts")
    return [_text_of(part, index, kinds, is_answer=is_answer) for index, part in enumerate(value)]


def _text_of(part: Any, index: int, kinds: Sequence[str], *, is_answer: bool) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(kind, str):
        raise PydanticCustomError(
            "invalid_type", "expected a content part with a type as part {index}", {"index": index, "at": index}
        )
    if kind not in kinds:
        raise PydanticCustomError(
            "unsupported_parameter",
            "part {index}: expected a part of type {kinds}, got {kind}, which is not supported",
            {"index": index, "at": index, "kind": repr(kind)[:40], "kinds": " or ".join(kinds)},
        )
    field = "refusal" if kind == "refusal" else "text"
    ignored = IGNORED_IN_ANSWERS if is_answer or kind in _ANSWERED else IGNORED_IN_PARTS
    unknown = sorted(set(part) - {"type", field, *ignored})
    if unknown or not isinstance(part.get(field), str):
        raise PydanticCustomError(
            "invalid_value",
            "part {index}: expected only the fields type and {field}{got}",
            {"index": index, "at": index, "field": field, "got": f", got {unknown[0][:40]}" if unknown else ""},
        )
    text: str = part[field]
    return text
