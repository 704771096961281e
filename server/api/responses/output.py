"""A response's output while it is generated: growing items and their events."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar, TypeVar

from server.answers.json_text import is_json_text
from server.api.generation.dialogue import ReplyPiece
from server.api.generation.logprobs import shown_logprobs
from server.api.generation.objects import ChosenTokenLogprob
from server.api.generation.running import TokenEntry
from server.api.responses.events import (
    ArgumentsDeltaEvent,
    ArgumentsDoneEvent,
    EventChosenLogprob,
    ItemEvent,
    ItemEventType,
    OutputEvent,
    PartEvent,
    PartEventType,
    ReasoningDeltaEvent,
    ReasoningDoneEvent,
    TextDeltaEvent,
    TextDoneEvent,
    TextPart,
)
from server.api.responses.items import ItemType, new_item_id
from server.api.responses.objects import (
    AnswerTextPart,
    FunctionCallItem,
    ItemStatus,
    OutputItem,
    OutputMessage,
    ReasoningItem,
    ReasoningTextPart,
)
from server.detokenizer import TokenTable


class _OpenItem(ABC):
    """A growing item; `place` is its index in the output, `numbers` are the sequence numbers for its events."""

    kind: ClassVar[ItemType]

    def __init__(self, place: int, numbers: Iterator[int]) -> None:
        self._place = place
        self._numbers = numbers
        self._id = new_item_id(self.kind)
        self.status: ItemStatus = "in_progress"

    @abstractmethod
    def shown(self) -> OutputItem:
        """The item as it is now."""

    @abstractmethod
    def begin(self) -> Iterator[OutputEvent]:
        """The events of a new item."""

    @abstractmethod
    def _end_content(self) -> Iterator[OutputEvent]:
        """The events of complete content."""

    def end(self, status: ItemStatus) -> Iterator[OutputEvent]:
        """The events of an item that has ended."""
        self.status = status
        yield from self._end_content()
        yield self._item_event("response.output_item.done")

    def _item_event(self, kind: ItemEventType) -> ItemEvent:
        return {
            "type": kind,
            "output_index": self._place,
            "item": self.shown(),
            "sequence_number": next(self._numbers),
        }


class _TextItem(_OpenItem):
    """An item with one part of text."""

    def __init__(self, place: int, numbers: Iterator[int]) -> None:
        super().__init__(place, numbers)
        self._texts: list[str] = []
        self._has_part = False

    @abstractmethod
    def _part(self) -> TextPart:
        """The part as it is now."""

    @abstractmethod
    def _text_done(self) -> TextDoneEvent | ReasoningDoneEvent:
        """The event of the complete text."""

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self._texts)

    def begin(self) -> Iterator[OutputEvent]:
        yield self._item_event("response.output_item.added")
        self._has_part = True
        yield self._part_event("response.content_part.added")

    def _end_content(self) -> Iterator[OutputEvent]:
        yield self._text_done()
        yield self._part_event("response.content_part.done")

    def _part_event(self, kind: PartEventType) -> PartEvent:
        return {
            "type": kind,
            "item_id": self._id,
            "output_index": self._place,
            "content_index": 0,
            "part": self._part(),
            "sequence_number": next(self._numbers),
        }


class _ReasoningItem(_TextItem):
    kind = "reasoning"

    def shown(self) -> ReasoningItem:
        return {
            "id": self._id,
            "type": "reasoning",
            "status": self.status,
            "summary": [],
            "content": [self._part()] if self._has_part else [],
        }

    def add(self, text: str) -> ReasoningDeltaEvent:
        """The event of more text."""
        self._texts.append(text)
        return {
            "type": "response.reasoning_text.delta",
            "item_id": self._id,
            "output_index": self._place,
            "content_index": 0,
            "delta": text,
            "sequence_number": next(self._numbers),
        }

    def _part(self) -> ReasoningTextPart:
        return {"type": "reasoning_text", "text": self.text}

    def _text_done(self) -> ReasoningDoneEvent:
        return {
            "type": "response.reasoning_text.done",
            "item_id": self._id,
            "output_index": self._place,
            "content_index": 0,
            "text": self.text,
            "sequence_number": next(self._numbers),
        }


class _MessageItem(_TextItem):
    kind = "message"

    def __init__(self, place: int, numbers: Iterator[int]) -> None:
        super().__init__(place, numbers)
        self._logprobs: list[ChosenTokenLogprob] = []

    def shown(self) -> OutputMessage:
        return {
            "id": self._id,
            "type": "message",
            "status": self.status,
            "role": "assistant",
            "content": [self._part()] if self._has_part else [],
        }

    def add(self, text: str, logprobs: Sequence[ChosenTokenLogprob]) -> TextDeltaEvent:
        """The event of more text and of its tokens' log-probabilities."""
        self._texts.append(text)
        self._logprobs += logprobs
        return {
            "type": "response.output_text.delta",
            "item_id": self._id,
            "output_index": self._place,
            "content_index": 0,
            "delta": text,
            "logprobs": _without_bytes(logprobs),
            "sequence_number": next(self._numbers),
        }

    def _part(self) -> AnswerTextPart:
        return {"type": "output_text", "text": self.text, "annotations": [], "logprobs": list(self._logprobs)}

    def _text_done(self) -> TextDoneEvent:
        return {
            "type": "response.output_text.done",
            "item_id": self._id,
            "output_index": self._place,
            "content_index": 0,
            "text": self.text,
            "logprobs": _without_bytes(self._logprobs),
            "sequence_number": next(self._numbers),
        }


class _CallItem(_OpenItem):
    kind = "function_call"

    def __init__(self, place: int, numbers: Iterator[int], call_id: str, name: str) -> None:
        super().__init__(place, numbers)
        self._call_id = call_id
        self._name = name
        self._arguments: list[str] = []

    def shown(self) -> FunctionCallItem:
        return {
            "id": self._id,
            "type": "function_call",
            "status": self.status,
            "call_id": self._call_id,
            "name": self._name,
            "arguments": "".join(self._arguments),
        }

    def begin(self) -> Iterator[OutputEvent]:
        yield self._item_event("response.output_item.added")

    def end(self, status: ItemStatus) -> Iterator[OutputEvent]:
        """The events of its end. A call with all of its arguments is complete, also if the answer was cut after it."""
        return super().end("completed" if is_json_text("".join(self._arguments)) else status)

    def add(self, arguments: str) -> Iterator[ArgumentsDeltaEvent]:
        """The event of more of the arguments, unless they are empty."""
        if arguments:
            self._arguments.append(arguments)
            yield {
                "type": "response.function_call_arguments.delta",
                "item_id": self._id,
                "output_index": self._place,
                "delta": arguments,
                "sequence_number": next(self._numbers),
            }

    def _end_content(self) -> Iterator[ArgumentsDoneEvent]:
        yield {
            "type": "response.function_call_arguments.done",
            "item_id": self._id,
            "output_index": self._place,
            "arguments": "".join(self._arguments),
            "sequence_number": next(self._numbers),
        }


Item = TypeVar("Item", bound=_OpenItem)


class ResponseOutput:
    """The items of one answer, in the order in which they began.

    `num_logprobs`: the number of likeliest tokens to return for each token; None: no log-probabilities. `numbers`: the
    sequence numbers of all events of the response; each event takes the next one when it is made.
    """

    def __init__(self, table: TokenTable, num_logprobs: int | None) -> None:
        self.numbers = itertools.count()
        self._table = table
        self._num_logprobs = num_logprobs
        self._items: list[_OpenItem] = []
        self._is_open = False

    def items(self) -> list[OutputItem]:
        """All items as they are now."""
        return [item.shown() for item in self._items]

    def add(self, piece: ReplyPiece) -> Iterator[OutputEvent]:
        """The events of what the answer adds and, if it has finished, of its end."""
        calls = list(piece.delta.tool_calls)
        if calls and calls[0].call_id is None:  # the rest of a call comes before what follows it
            yield from self._last(_CallItem).add(calls.pop(0).arguments)
        if piece.delta.reasoning:
            yield from self._continue(_ReasoningItem)
            yield self._last(_ReasoningItem).add(piece.delta.reasoning)
        if piece.delta.content:
            yield from self._continue(_MessageItem)
            yield self._last(_MessageItem).add(piece.delta.content, self._logprobs(piece.entries))
        for call in calls:
            assert call.call_id is not None
            assert call.name is not None
            yield from self._begin(_CallItem(len(self._items), self.numbers, call.call_id, call.name))
            yield from self._last(_CallItem).add(call.arguments)
        if piece.finish_reason is not None:
            if not self._items:
                yield from self._continue(_MessageItem)
            yield from self._end_item("incomplete" if piece.finish_reason == "length" else "completed")

    def break_off(self) -> None:
        """End the output early; incomplete items stay incomplete."""
        if self._is_open:
            self._items[-1].status = "incomplete"
        self._is_open = False

    def _continue(self, kind: type[_TextItem]) -> Iterator[OutputEvent]:
        """The events, if any, that make the last item an open one of that kind."""
        if not self._is_open or not isinstance(self._items[-1], kind):
            yield from self._begin(kind(len(self._items), self.numbers))

    def _begin(self, item: _OpenItem) -> Iterator[OutputEvent]:
        yield from self._end_item("completed")
        self._items.append(item)
        self._is_open = True
        yield from item.begin()

    def _end_item(self, status: ItemStatus) -> Iterator[OutputEvent]:
        if self._is_open:
            self._is_open = False
            yield from self._items[-1].end(status)

    def _last(self, kind: type[Item]) -> Item:
        item = self._items[-1]
        assert isinstance(item, kind)
        return item

    def _logprobs(self, entries: Sequence[TokenEntry]) -> list[ChosenTokenLogprob]:
        """The log-probabilities of text tokens; those that delimit parts or end the answer are not in a message."""
        if self._num_logprobs is None:
            return []
        texts = (entry for entry in entries if not self._table.is_special(entry.logprobs.token_id))
        return shown_logprobs(texts, self._table)


def _without_bytes(logprobs: Sequence[ChosenTokenLogprob]) -> list[EventChosenLogprob]:
    """Log-probabilities in the form of events."""
    return [
        {
            "token": token["token"],
            "logprob": token["logprob"],
            "top_logprobs": [{"token": other["token"], "logprob": other["logprob"]} for other in token["top_logprobs"]],
        }
        for token in logprobs
    ]
