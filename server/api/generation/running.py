"""Runs the choices of one HTTP request on the engine and yields their text as it arrives.

There is one `Choice` object per choice. The engine calls sinks on its own thread; everything here runs on the event
loop, and the sinks only hand events over. Closing a `Generation` aborts what is still running.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from server.api.generation.mailbox import mailbox
from server.api.generation.measurement import Measurement
from server.api.generation.objects import CompletionFinishReason
from server.api.http.engine_errors import from_engine_error
from server.api.http.limiting import Caller
from server.api.http.metrics import Metrics
from server.detokenizer import ChoiceText
from server.engine.errors import StepFailed
from server.engine.protocol import Engine
from server.engine.request import EngineRequest, FinishReason, TokenLogprobs, TokenOutput, TokenReadings
from server.errors import InvalidRequest, Unavailable

_REASONS: Mapping[FinishReason, CompletionFinishReason] = {FinishReason.LENGTH: "length", FinishReason.ABORT: "abort"}


@dataclass(frozen=True, slots=True)
class TokenEntry:
    """A token's log-probabilities and where its text begins, in characters of the choice's own text."""

    logprobs: TokenLogprobs
    offset: int


@dataclass(frozen=True, slots=True)
class Piece:
    """What a choice adds: text, the tokens behind it, what probes read of them, and at the end its finish reason."""

    text: str
    token_ids: tuple[int, ...]
    entries: tuple[TokenEntry, ...]
    finish_reason: CompletionFinishReason | None
    readings: tuple[TokenReadings, ...] = ()


@dataclass
class Choice:
    """One answer while it is generated. `readings`: what probes read of its tokens so far.

    `is_cancelled`: its client wants no more of it.
    """

    index: int
    request: EngineRequest
    text: ChoiceText
    finish_reason: CompletionFinishReason | None = None
    num_cached_tokens: int = 0
    is_over: bool = False
    is_cancelled: bool = False
    known_logprobs: tuple[TokenLogprobs | None, ...] = ()
    readings: list[TokenReadings] = field(default_factory=list)
    _num_shown_readings: int = 0
    _token_ids: list[int] = field(default_factory=list)
    _entries: list[TokenEntry] = field(default_factory=list)

    def take(self, output: TokenOutput) -> Piece | None:
        """What to show after an event of the engine, if anything. Sets `is_over` with the last event."""
        self._note_end(output)
        if self.finish_reason is not None:
            return None  # a stop string ended it earlier; this only confirms the abort
        if output.readings is not None:
            self.readings.append(output.readings)
        shown = ""
        if output.token_id is not None:
            offset = self.text.num_characters
            shown = self.text.push(output.token_id, is_end=output.is_end)
            self._token_ids.append(output.token_id)
            if output.logprobs is not None:
                self._entries.append(TokenEntry(output.logprobs, offset))
        if output.finish_reason is not None:
            shown += self.text.flush()
        if self.text.is_stopped:
            self.finish_reason = "stop"
        elif output.finish_reason is not None:
            self.finish_reason = _REASONS.get(output.finish_reason, "stop")
        if not shown and self.finish_reason is None:
            return None
        readings = tuple(self.readings[self._num_shown_readings :])
        piece = Piece(shown, tuple(self._token_ids), tuple(self._entries), self.finish_reason, readings)
        self._num_shown_readings = len(self.readings)
        self._token_ids.clear()
        self._entries.clear()
        return piece

    def _note_end(self, output: TokenOutput) -> None:
        if output.finish_reason is None:
            return
        self.is_over = True
        self.num_cached_tokens = output.num_cached_tokens
        self.known_logprobs = output.known_logprobs or ()
        if self.finish_reason is not None:
            return
        if output.finish_reason is FinishReason.ERROR:
            raise from_engine_error(output.error or StepFailed())
        if output.finish_reason is FinishReason.ABORT and not self.is_cancelled:
            raise Unavailable("the server shut down before the answer was complete", code="shutting_down")


class Generation:
    """The choices of a request on the engine. Use as a context; leaving it aborts what is still running.

    `metrics` None: background work, whose latencies are not counted.
    """

    def __init__(self, engine: Engine, choices: Sequence[Choice], metrics: Metrics | None = None) -> None:
        self.choices = tuple(choices)
        self._engine = engine
        self._measurement = Measurement([choice.request for choice in choices], metrics)
        self._mailbox = mailbox()
        self._events: asyncio.Queue[tuple[Choice, TokenOutput, float]] = asyncio.Queue()
        self._submitted: list[Choice] = []
        self._caller = Caller(b"")

    def submit(self, caller: Caller) -> None:
        """Submit all choices for `caller` to the engine, or none: if one is refused, the others are aborted."""
        self._caller = caller
        try:
            for choice in self.choices:
                self._submit(choice, caller.owner)
        except BaseException:
            self.close()
            raise
        prompts = {id(choice.request.prompt): len(choice.request.prompt) for choice in self.choices}
        caller.charge(sum(prompts.values()))  # `n` choices share one prompt

    def cancel(self, indices: Collection[int] | None) -> list[int]:
        """End the choices of these indices, or all, while the others go on. Returns those that were not complete.

        Raises `InvalidRequest` for an index that no choice has.
        """
        for index in indices or ():
            if index >= len(self.choices):
                raise InvalidRequest(
                    f"choices: expected indices from 0 to {len(self.choices) - 1}, got {index}",
                    code="invalid_value",
                    param="choices",
                )
        ended = [
            choice
            for choice in self._submitted
            if choice.finish_reason is None and (indices is None or choice.index in indices)
        ]
        for choice in ended:
            choice.is_cancelled = True
            self._engine.abort(choice.request.request_id)
        return [choice.index for choice in ended]

    def close(self) -> None:
        """Abort what is still running. Idempotent."""
        for choice in self._submitted:
            if not choice.is_over:
                self._engine.abort(choice.request.request_id)
        self._submitted.clear()

    def __enter__(self) -> Generation:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    async def pieces(self) -> AsyncIterator[tuple[Choice, Piece]]:
        """The text of all choices as it arrives; ends when all of them are complete."""
        while not all(choice.is_over for choice in self.choices):
            choice, output, arrived_at = await self._events.get()
            self._measurement.note(output, arrived_at)
            if output.token_id is not None:
                self._caller.charge(1)
            piece = choice.take(output)
            if piece is None:
                continue
            if piece.finish_reason is not None:
                self._measurement.note_finish(choice.request.request_id, piece.finish_reason)
                if not choice.is_over:
                    self._engine.abort(choice.request.request_id)
            yield choice, piece
        self._measurement.note_end()

    async def whole(self) -> list[tuple[Choice, Piece]]:
        """Every choice with all of its text, once complete."""
        parts: dict[int, list[Piece]] = {choice.index: [] for choice in self.choices}
        async for choice, piece in self.pieces():
            parts[choice.index].append(piece)
        return [(choice, _join(parts[choice.index])) for choice in self.choices]

    def _submit(self, choice: Choice, owner: str) -> None:
        def receive(output: TokenOutput) -> None:
            self._mailbox.put(self._events.put_nowait, (choice, output, time.perf_counter()))

        self._engine.submit(replace(choice.request, owner=owner), receive)
        self._submitted.append(choice)


def _join(pieces: Sequence[Piece]) -> Piece:
    return Piece(
        text="".join(piece.text for piece in pieces),
        token_ids=tuple(token_id for piece in pieces for token_id in piece.token_ids),
        entries=tuple(entry for piece in pieces for entry in piece.entries),
        readings=tuple(told for piece in pieces for told in piece.readings),
        finish_reason=pieces[-1].finish_reason,
    )
