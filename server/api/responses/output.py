"""A response's output while it is generated: items that grow, and the events that tell of it.

It knows the shapes of items and of their events; it does not know the response that they belong to.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from server.answers.reply import ToolCallDelta
from server.api.generation.dialogue import ReplyPiece
from server.api.generation.logprobs import shown_logprobs
from server.api.generation.running import TokenEntry
from server.api.responses.items import Status, new_item_id
from server.detokenizer import TokenTable

Event = dict[str, Any]
"""An event but for its `sequence_number`."""


class _OpenItem(ABC):
    """An item that grows; `place` is its index in the output."""

    kind: str

    def __init__(self, place: int) -> None:
        self._place = place
        self._id = new_item_id(self.kind)
        self.status: Status = "in_progress"

    @abstractmethod
    def shown(self) -> dict[str, Any]:
        """The item as it is now."""

    @abstractmethod
    def begin(self) -> Iterator[Event]:
        """The events of a new item."""

    @abstractmethod
    def _end_content(self) -> Iterator[Event]:
        """The events of content that is complete."""

    def end(self, status: Status) -> Iterator[Event]:
        """The events of an item that is over."""
        self.status = status
        yield from self._end_content()
        yield self._done()

    def _head(self) -> dict[str, Any]:
        return {"id": self._id, "type": self.kind, "status": self.status}

    def _added(self) -> Event:
        return {"type": "response.output_item.added", "output_index": self._place, "item": self.shown()}

    def _done(self) -> Event:
        return {"type": "response.output_item.done", "output_index": self._place, "item": self.shown()}

    def _event(self, kind: str, **fields: Any) -> Event:
        return {"type": kind, "item_id": self._id, "output_index": self._place, **fields}


class _TextItem(_OpenItem):
    """An item with one part of text."""

    text_kind: str
    """What events call the text."""

    def __init__(self, place: int) -> None:
        super().__init__(place)
        self._texts: list[str] = []
        self._has_part = False

    @abstractmethod
    def _part(self) -> dict[str, Any]:
        """The part as it is now."""

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self._texts)

    def begin(self) -> Iterator[Event]:
        yield self._added()
        self._has_part = True
        yield self._event("response.content_part.added", content_index=0, part=self._part())

    def add(self, text: str, **fields: Any) -> Iterator[Event]:
        """The event of more text, with `fields`."""
        self._texts.append(text)
        yield self._event(f"response.{self.text_kind}.delta", content_index=0, delta=text, **fields)

    def _end_content(self) -> Iterator[Event]:
        yield self._event(f"response.{self.text_kind}.done", content_index=0, text=self.text, **self._done_fields())
        yield self._event("response.content_part.done", content_index=0, part=self._part())

    def _done_fields(self) -> dict[str, Any]:
        return {}

    def _parts(self) -> list[dict[str, Any]]:
        return [self._part()] if self._has_part else []


class _ReasoningItem(_TextItem):
    kind = "reasoning"
    text_kind = "reasoning_text"

    def shown(self) -> dict[str, Any]:
        return self._head() | {"summary": [], "content": self._parts()}

    def _part(self) -> dict[str, Any]:
        return {"type": "reasoning_text", "text": self.text}


class _MessageItem(_TextItem):
    kind = "message"
    text_kind = "output_text"

    def __init__(self, place: int) -> None:
        super().__init__(place)
        self._logprobs: list[dict[str, Any]] = []

    def shown(self) -> dict[str, Any]:
        return self._head() | {"role": "assistant", "content": self._parts()}

    def add_content(self, text: str, logprobs: Sequence[dict[str, Any]]) -> Iterator[Event]:
        """The event of more text and of its tokens' log-probabilities."""
        self._logprobs += logprobs
        return self.add(text, logprobs=_without_bytes(logprobs))

    def _part(self) -> dict[str, Any]:
        return {"type": "output_text", "text": self.text, "annotations": [], "logprobs": list(self._logprobs)}

    def _done_fields(self) -> dict[str, Any]:
        return {"logprobs": _without_bytes(self._logprobs)}


class _CallItem(_OpenItem):
    kind = "function_call"

    def __init__(self, place: int, call: ToolCallDelta) -> None:
        super().__init__(place)
        self._call_id = call.call_id
        self._name = call.name
        self._arguments: list[str] = []

    def shown(self) -> dict[str, Any]:
        return self._head() | {
            "call_id": self._call_id,
            "name": self._name,
            "arguments": "".join(self._arguments),
        }

    def begin(self) -> Iterator[Event]:
        yield self._added()

    def add(self, arguments: str) -> Iterator[Event]:
        """The event of more of the arguments, if it is any."""
        if arguments:
            self._arguments.append(arguments)
            yield self._event("response.function_call_arguments.delta", delta=arguments)

    def _end_content(self) -> Iterator[Event]:
        yield self._event("response.function_call_arguments.done", arguments="".join(self._arguments))


Item = TypeVar("Item", bound=_OpenItem)


class ResponseOutput:
    """The items of one answer, in the order in which it came to them.

    `num_logprobs`: how many likeliest tokens to tell at each place; None: no log-probabilities.
    """

    def __init__(self, table: TokenTable, num_logprobs: int | None) -> None:
        self._table = table
        self._num_logprobs = num_logprobs
        self._items: list[_OpenItem] = []
        self._is_open = False

    def items(self) -> list[dict[str, Any]]:
        """All items as they are now."""
        return [item.shown() for item in self._items]

    def add(self, piece: ReplyPiece) -> Iterator[Event]:
        """The events of what the answer adds; with its finish, of its end."""
        calls = list(piece.delta.tool_calls)
        if calls and calls[0].call_id is None:  # the rest of a call comes before what follows it
            yield from self._last(_CallItem).add(calls.pop(0).arguments)
        if piece.delta.reasoning:
            yield from self._continue(_ReasoningItem)
            yield from self._last(_ReasoningItem).add(piece.delta.reasoning)
        if piece.delta.content:
            yield from self._continue(_MessageItem)
            yield from self._last(_MessageItem).add_content(piece.delta.content, self._logprobs(piece.entries))
        for call in calls:
            yield from self._begin(_CallItem(len(self._items), call))
            yield from self._last(_CallItem).add(call.arguments)
        if piece.finish_reason is not None:
            if not self._items:
                yield from self._continue(_MessageItem)
            yield from self._end_item("incomplete" if piece.finish_reason == "length" else "completed")

    def break_off(self) -> None:
        """Nothing more comes: what is not complete stays so."""
        if self._is_open:
            self._items[-1].status = "incomplete"
        self._is_open = False

    def _continue(self, kind: type[_TextItem]) -> Iterator[Event]:
        """The events, if any, after which the last item is an open one of that kind."""
        if not self._is_open or not isinstance(self._items[-1], kind):
            yield from self._begin(kind(len(self._items)))

    def _begin(self, item: _OpenItem) -> Iterator[Event]:
        yield from self._end_item("completed")
        self._items.append(item)
        self._is_open = True
        yield from item.begin()

    def _end_item(self, status: Status) -> Iterator[Event]:
        if self._is_open:
            self._is_open = False
            yield from self._items[-1].end(status)

    def _last(self, kind: type[Item]) -> Item:
        item = self._items[-1]
        assert isinstance(item, kind)
        return item

    def _logprobs(self, entries: Sequence[TokenEntry]) -> list[dict[str, Any]]:
        """Of the tokens that are text; those that delimit parts or end the answer are no part of a message."""
        if self._num_logprobs is None:
            return []
        texts = (entry for entry in entries if not self._table.is_special(entry.logprobs.token_id))
        return shown_logprobs(texts, self._table)


def _without_bytes(logprobs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Log-probabilities as events have them."""
    return [
        {"token": token["token"], "logprob": token["logprob"]}
        | {"top_logprobs": [{"token": other["token"], "logprob": other["logprob"]} for other in token["top_logprobs"]]}
        for token in logprobs
    ]
