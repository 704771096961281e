"""Content parts: the text of a message that is given in parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic_core import PydanticCustomError

_CARRIED = {"output_text": frozenset({"annotations", "logprobs"})}
"""Fields that the text of an earlier answer carries besides the text; the model does not read them."""


def texts_of(value: Any, kinds: Sequence[str]) -> list[str]:
    """The texts of a list of content parts of `kinds`. A validator, whose errors have the index of the part."""
    if not isinstance(value, list) or not value:
        raise PydanticCustomError("invalid_type", "expected a string or a list of content parts")
    texts = []
    for index, part in enumerate(value):
        kind = part.get("type") if isinstance(part, dict) else None
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
        known = {"type", "text"} | _CARRIED.get(kind, {"prompt_cache_breakpoint"})
        if not isinstance(part.get("text"), str) or set(part) - known:
            raise PydanticCustomError(
                "invalid_value",
                "part {index}: expected only the fields type and text",
                {"index": index, "at": index},
            )
        texts.append(part["text"])
    return texts
