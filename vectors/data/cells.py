"""Cells: lists and objects that a CSV, or a field of text, holds as JSON or as Python writes them."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

from vectors.data.row import Row, shown

_MAX_LITERAL = 1 << 16


def decoded(row: Row, name: str) -> Any:
    """A field that is a list or an object, perhaps as text in a cell. Raises `UnusableRow`."""
    value = row.value(name)
    if not isinstance(value, str):
        return value
    if row.format != "csv" and not re.match(r"\s*[\[{]", value):
        return value
    found = from_text(value)
    if found is None:
        raise row.unusable(f"{name}: expected JSON in the cell, got {shown(value)}")
    return found


def from_text(text: str) -> Any:
    """The list or object that a text holds, None if it holds none."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        if len(text) > _MAX_LITERAL or not re.match(r"\s*[\[{(]", text):
            return None
        try:
            found = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return None
    if isinstance(found, tuple):
        found = list(found)
    return found if isinstance(found, list | dict) else None
