"""JSON of other libraries within bounds: an object, or an error that names the file."""

from __future__ import annotations

import json
from typing import Any

from vectors.errors import InvalidVector

MAX_JSON_BYTES = 4 << 20
"""The largest JSON file of a library that is read; what stands in another file has that file's bounds."""

_MAX_NESTED = 20_000


def read_object(data: bytes, name: str) -> dict[str, Any]:
    """The JSON object in `data`; `name` is the file's name in messages. Raises `InvalidVector`.

    Lists and objects are counted first: an empty list takes twenty times the memory of its two bytes.
    """
    if data.count(b"[") + data.count(b"{") > _MAX_NESTED:
        raise InvalidVector(f"{name} has more than {_MAX_NESTED} lists and objects")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise InvalidVector(f"{name} is not JSON; is it truncated?") from None
    if not isinstance(value, dict):
        raise InvalidVector(f"{name}: expected a JSON object, got a {type(value).__name__}")
    return value


def shown_value(value: object) -> str:
    """A JSON value as messages show it: lists and objects, which may be deep, only by their kind."""
    return f"{value!r:.60}" if value is None or isinstance(value, str | int | float) else f"a {type(value).__name__}"
