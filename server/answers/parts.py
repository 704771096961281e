"""Tells which part of an answer each token belongs to, for steering, by the delimiters of the model's format.

It looks only for delimiters, because it runs between two tokens of a batch. `reply.py` parses the parts themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers.utils.chat_parsing.response_templates import ResponseTemplateField

from server.answers.chat_format import CALLS_FIELD, REASONING_FIELDS
from server.answers.json_text import JsonScanner
from server.answers.reading import Reading
from server.answers.regions import is_json
from server.detokenizer import Detokenizer, TokenTable
from vectors.vocabulary import Part

_LONGEST_PATTERN = 512
"""The most characters that a delimiter given as a pattern may have."""


class AnswerParts:
    """Distinguishes parts by the delimiters of `reading`; without any, the whole answer is `outside`.

    `opened` is the field that the prompt has already opened. `outside` is the part of tokens in the content or in no
    field.
    """

    def __init__(
        self,
        table: TokenTable,
        reading: Reading,
        *,
        opened: str | None = None,
        outside: Part = "content",
    ) -> None:
        self._table = table
        self._reading = reading
        self._opened = opened
        self._outside: Part = outside

    def start(self) -> AnswerPartsState:
        """The state before the first token."""
        return AnswerPartsState(self._table, self._reading, self._opened, self._outside)


class AnswerPartsState:
    """The current part of one answer."""

    def __init__(self, table: TokenTable, reading: Reading, opened: str | None, outside: Part) -> None:
        self._detokenizer = Detokenizer(table, begins_text=False, marks=(reading.marks,))
        self._fields = {} if reading.template is None else dict(reading.template.fields)
        self._first_only = reading.first_only
        self._longest = _longest_delimiter(self._fields)
        self._outside: Part = outside
        self._text = ""
        self._enter(self._fields.get(opened or ""))

    @property
    def part(self) -> Part:
        """The part that the next token belongs to."""
        name = None if self._current is None else self._current.name
        if name in REASONING_FIELDS:
            return "reasoning"
        return "tool_calls" if name == CALLS_FIELD else self._outside

    @property
    def is_reasoning(self) -> bool:
        """True when the next token belongs to the reasoning."""
        return self._current is not None and self._current.name in REASONING_FIELDS

    def accept(self, token_id: int) -> None:
        """Advance by one token."""
        if self._fields:
            for character in self._detokenizer.push(token_id):
                self.take(character)

    def take(self, character: str) -> None:
        """Advance by one character of marked text."""
        if not self._fields:
            return
        self._text = (self._text + self._as_read(character))[-self._longest :]
        if (found := self._next_delimiter()) is not None:
            if found[0] is None and self._current is not None:
                self._rule_out(self._first_only & {self._current.name})
            self._enter(found[0])
        elif self._current is None and self._first_only and not self._may_become(self._first_only):
            self._rule_out(self._first_only)

    def _may_become(self, names: frozenset[str]) -> bool:
        """True while what was read may still become the delimiter that opens one of the fields `names`."""
        text = self._text.lstrip()
        if not text:
            return True
        patterns = [self._fields[name].open_re for name in names if name in self._fields]
        return any(pattern is not None and pattern.fullmatch(text, partial=True) is not None for pattern in patterns)

    def _rule_out(self, names: frozenset[str]) -> None:
        self._first_only = self._first_only - names
        for name in names:
            self._fields.pop(name, None)

    def _enter(self, field: ResponseTemplateField | None) -> None:
        self._current = field
        self._text = ""
        self._json = JsonScanner() if field is not None and is_json(field) else None

    def _as_read(self, character: str) -> str:
        """The character, or a blank inside a JSON string, where delimiters do not count."""
        if self._json is None:
            return character
        is_quoted = self._json.is_in_string
        self._json.take(character)
        return " " if is_quoted else character

    def _next_delimiter(self) -> tuple[ResponseTemplateField | None] | None:
        """The field opened by a delimiter at the end of the text, `(None,)` if it closes one; None: no delimiter."""
        if self._current is not None:
            return (None,) if _is_found(self._current.close_re, self._text) else None
        for field in self._fields.values():
            if _is_found(field.open_re, self._text):
                return (field,)
        return None


def _longest_delimiter(fields: Mapping[str, ResponseTemplateField]) -> int:
    """How many characters have to be remembered."""
    delimiters = [
        (pattern, literals)
        for field in fields.values()
        for pattern, literals in ((field.open_re, field.open_literals), (field.close_re, field.close_literals))
        if pattern is not None
    ]
    if any(literals is None for _, literals in delimiters):
        return _LONGEST_PATTERN
    return max((len(literal) for _, literals in delimiters for literal in literals or ()), default=1)


def _is_found(pattern: Any, text: str) -> bool:
    """True when the pattern matches and the match is not empty."""
    match = None if pattern is None else pattern.search(text)
    return match is not None and match.end() > match.start()
