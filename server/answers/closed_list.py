"""Closes a list, in JSON or Python, that was cut while it was written."""

from __future__ import annotations


def closed_list(text: str) -> str | None:
    """The list `text` up to its last complete element that ends with a bracket, closed; None if there is none."""
    text = text.strip()
    if not text.startswith("["):
        return None
    depth, quote, is_escaped, end = 0, "", False, 0
    for place, character in enumerate(text, 1):
        if quote:
            quote = "" if character == quote and not is_escaped else quote
            is_escaped = character == "\\" and not is_escaped
        elif character in "\"'":
            quote = character
        elif character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
            end = place if depth == 1 else end
    return f"{text[:end]}]" if end else None
