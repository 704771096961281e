"""JSON texts: whether one is complete, and the position in one while it is written."""

from __future__ import annotations

import json


class JsonScanner:
    """Follows a JSON text, which it does not validate, by character. `depth`: the number of open objects and lists."""

    def __init__(self) -> None:
        self.depth = 0
        self.is_in_string = False
        self.is_escaped = False

    @property
    def is_in_plain_text(self) -> bool:
        """True when the next character belongs to a string or ends it, and is not part of an escape sequence."""
        return self.is_in_string and not self.is_escaped

    def take(self, character: str) -> None:
        """Advance by one character."""
        if self.is_in_string:
            if self.is_escaped:
                self.is_escaped = False
            elif character == "\\":
                self.is_escaped = True
            elif character == '"':
                self.is_in_string = False
        elif character == '"':
            self.is_in_string = True
        elif character in "{[":
            self.depth += 1
        elif character in "}]":
            self.depth -= 1


def escape(character: str) -> str:
    """The escape sequence for a character of a JSON string."""
    units = character.encode("utf-16-be")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))


def is_json_text(text: str) -> bool:
    """True when `text` is one complete JSON value."""
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
