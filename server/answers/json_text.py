"""JsonScanner: where in a JSON text one is, while it is written. It does not check that the text is valid JSON."""

from __future__ import annotations


class JsonScanner:
    """Follows a JSON text character by character. `depth`: how many objects and lists are open."""

    def __init__(self) -> None:
        self.depth = 0
        self.is_in_string = False
        self.is_escaped = False

    @property
    def is_in_plain_text(self) -> bool:
        """True when the next character is part of a string, or its end, and not of an escape sequence."""
        return self.is_in_string and not self.is_escaped

    def take(self, character: str) -> None:
        """Take the character that came."""
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


def escaped(character: str) -> str:
    """A character of a JSON string as an escape sequence that means the same."""
    units = character.encode("utf-16-be")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))
