"""RegionReader: splits an answer, while it is generated, into the regions of a response template, losing no character.

Transformers' response parser finds the regions. Where a delimiter may begin, it is fed one character at a time, so
that the content of a malformed region is known. Inside JSON strings it sees escape sequences instead, so that a
delimiter quoted in a string does not count. Texts are marked; see `server/marks.py`.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers.utils.chat_parsing import ResponseParser
from transformers.utils.chat_parsing.response_templates import ResponseTemplate, ResponseTemplateField

from server.answers.json_text import JsonScanner, escape
from server.answers.reading import Reading

MALFORMED = (ValueError, KeyError, TypeError, RecursionError)
"""What the parsers of regions raise for malformed text."""


class RegionChange(enum.Enum):
    """What an event says about its region. The value of each member describes it."""

    OPENED = "It begins; the text is its delimiter, if it has one."
    CONTINUED = "It continues with this text."
    CLOSED = "It is complete; the text is its delimiter, and `value` the parsed content."
    BROKEN = "It ended, but its content cannot be parsed; the text is the rest of it, delimiter included."


@dataclass(frozen=True, slots=True)
class RegionEvent:
    """A change of the region of `field`. The texts of all events together are the answer's text."""

    change: RegionChange
    field: str
    text: str = ""
    value: Any = None
    name: str | None = None
    """With `OPENED`: the name that the delimiter contains."""


class RegionReader:
    """Reads one answer, which continues `prompt`. `tools`, as chat templates have them, give the types of arguments."""

    def __init__(self, reading: Reading, prompt: str, tools: Sequence[Mapping[str, Any]] = ()) -> None:
        assert reading.template is not None
        self._template = reading.template
        self._first_only = reading.first_only
        self._tools: list[Any] = [dict(tool) for tool in tools]
        self._parser = _parser_after(self._template, reading.marks.marked(prompt), self._tools)
        self._beginnings = {name: _beginnings(self._template, name) for name in (None, *self._template.fields)}
        self._pending: list[tuple[str, str]] = []
        self._json: JsonScanner | None = None
        self.open_field: str | None = None
        self.is_begun_by_prompt = bool(self._parser.initial_events)
        self._open(opened_field(reading, prompt))
        if closed := [event["field"] for event in self._parser.initial_events if event["type"] == "region_close"]:
            self._rule_out(self._first_only.intersection(closed))

    def feed(self, text: str) -> list[RegionEvent]:
        """The events of `text`."""
        events: list[RegionEvent] = []
        start = 0
        while start < len(text):
            end = start + self._num_harmless(text, start)
            events += self._feed(text[start:end])
            start = end
        return events

    def finish(self) -> list[RegionEvent]:
        """The events of the end of the answer."""
        try:
            _, found = self._parser.finalize()
        except MALFORMED:
            name = self.open_field or self._template.implicit
            return [] if name is None else [RegionEvent(RegionChange.BROKEN, name, self._taken(len(self._fed)))]
        return [self._translated(event) for event in found]

    def _num_harmless(self, text: str, start: int) -> int:
        """How many characters can be fed at once: 1, or as many as cannot begin a delimiter."""
        beginnings = self._beginnings[self.open_field]
        if self._pending or beginnings is None:
            return 1
        end = start + 1
        while end < len(text) and text[end] not in beginnings and text[start] not in beginnings:
            end += 1
        return end - start

    def _feed(self, text: str) -> list[RegionEvent]:
        pairs = [(self._as_fed(character), character) for character in text]
        self._pending += pairs
        try:
            found = self._parser.feed("".join(fed for fed, _ in pairs))
        except MALFORMED:
            return self._give_up()
        events = [self._translated(event) for event in found]
        over = self._first_only.intersection(event.field for event in events if event.change is RegionChange.CLOSED)
        if any(event.field == self._template.implicit and event.text.strip() for event in events):
            over = self._first_only
        if over and self.open_field is None:
            events += self._rule_out(over)
        return events

    def _rule_out(self, fields: Collection[str]) -> list[RegionEvent]:
        """No longer look for `fields`; returns the events of the text read anew."""
        if not fields or self.open_field is not None:
            return []
        kept = {name: field for name, field in self._template.fields.items() if name not in fields}
        self._first_only = self._first_only - frozenset(fields)
        self._template = replace(self._template, fields=kept)
        self._beginnings = {name: _beginnings(self._template, name) for name in (None, *kept)}
        rest = self._taken(len(self._fed))
        self._parser = ResponseParser(self._template, prefix="", tools=self._tools)
        return self.feed(rest)

    def _as_fed(self, character: str) -> str:
        if self._json is None:
            return character
        is_quoted = self._json.is_in_plain_text
        self._json.take(character)
        if not is_quoted or character in '"\\':
            return character
        beginnings = self._beginnings[self.open_field]
        return escape(character) if beginnings is None or character in beginnings else character

    @property
    def _fed(self) -> str:
        return "".join(fed for fed, _ in self._pending)

    def _open(self, name: str | None) -> None:
        self.open_field = name
        self._json = JsonScanner() if name is not None and is_json(self._template.fields[name]) else None

    def _taken(self, num_fed: int) -> str:
        """The next piece of the answer, which the parser saw as `num_fed` characters."""
        count = 0
        while num_fed > 0 and count < len(self._pending):
            num_fed -= len(self._pending[count][0])
            count += 1
        written = "".join(character for _, character in self._pending[:count])
        del self._pending[:count]
        return written

    def _translated(self, event: Mapping[str, Any]) -> RegionEvent:
        kind, name = event["type"], event["field"]
        field = self._template.fields[name]
        if kind == "region_chunk":
            self._taken(max(0, self._fed.find(event["text"])))  # delimiters that open no region
            return RegionEvent(RegionChange.CONTINUED, name, self._taken(len(event["text"])))
        if kind == "region_open":
            if name == self._template.implicit:
                return RegionEvent(RegionChange.OPENED, name)
            match = field.open_re.search(self._fed)
            delimiter = self._taken(len(self._fed) if match is None else match.end())
            self._open(name)
            if self._json is not None:
                for _, character in self._pending:
                    self._json.take(character)
            named = match.groupdict().get("name") if match is not None else None
            return RegionEvent(RegionChange.OPENED, name, delimiter, name=named)
        self._open(None)
        match = None if field.close_re is None else field.close_re.match(self._fed)
        return RegionEvent(RegionChange.CLOSED, name, self._taken(0 if match is None else match.end()), event["value"])

    def _give_up(self) -> list[RegionEvent]:
        """End a region that cannot be parsed, and parse what follows from scratch."""
        name = self.open_field or self._template.implicit
        assert name is not None
        field = self._template.fields[name]
        match = None if field.close_re is None else field.close_re.search(self._fed)
        text = self._taken(len(self._fed) if match is None else match.end())
        rest = self._taken(len(self._fed))
        self._parser = ResponseParser(self._template, prefix="", tools=self._tools)
        self._open(None)
        return [RegionEvent(RegionChange.BROKEN, name, text), *self.feed(rest)]


def opened_field(reading: Reading, prompt: str) -> str | None:
    """The field that the end of the prompt has opened, so that the answer continues it; None if there is none."""
    template, opened = reading.template, None
    if template is None:
        return None
    for event in _parser_after(template, reading.marks.marked(prompt), []).initial_events:
        if event["type"] == "region_open":
            opened = None if event["field"] == template.implicit else event["field"]
        elif event["type"] == "region_close":
            opened = None
    return opened


def _beginnings(template: ResponseTemplate, name: str | None) -> frozenset[str] | None:
    """The first characters of the delimiters that end the field `name` (None: no explicit field); None: any."""
    if name is not None and name != template.implicit:
        field = template.fields[name]
        delimiters = [(field.close_re, field.close_literals)]
    else:
        delimiters = [(field.open_re, field.open_literals) for field in template.fields.values()]
        delimiters += [
            (field.close_re, field.close_literals) for field in template.fields.values() if not field.open_re
        ]
    if any(pattern is not None and literals is None for pattern, literals in delimiters):
        return None
    return frozenset(literal[0] for _, literals in delimiters for literal in literals or ())


def is_json(field: ResponseTemplateField) -> bool:
    """True when the field contains JSON with standard strings."""
    return field.content == "json" and not field.content_args.get("string_delims")


def _parser_after(template: ResponseTemplate, prompt: str, tools: list[Any]) -> ResponseParser:
    """A parser that has read the assistant's part of the prompt, if its start can be found."""
    if template.start_anchor_re.search(prompt) is not None:
        try:
            return ResponseParser(template, prefix=prompt, tools=tools)
        except MALFORMED:
            pass
    return ResponseParser(template, prefix="", tools=tools)
