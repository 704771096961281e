"""CallStream: the name and the arguments of one JSON tool call while the model writes it."""

from __future__ import annotations

import json
import re

from server.answers.json_text import JsonScanner, escape

_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')
_LONGEST_HEAD = 1024


class CallStream:
    """Reads a call of the form `{"name": …, "arguments": {…}}`, in that order.

    `name` is None until the arguments begin. It stays None for a call of another form, which is parsed when complete.
    """

    def __init__(self) -> None:
        self._head = ""
        self._scanner = JsonScanner()
        self.name: str | None = None
        self.is_complete = False

    def push(self, text: str) -> str:
        """What `text` adds to the arguments, as JSON. Control characters in strings are escaped."""
        if self.name is None:
            if len(self._head) > _LONGEST_HEAD:
                return ""
            self._head += text
            head = _HEAD.match(self._head)
            name = None if head is None else _string(head[1])
            if head is None or name is None:
                return ""
            self.name = name
            text = self._head[head.end() :]
        return "".join(map(self._argument, text))

    def _argument(self, character: str) -> str:
        if self.is_complete:
            return ""
        is_control = character < " " and self._scanner.is_in_plain_text
        self._scanner.take(character)
        self.is_complete = self._scanner.depth == 0
        return escape(character) if is_control else character


def _string(text: str) -> str | None:
    try:
        return str(json.loads(text))
    except ValueError:
        return None
