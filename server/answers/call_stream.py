"""CallStream: the name and the arguments of one JSON tool call while the model writes it."""

from __future__ import annotations

import json
import re
from collections.abc import Collection

from server.answers.json_text import JsonScanner, escape

_HEAD = re.compile(r'\s*\{\s*"(?:tool_)?name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')
_NAME = re.compile(r'\s*\{\s*"(?:tool_)?name"\s*:\s*"(?P<name>(?:[^"\\]|\\.)*)(?P<end>"?)')
_LONGEST_HEAD = 1024


class CallStream:
    """Reads a call of the form `{"name": …, "arguments": {…}}`, in that order; given its `name`, only the arguments.

    `is_begun` is set when the arguments begin. It stays False for a call of another form, and for a name that is not
    among `names` (None: any), which is parsed when complete.
    """

    def __init__(self, name: str | None = None, *, names: Collection[str] | None = None) -> None:
        self._head = ""
        self._scanner = JsonScanner()
        self._names = names
        self.name = name
        self.is_begun = False
        self.is_complete = False

    @property
    def may_begin(self) -> bool:
        """False once the call has a name that is not among `names`."""
        found = _NAME.match(self._head)
        if found is None or self._names is None:
            return True
        return any(name == found["name"] if found["end"] else name.startswith(found["name"]) for name in self._names)

    def push(self, text: str) -> str:
        """What `text` adds to the arguments, as JSON. Control characters in strings are escaped."""
        if not self.is_begun:
            if len(self._head) > _LONGEST_HEAD:
                return ""
            self._head += text
            text = self._after_head()
        return "".join(map(self._argument, text))

    def _after_head(self) -> str:
        """What has been read of the arguments. Sets `is_begun` and `name`."""
        if self.name is not None:
            text = self._head.lstrip()
            self.is_begun = text.startswith("{")
            return text if self.is_begun else ""
        head = _HEAD.match(self._head)
        name = None if head is None else _string(head[1])
        if head is None or name is None or (self._names is not None and name not in self._names):
            return ""
        self.name, self.is_begun = name, True
        return self._head[head.end() :]

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
