"""Content parts: the texts of a message that comes in parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic_core import PydanticCustomError

_CARRIED = {"output_text": frozenset({"annotations", "logprobs"})}
"""What an earlier answer's text carries besides the text; it cannot change what the model reads."""


def texts_of(value: Any, kinds: Sequence[str]) -> list[str]:
    """The texts of a list of content parts of those kinds; a validator, which refuses others by their place."""
    if not isinstance(value, list) or not value:
        raise PydanticCustomError("invalid_type", "give a string or a list of content parts")
    texts = []
    for index, part in enumerate(value):
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(kind, str):
            raise PydanticCustomError(
                "invalid_type", "part {index} is no content part with a type", {"index": index, "at": index}
            )
        if kind not in kinds:
            raise PydanticCustomError(
                "unsupported_parameter",
                "part {index}: {kind} is not supported by this server, only {kinds}",
                {"index": index, "at": index, "kind": repr(kind)[:40], "kinds": " and ".join(kinds)},
            )
        known = {"type", "text"} | _CARRIED.get(kind, {"prompt_cache_breakpoint"})
        if not isinstance(part.get("text"), str) or set(part) - known:
            raise PydanticCustomError(
                "invalid_value",
                "part {index}: a text part has type and text, nothing else",
                {"index": index, "at": index},
            )
        texts.append(part["text"])
    return texts
