"""ReplyParser: splits an answer, while it is generated, into content, reasoning and tool calls.

It turns the regions of the text into deltas, streams the arguments of JSON calls, and treats malformed calls as
content. Of an answer that was cut, it leaves out what might have become a delimiter or a call.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers.utils.chat_parsing.content_parsers import process_field
from transformers.utils.chat_parsing.response_templates import ResponseTemplateField

from server.answers.call_shape import NAMED_CALL
from server.answers.call_stream import CallStream
from server.answers.chat_format import CALLS_FIELD, REASONING_FIELDS
from server.answers.closed_list import closed_list
from server.answers.python_calls import read_python_calls
from server.answers.reading import Reading
from server.answers.regions import MALFORMED, RegionChange, RegionEvent, RegionReader, is_json
from server.marks import Marks

_ENDS_ITSELF = ("json", "text")
"""How regions are parsed whose calls, in JSON or Python, show where they end, with the closing delimiter or without."""


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A delta of a tool call. The first one has `call_id` and `name`; `arguments` is a piece of JSON text."""

    index: int
    call_id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class ReplyDelta:
    """A delta of an answer."""

    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.content or self.reasoning or self.tool_calls)

    def __add__(self, other: ReplyDelta) -> ReplyDelta:
        return _join((self, other))


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model made; `arguments` is JSON text."""

    call_id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete answer."""

    content: str
    reasoning: str
    tool_calls: tuple[ToolCall, ...]

    @classmethod
    def of(cls, deltas: Sequence[ReplyDelta]) -> Reply:
        """The answer that the deltas add up to."""
        total = _join(deltas)
        calls = (ToolCall(call.call_id or "", call.name or "", call.arguments) for call in total.tool_calls)
        return cls(total.content, total.reasoning, tuple(calls))


@dataclass
class _Call:
    """A call while it is written: its delimiter and its text so far. `stream` None: it is parsed when complete."""

    opening: str = ""
    stream: CallStream | None = None
    text: str = ""

    @property
    def is_emitted(self) -> bool:
        """True when its name, and perhaps some of its arguments, have been emitted."""
        return self.stream is not None and self.stream.is_begun

    @property
    def raw(self) -> str:
        """All of its text, which is content if it turns out not to be a call."""
        return self.opening + self.text


class ReplyParser:
    """Parses one answer, which continues `prompt`, from marked text.

    `is_call_cut` is set at the end if the last call has only a part of its arguments.
    """

    def __init__(self, reading: Reading, prompt: str, tools: Sequence[Mapping[str, Any]] = ()) -> None:
        self._reading = reading
        self._regions = None if reading.template is None else RegionReader(reading, prompt, tools)
        self.has_calls = False
        self.is_call_cut = False
        self.num_reasoning_tokens = 0
        self._num_calls = 0
        self._pending_space = ""
        self._is_trimming = self._regions is not None and self._regions.is_begun_by_prompt
        self._call = self._new_call("")

    def push(self, text: str, *, num_tokens: int = 0) -> ReplyDelta:
        """The delta of `text`, which has `num_tokens` tokens."""
        if self._regions is None:
            return ReplyDelta(content=text)
        if self._regions.open_field in REASONING_FIELDS:
            self.num_reasoning_tokens += num_tokens
        return _plain(_join([self._take(event) for event in self._regions.feed(text)]), self._reading.marks)

    def finish(self, *, is_cut: bool) -> ReplyDelta:
        """The rest, once no more text comes. `is_cut`: the answer was ended before the model ended it."""
        if self._regions is None:
            return ReplyDelta()
        events = self._regions.finish()
        deltas = [self._take_cut(event) if is_cut else self._take(event) for event in events]
        if not self.has_calls and not (is_cut and any(_is_unfinished(event) for event in events)):
            deltas.append(ReplyDelta(content=self._pending_space))
        return _plain(_join(deltas), self._reading.marks)

    def _take(self, event: RegionEvent) -> ReplyDelta:
        if event.field == CALLS_FIELD:
            return self._take_call(event)
        is_reasoning = event.field in REASONING_FIELDS
        if event.change is RegionChange.CONTINUED:
            text = self._trimmed(event.text)
            return ReplyDelta(reasoning=text) if is_reasoning else ReplyDelta(content=text)
        if event.change is RegionChange.BROKEN:
            return ReplyDelta(content=self._trimmed(event.text))
        if is_reasoning or event.text:
            self._begin_part()
        return ReplyDelta()

    def _begin_part(self) -> None:
        """Begin a part. White space between parts belongs to none of them."""
        self._is_trimming, self._pending_space = True, ""

    def _trimmed(self, text: str) -> str:
        """`text` without white space at the start of a part, and with trailing white space held back."""
        if self._is_trimming:
            text = text.lstrip()
        if not text:
            return ""
        self._is_trimming = False
        text = self._pending_space + text
        kept = text.rstrip()
        self._pending_space = text[len(kept) :]
        return kept

    @property
    def _calls_field(self) -> ResponseTemplateField | None:
        template = self._reading.template
        return None if template is None else template.fields.get(CALLS_FIELD)

    def _new_call(self, opening: str, name: str | None = None) -> _Call:
        field = self._calls_field
        if field is None or not is_json(field):
            return _Call(opening)
        if name is not None and field.transform == NAMED_CALL:
            return _Call(opening, CallStream(name))
        return _Call(opening, CallStream(names=self._reading.bare_names) if not _captures(field) else None)

    def _take_call(self, event: RegionEvent) -> ReplyDelta:
        if event.change is RegionChange.OPENED:
            self._call = self._new_call(event.text, event.name)
            return ReplyDelta()
        call = self._call
        if event.change is RegionChange.CONTINUED:
            call.text += event.text
            was_emitted = call.is_emitted
            arguments = "" if call.stream is None else call.stream.push(event.text)
            if call.stream is None or not call.stream.is_begun or call.stream.name is None:
                return ReplyDelta()
            return self._begun(call.stream.name, arguments) if not was_emitted else self._continued(arguments)
        if call.is_emitted:
            self._num_calls += 1
            return ReplyDelta()
        calls = self._calls_in(event.value) if event.change is RegionChange.CLOSED else []
        return self._emitted(calls) if calls else ReplyDelta(content=self._trimmed(call.raw + event.text))

    def _take_cut(self, event: RegionEvent) -> ReplyDelta:
        """What an event at the end of a cut answer adds. Text that comes only then might have become a delimiter."""
        is_end = event.change in (RegionChange.CLOSED, RegionChange.BROKEN)
        if event.field == CALLS_FIELD and is_end:
            return self._take_cut_call(event)
        return self._take(event) if event.field == CALLS_FIELD or not event.text else ReplyDelta()

    def _take_cut_call(self, event: RegionEvent) -> ReplyDelta:
        call, field = self._call, self._calls_field
        assert field is not None
        if call.is_emitted:
            self.is_call_cut = call.stream is not None and not call.stream.is_complete
            return self._take_call(event)
        is_whole = event.change is RegionChange.CLOSED and (event.text or field.content in _ENDS_ITSELF)
        calls = self._calls_in(event.value) if is_whole else []
        if not calls and (closed := closed_list(call.text)) is not None:
            calls = self._calls_in(_value(closed, field))
        if not calls and call.stream is not None and not call.stream.may_begin:
            return ReplyDelta(content=self._trimmed(call.raw))
        return self._emitted(calls)

    def _calls_in(self, value: Any) -> list[tuple[str, str]]:
        """Names and arguments of the calls that a region contains; empty if it contains anything else."""
        if isinstance(value, str):
            value = read_python_calls(value)
        found = [_name_and_arguments(item) for item in (value if isinstance(value, list) else [value])]
        names = self._reading.bare_names
        calls = [pair for pair in found if pair is not None and (names is None or pair[0] in names)]
        return calls if len(calls) == len(found) else []

    def _emitted(self, calls: Sequence[tuple[str, str]]) -> ReplyDelta:
        deltas = []
        for name, arguments in calls:
            deltas.append(self._begun(name, arguments))
            self._num_calls += 1
        return _join(deltas)

    def _begun(self, name: str, arguments: str) -> ReplyDelta:
        self.has_calls = True
        self._begin_part()
        call_id = f"call_{uuid.uuid4().hex[:24]}"
        return ReplyDelta(tool_calls=(ToolCallDelta(self._num_calls, call_id, name, arguments),))

    def _continued(self, arguments: str) -> ReplyDelta:
        return ReplyDelta(tool_calls=(ToolCallDelta(self._num_calls, arguments=arguments),) if arguments else ())


def _is_unfinished(event: RegionEvent) -> bool:
    """True when an event at the end shows that the answer was cut within a delimiter or a call."""
    return event.field == CALLS_FIELD or bool(event.text)


def _value(text: str, field: ResponseTemplateField) -> Any:
    """What the content of a region is parsed to; None if it cannot be."""
    try:
        return process_field(text, field, {})
    except MALFORMED:
        return None


def _captures(field: ResponseTemplateField) -> bool:
    """True when the delimiters contain what belongs to the call."""
    return any(pattern is not None and pattern.groupindex for pattern in (field.open_re, field.close_re))


def _name_and_arguments(value: Any) -> tuple[str, str] | None:
    """A parsed call's name and JSON arguments; None when it is not a call."""
    call = value.get("function", value) if isinstance(value, Mapping) else None
    name = call.get("name", call.get("tool_name")) if isinstance(call, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(name, str):
        return None
    arguments = call.get("arguments", call.get("parameters", {}))
    if isinstance(arguments, str):
        return name, arguments
    return (name, json.dumps(arguments, ensure_ascii=False)) if isinstance(arguments, Mapping) else None


def _join(deltas: Sequence[ReplyDelta]) -> ReplyDelta:
    """The deltas merged into one: pieces of one call's arguments become one piece."""
    calls: list[ToolCallDelta] = []
    for delta in deltas:
        for call in delta.tool_calls:
            if calls and calls[-1].index == call.index and call.call_id is None:
                last = calls[-1]
                calls[-1] = ToolCallDelta(last.index, last.call_id, last.name, last.arguments + call.arguments)
            else:
                calls.append(call)
    return ReplyDelta(
        "".join(delta.content for delta in deltas), "".join(delta.reasoning for delta in deltas), tuple(calls)
    )


def _plain(delta: ReplyDelta, marks: Marks) -> ReplyDelta:
    """The delta in the text that clients see."""
    if not marks.names:
        return delta
    calls = (
        ToolCallDelta(call.index, call.call_id, call.name and marks.plain(call.name), marks.plain_json(call.arguments))
        for call in delta.tool_calls
    )
    return ReplyDelta(marks.plain(delta.content), marks.plain(delta.reasoning), tuple(calls))
