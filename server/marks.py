"""Marks: tells the tokens that delimit the parts of an answer from text that reads the same.

If the tokenizer has a delimiter as one added token, only this token is the delimiter. While an answer is read, each
such token is one character that no text contains: a lone surrogate.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

_FIRST = 0xDC00
_MOST = 0x200


class Marks:
    """The characters that stand for the tokens `names` (text by id). Of two tokens with one text, the first counts."""

    def __init__(self, names: Mapping[int, str], *, first: int = _FIRST) -> None:
        self.names = dict(sorted(names.items())[:_MOST])
        self._marks = {token_id: chr(first + index) for index, token_id in enumerate(self.names)}
        self._names = {self._marks[token_id]: name for token_id, name in self.names.items()}
        self._by_name: dict[str, str] = {}
        for mark, name in self._names.items():
            self._by_name.setdefault(name, mark)
        longest_first = sorted(self._by_name, key=len, reverse=True)
        self._any_name = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
        self._any_mark = re.compile(f"[{''.join(self._names)}]") if self._names else None

    def of(self, token_id: int) -> str | None:
        """The character that stands for the token, if there is one."""
        return self._marks.get(token_id)

    def marked(self, text: str) -> str:
        """`text` as the tokenizer reads it: with the texts of the tokens replaced by their marks."""
        if self._any_name is None:
            return text
        return self._any_name.sub(lambda found: self._by_name[found[0]], text)

    def marked_pattern(self, pattern: str) -> str:
        """A regular expression in which the texts of the tokens, escaped or not, are replaced by their marks."""
        for name in sorted(self._by_name, key=len, reverse=True):
            spelled = "".join(rf"\\?{re.escape(character)}" for character in name)
            pattern = re.sub(spelled, self._by_name[name], pattern)
        return pattern

    def plain(self, text: str) -> str:
        """The text that `text` stands for."""
        if self._any_mark is None:
            return text
        return self._any_mark.sub(lambda found: self._names[found[0]], text)

    def plain_json(self, text: str) -> str:
        """The JSON that `text` stands for, where marks occur within strings."""
        if self._any_mark is None:
            return text
        return self._any_mark.sub(lambda found: json.dumps(self._names[found[0]], ensure_ascii=False)[1:-1], text)

    def without(self, text: str) -> str:
        """`text` without marks."""
        return text if self._any_mark is None else self._any_mark.sub("", text)


NO_MARKS = Marks({})
"""For tokenizers that spell every delimiter."""


def hidden_marks(names: Mapping[int, str]) -> Marks:
    """Marks that differ from those of delimiters, for control tokens that a stop string names."""
    return Marks(names, first=_FIRST + _MOST)


def is_tag(name: str) -> bool:
    """True for a token such as `<think>` or `[TOOL_CALLS]`, False for a word and for white space."""
    return len(name) > 2 and not any(end.isalnum() or end.isspace() for end in (name[0], name[-1]))
