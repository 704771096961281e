"""Conversations: chat messages in any usual spelling, and transcripts of turns in one text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, Literal

from vectors.data.items import Message
from vectors.data.row import Row, shown

Role = Literal["system", "user", "assistant"]

_ROLES: Final[Mapping[str, Role]] = {
    "system": "system",
    "developer": "system",  # the newer name of the same role, which chat templates do not know
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
}
_TURN = re.compile(r"(?:\A|\n)[ \t]*(?:#+[ \t]*)?(Human|User|Assistant|System)[ \t]*:[ \t]*", re.IGNORECASE)


def is_conversation(value: object) -> bool:
    """True for a message, a list of them, an object that holds one, or a transcript."""
    if isinstance(value, dict):
        return isinstance(value.get("messages"), list) or _is_message(value)
    if isinstance(value, list):
        return bool(value) and all(map(_is_message, value))
    return isinstance(value, str) and _is_transcript(value)


def messages_of(row: Row, given: object, what: str) -> tuple[Message, ...]:
    """The turns of a conversation. Raises `UnusableRow`, also for tool calls, pictures and audio."""
    if isinstance(given, str):
        return _transcript(row, given, what)
    if isinstance(given, dict) and "messages" in given:
        if given.get("tools"):
            raise row.unusable(f"{what}.tools: training with tools is not supported", "a conversation with tools")
        given, what = given["messages"], f"{what}.messages"
    elif isinstance(given, dict):
        given, what = ([given], what) if _is_message(given) else (None, f"{what}.messages")
    if not isinstance(given, list) or not given:
        raise row.unusable(f"{what}: expected a list of messages, got {shown(given)}")
    return tuple(_message(row, message, f"{what}[{place}]") for place, message in enumerate(given))


def reply_of(
    row: Row, given: object, what: str, prompt: str | tuple[Message, ...]
) -> tuple[str, str | tuple[Message, ...]]:
    """The reply that a field holds, and its prompt: `prompt`, or the turns before the reply where the field has them.

    Raises `UnusableRow` if the conversation does not end with the assistant.
    """
    if not is_conversation(given):
        if isinstance(given, list):
            messages_of(row, given, what)
        return row.clean(given, what), prompt
    turns = messages_of(row, given, what)
    if turns[-1].role != "assistant" or (len(turns) > 1 and all(turn.role == "assistant" for turn in turns)):
        raise row.unusable(f"{what}: expected one assistant message, or turns that end with one")
    return turns[-1].content, turns[:-1] or prompt


def _is_message(value: object) -> bool:
    return isinstance(value, dict) and (
        ("role" in value and "content" in value) or ("from" in value and "value" in value)
    )


def _is_transcript(text: str) -> bool:
    text = text.strip()
    speakers = [match[1].lower() for match in _TURN.finditer(text)]
    return _TURN.match(text) is not None and "assistant" in speakers and len(set(speakers)) > 1


def _message(row: Row, message: object, where: str) -> Message:
    if not isinstance(message, dict):
        raise row.unusable(f"{where}: expected an object with role and content, got {shown(message)}")
    if any(message.get(name) for name in ("tool_calls", "function_call", "audio")):
        raise row.unusable(f"{where}: tool calls and audio are not supported", "a conversation with tools")
    role = message.get("role", message.get("from"))
    known = _ROLES.get(role.lower()) if isinstance(role, str) else None
    if known is None:
        raise row.unusable(f"{where}.role: expected one of system, user, assistant, got {shown(role)}")
    content: Any = message.get("content", message.get("value"))
    if isinstance(content, list):
        raise row.unusable(f"{where}.content: expected text; content parts and images are not supported")
    return Message(known, row.clean(content, f"{where}.content"))


def _transcript(row: Row, text: str, what: str) -> tuple[Message, ...]:
    if not _is_transcript(text):
        raise row.unusable(f"{what}: expected a list of messages, got {shown(text)}")
    text = text.strip()
    found = list(_TURN.finditer(text))
    ends = [*(match.start() for match in found[1:]), len(text)]
    turns: list[Message] = []
    for match, end in zip(found, ends, strict=True):
        content = row.clean(text[match.end() : end], f"{what}: a turn").strip()
        turns.append(Message(_ROLES[match[1].lower()], content))
    return tuple(turns)
