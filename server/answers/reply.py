"""ReplyParser: splits an answer, while it is generated, into content, reasoning and tool calls.

It turns the regions of the text into deltas, streams the arguments of JSON calls, and treats malformed calls as
content.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers.utils.chat_parsing.response_templates import ResponseTemplateField

from server.answers.call_shape import NAMED_CALL
from server.answers.call_stream import CallStream
from server.answers.chat_format import CALLS_FIELD, REASONING_FIELDS
from server.answers.python_calls import read_python_calls
from server.answers.reading import Reading
from server.answers.regions import RegionChange, RegionEvent, RegionReader, is_json
from server.marks import Marks


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
    """A call while it is written: its text so far, delimiters included. `stream` None: it is parsed when complete."""

    raw: str = ""
    stream: CallStream | None = None

    @property
    def is_emitted(self) -> bool:
        """True when its name, and perhaps some of its arguments, have been emitted."""
        return self.stream is not None and self.stream.is_begun


class ReplyParser:
    """Parses one answer, which continues `prompt`, from marked text."""

    def __init__(self, reading: Reading, prompt: str, tools: Sequence[Mapping[str, Any]] = ()) -> None:
        self._reading = reading
        self._regions = None if reading.template is None else RegionReader(reading, prompt, tools)
        self.has_calls = False
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

    def finish(self) -> ReplyDelta:
        """The rest, once no more text comes."""
        if self._regions is None:
            return ReplyDelta()
        deltas = [self._take(event) for event in self._regions.finish()]
        if not self.has_calls:
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

    def _new_call(self, opening: str, name: str | None = None) -> _Call:
        template = self._reading.template
        field = None if template is None else template.fields.get(CALLS_FIELD)
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
        call.raw += event.text
        if event.change is RegionChange.CONTINUED:
            was_emitted = call.is_emitted
            arguments = "" if call.stream is None else call.stream.push(event.text)
            if call.stream is None or not call.stream.is_begun or call.stream.name is None:
                return ReplyDelta()
            return self._begun(call.stream.name, arguments) if not was_emitted else self._continued(arguments)
        if call.is_emitted:
            self._num_calls += 1
            return ReplyDelta()
        return self._complete(event.value if event.change is RegionChange.CLOSED else None)

    def _complete(self, value: Any) -> ReplyDelta:
        """The calls of a complete region; its text is content if it turns out not to be a call."""
        if isinstance(value, str):
            value = read_python_calls(value)
        found = [_name_and_arguments(item) for item in (value if isinstance(value, list) else [value])]
        names = self._reading.bare_names
        if names is not None:
            found = [pair if pair is not None and pair[0] in names else None for pair in found]
        calls = [pair for pair in found if pair is not None]
        if not calls or len(calls) < len(found):
            return ReplyDelta(content=self._trimmed(self._call.raw))
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
