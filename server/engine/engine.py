"""BatchingEngine: the loop, and the one thread that owns the model.

    step():  schedule -> run -> sample -> emit

Callers submit and abort from any thread through an inbox; everything else happens on the engine's thread. Every
exit of a request goes through `_finish`, which returns its pages and rows.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from server.engine.admission import check_request
from server.engine.errors import (
    DuplicateRequest,
    EngineStopped,
    OutputNotFinite,
    QueueFull,
    StepFailed,
    WorkFailed,
)
from server.engine.grammar import GrammarFailed
from server.engine.kv_pages import KVPages
from server.engine.model import LoadedModel
from server.engine.outputs import branch_scores, last_output, next_scores, sampled_logprobs
from server.engine.pacing import BackgroundPace
from server.engine.protocol import EngineStats, ModelInfo, PagingStats, PoolStats
from server.engine.recurrent.slots import StateSlots
from server.engine.request import (
    EngineRequest,
    FinishReason,
    OutputSink,
    Priority,
    RequestState,
    TokenLogprobs,
    TokenOutput,
)
from server.engine.runner import ChunkResult, Runner
from server.engine.sampler import logprobs_of, sample
from server.engine.scheduler import Scheduler
from server.engine.sequence import TokenSequence
from server.steering.bank import SteeringBank

_log = logging.getLogger(__name__)

_FINAL_STATE = {
    FinishReason.STOP: RequestState.FINISHED,
    FinishReason.LENGTH: RequestState.FINISHED,
    FinishReason.ABORT: RequestState.ABORTED,
    FinishReason.ERROR: RequestState.FAILED,
}


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """The limits of the engine.

    `max_running` sequences share a step of at most `max_batch_tokens` tokens; up to `max_queue` live requests wait.
    `num_pages` of `page_size` tokens hold the KV of the layers that see farthest, and `num_window_pages` that of each
    further group of `LoadedModel.page_groups`; None: as many. A model with recurrent layers keeps `num_snapshots` of
    their states.
    """

    num_pages: int
    page_size: int = 16
    max_running: int = 64
    max_batch_tokens: int = 512
    max_queue: int = 1024
    prefix_cache: bool = True
    num_snapshots: int = 64
    num_window_pages: Sequence[int] | None = None


class BatchingEngine:
    """Continuous batching with per-request steering; implements `protocol.Engine`.

    `start` before the first request, `close` at the end (also a context manager). Without `start`, a test may
    call `step` itself.
    """

    def __init__(self, model: LoadedModel, settings: EngineSettings) -> None:
        self._model = model
        self._settings = settings
        slots = None
        prefix_cache = settings.prefix_cache
        if model.states:
            prefix_cache = prefix_cache and settings.num_snapshots > 0
            slots = StateSlots(settings.max_running, settings.num_snapshots if prefix_cache else 0)
        num_groups = len(model.page_groups)
        num_pages = (settings.num_pages, *(settings.num_window_pages or [settings.num_pages] * (num_groups - 1)))
        self._kv = KVPages(
            model.page_groups,
            num_pages,
            settings.page_size,
            max_chunk=settings.max_batch_tokens,
            prefix_cache=prefix_cache,
            states=slots,
        )
        self._max_tokens = self._kv.max_tokens(model.info.max_model_len)
        self._bank = SteeringBank(model.info.num_layers, model.info.hidden_size, model.device)
        self._runner = Runner(
            model,
            self._bank,
            num_pages=num_pages,
            page_size=settings.page_size,
            max_batch_tokens=settings.max_batch_tokens,
            slots=slots,
        )
        self._scheduler = Scheduler(
            self._kv, max_running=settings.max_running, max_batch_tokens=settings.max_batch_tokens
        )
        self._background_pace = BackgroundPace()
        self._sequences: dict[str, TokenSequence] = {}
        self._changed = threading.Condition()
        self._submitted: deque[TokenSequence] = deque()
        self._aborted: deque[TokenSequence] = deque()
        self._accepts = True
        self._stops = False
        self._thread: threading.Thread | None = None
        self._totals = {"requests": 0, "prompt": 0, "cached": 0, "generated": 0, "steps": 0}
        self._stats = self._snapshot()

    @property
    def info(self) -> ModelInfo:
        """The loaded model."""
        return self._model.info

    @property
    def is_accepting(self) -> bool:
        """See `protocol.Engine.is_accepting`."""
        return self._accepts

    @property
    def max_requests(self) -> int:
        """See `protocol.Engine.max_requests`."""
        return self._settings.max_queue + self._settings.max_running

    def stats(self) -> EngineStats:
        """The counters, at least as recent as the latest emitted events."""
        return self._stats

    def start(self) -> BatchingEngine:
        """Start the engine's thread."""
        assert self._thread is None
        self._thread = threading.Thread(target=self._run, name="tiller-engine", daemon=True)
        self._thread.start()
        return self

    def __enter__(self) -> BatchingEngine:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.close()

    def drain(self, timeout: float) -> bool:
        """See `protocol.Engine.drain`."""
        with self._changed:
            self._accepts = False
            return self._changed.wait_for(lambda: not self._sequences, timeout)

    def close(self) -> None:
        """See `protocol.Engine.close`."""
        with self._changed:
            self._accepts = False
            self._stops = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._runner.close()

    def submit(self, request: EngineRequest, sink: OutputSink) -> None:
        """See `protocol.Engine.submit`."""
        check_request(request, self._model.info, self._max_tokens)
        sequence = TokenSequence(request, sink, self._model.info.eos_token_ids, self._kv)
        with self._changed:
            if not self._accepts:
                raise EngineStopped
            if request.request_id in self._sequences:
                raise DuplicateRequest(request.request_id)
            if request.priority is Priority.LIVE:
                live = [each.request.owner for each in self._submitted if each.request.priority is Priority.LIVE]
                most = self._settings.max_queue + self._settings.max_running - self._scheduler.num_running
                if not self._scheduler.has_room_for(request.owner, live, most):
                    raise QueueFull(self._scheduler.num_waiting_live + len(live))
            self._sequences[request.request_id] = sequence
            self._submitted.append(sequence)
            self._changed.notify_all()

    def abort(self, request_id: str) -> None:
        """See `protocol.Engine.abort`."""
        with self._changed:
            sequence = self._sequences.get(request_id)
            if sequence is not None:
                self._aborted.append(sequence)
                self._changed.notify_all()

    def step(self) -> bool:
        """Schedule, run, sample, emit; False when there was nothing to do."""
        self._read_inbox()
        has_live = self._scheduler.has_live
        chunks = self._scheduler.schedule(self._background_pace.max_tokens() if has_live else None)
        if not chunks:
            return False
        started = time.monotonic()
        events: list[tuple[TokenSequence, TokenOutput]] = []
        try:
            for chunk in chunks:
                self._acquire_rows(chunk.sequence)
            self._advance(self._runner.run(chunks), events)
        except Exception:  # any failure of a step ends its requests, never the engine
            _log.exception("a step of %d requests failed", len(chunks))
            failed = [chunk.sequence for chunk in chunks if not chunk.sequence.state.is_final]
            events += [self._finish(sequence, FinishReason.ERROR, error=StepFailed()) for sequence in failed]
        self._totals["steps"] += 1
        if has_live:
            has_background = any(chunk.sequence.request.priority is not Priority.LIVE for chunk in chunks)
            self._background_pace.note(time.monotonic() - started, has_background=has_background)
        self._publish()
        self._emit(events)
        return True

    def _run(self) -> None:
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(self._has_work)
                    if self._stops:
                        break
                self.step()
            self._read_inbox()
            events = [self._finish(sequence, FinishReason.ABORT) for sequence in list(self._sequences.values())]
            self._publish()
            self._emit(events)
        except Exception:  # a bug of ours between two steps: no caller may be left waiting
            _log.critical("the engine stopped", exc_info=True)
            self._give_up()

    def _give_up(self) -> None:
        """Refuse everything from now on and end all requests, whatever their state."""
        with self._changed:
            self._accepts = False
            left = list(self._sequences.values())
        self._emit(
            [
                (each, TokenOutput(each.request.request_id, finish_reason=FinishReason.ERROR, error=StepFailed()))
                for each in left
            ]
        )

    def _has_work(self) -> bool:
        is_busy = self._scheduler.num_running + self._scheduler.num_waiting > 0
        return self._stops or is_busy or bool(self._submitted or self._aborted)

    def _read_inbox(self) -> None:
        with self._changed:
            while self._submitted:
                self._scheduler.add(self._submitted.popleft())
                self._totals["requests"] += 1
            aborted = list(self._aborted)
            self._aborted.clear()
        events = []
        for sequence in aborted:
            if not sequence.state.is_final:
                events.append(self._finish(sequence, FinishReason.ABORT))
        self._publish()
        self._emit(events)

    def _acquire_rows(self, sequence: TokenSequence) -> None:
        if sequence.rows is None:
            sequence.rows = self._bank.acquire(sequence.request.plan, sequence.wanted.branches)
            self._totals["prompt"] += sequence.num_prompt
            self._totals["cached"] += sequence.num_cached_tokens or 0

    def _advance(self, results: Sequence[ChunkResult], events: list[tuple[TokenSequence, TokenOutput]]) -> None:
        """Apply a step's results to the sequences, choose the next tokens, and append the outcomes to `events`."""
        sampling: list[ChunkResult] = []
        for result in results:
            sequence = result.chunk.sequence
            if not result.is_finite:  # its KV may be bad too, so its pages are not offered to others
                events.append(self._fail(sequence, OutputNotFinite(is_steered=sequence.request.plan.is_steered)))
                continue
            is_last = result.chunk.is_last
            if result.branch_logits is not None:
                sequence.add_branch_scores(branch_scores(result.branch_logits, sequence.wanted.next_token_ids))
            else:
                self._note_known(result)
                sequence.advance(result.chunk.num_new)
            if is_last and sequence.wanted.max_tokens > 0:
                sampling.append(result)
            elif is_last:
                events.append(self._finish(sequence, FinishReason.LENGTH))
        if sampling:
            self._sample(sampling, events)

    def _note_known(self, result: ChunkResult) -> None:
        sequence = result.chunk.sequence
        for place, found in result.activations.items():
            sequence.activations.setdefault(place, {}).update(found)
        if result.known_logits is not None:
            first = sequence.next_logprob_position + 1
            tokens = sequence.tokens[first : first + len(result.known_logits)]
            num_top = sequence.wanted.num_logprobs
            sequence.known_logprobs.extend(logprobs_of(result.known_logits, tokens, [num_top] * len(tokens)))
        if result.next_logits is not None and sequence.wanted.next_token_ids:
            sequence.next_scores = next_scores(result.next_logits, sequence.wanted.next_token_ids)

    def _sample(self, results: Sequence[ChunkResult], events: list[tuple[TokenSequence, TokenOutput]]) -> None:
        results, allowed = self._read_grammars(results, events)
        if not results:
            return
        sequences = [result.chunk.sequence for result in results]
        logits = torch.stack([result.next_logits for result in results if result.next_logits is not None])
        tokens = sample(logits, [sequence.sampler for sequence in sequences], allowed)
        logprobs = sampled_logprobs(logits, sequences, tokens)
        self._totals["generated"] += len(tokens)
        for sequence, token, logprob in zip(sequences, tokens, logprobs, strict=True):
            if sequence.state is RequestState.PREFILLING:
                sequence.become(RequestState.DECODING)
            try:
                sequence.append(token)
            except GrammarFailed as error:
                events.append(self._fail(sequence, error))
                continue
            reason = sequence.finish_reason
            if reason is not None:
                events.append(self._finish(sequence, reason, token=token, logprobs=logprob))
            else:
                events.append((sequence, TokenOutput(sequence.request.request_id, token, logprob)))

    def _read_grammars(
        self, results: Sequence[ChunkResult], events: list[tuple[TokenSequence, TokenOutput]]
    ) -> tuple[list[ChunkResult], dict[int, Tensor]]:
        """The results whose sequences continue, and what grammars allow, by index; the others end in `events`."""
        going_on: list[ChunkResult] = []
        allowed: dict[int, Tensor] = {}
        for result in results:
            try:
                mask = result.chunk.sequence.allowed_next(self._model.info.vocab_size)
            except GrammarFailed as error:
                events.append(self._fail(result.chunk.sequence, error))
                continue
            if mask is not None:
                allowed[len(going_on)] = mask
            going_on.append(result)
        return going_on, allowed

    def _finish(
        self,
        sequence: TokenSequence,
        reason: FinishReason,
        *,
        token: int | None = None,
        logprobs: TokenLogprobs | None = None,
        error: WorkFailed | None = None,
    ) -> tuple[TokenSequence, TokenOutput]:
        """End a request: return its pages and rows, and make its last event (`_emit` then forgets the request)."""
        self._scheduler.remove(sequence, _FINAL_STATE[reason])
        if sequence.rows is not None:
            self._bank.release(sequence.rows)
            sequence.rows = None
        return sequence, last_output(sequence, reason, token=token, logprobs=logprobs, error=error)

    def _fail(self, sequence: TokenSequence, error: WorkFailed) -> tuple[TokenSequence, TokenOutput]:
        """End a request that cannot go on, for a reason of its own, which the log gets too."""
        _log.warning("request %s: %s", sequence.request.request_id, error)
        return self._finish(sequence, FinishReason.ERROR, error=error)

    def _emit(self, events: Sequence[tuple[TokenSequence, TokenOutput]]) -> None:
        for sequence, output in events:
            try:
                sequence.sink(output)
            except Exception:  # a sink that raises is its owner's bug; the others must get their tokens
                _log.exception("the sink of request %s raised", output.request_id)
            if output.finish_reason is not None:
                with self._changed:
                    self._sequences.pop(output.request_id, None)
                    self._changed.notify_all()

    def _publish(self) -> None:
        self._stats = self._snapshot()

    def _snapshot(self) -> EngineStats:
        return EngineStats(
            num_running=self._scheduler.num_running,
            num_waiting=self._scheduler.num_waiting,
            num_steered_running=sum(sequence.request.plan.is_steered for sequence in self._scheduler.running),
            total_requests=self._totals["requests"],
            total_prompt_tokens=self._totals["prompt"],
            total_cached_tokens=self._totals["cached"],
            total_generated_tokens=self._totals["generated"],
            total_steps=self._totals["steps"],
            num_rows_in_use=self._bank.num_rows_in_use,
            num_states_in_use=0 if self._kv.states is None else self._kv.states.num_held,
            paging=PagingStats(
                pools=tuple(PoolStats(pool.num_pages, pool.num_available) for pool in self._kv.pools),
                page_size=self._kv.page_size,
                total_preemptions=self._scheduler.num_preemptions,
            ),
        )
