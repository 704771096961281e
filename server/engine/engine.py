"""BatchingEngine: the loop, and the one thread that owns the model.

    step():  schedule -> run -> sample -> emit

Callers submit and abort from any thread through an inbox; everything else happens on the engine's thread. Every
exit of a request goes through `_finish`, which returns its pages and rows. A step that raises is undone, and its
requests are computed again one by one, so that only those fail that raise when they are alone.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

from server.engine.admission import check_request
from server.engine.errors import (
    DuplicateRequest,
    EngineStopped,
    QueueFull,
    StepFailed,
)
from server.engine.kv_pages import KVPages
from server.engine.model import LoadedModel
from server.engine.outputs import last_output
from server.engine.pacing import BackgroundPace
from server.engine.protocol import EngineHealth, EngineStats, ModelInfo, PagingStats, PoolStats
from server.engine.recurrent.slots import StateSlots
from server.engine.request import (
    EngineRequest,
    FinishReason,
    OutputSink,
    Priority,
    RequestState,
    TokenOutput,
)
from server.engine.runner import Runner
from server.engine.scheduler import Chunk, Scheduler
from server.engine.sequence import TokenSequence
from server.engine.verdicts import Verdict, failed, verdicts_of
from server.steering.bank import SteeringBank

_log = logging.getLogger(__name__)

_NUM_JUDGED = 100
"""The latest steps of which `health` tells."""

_CLOSE_SECONDS = 4.0
"""Seconds that `close` waits for the step under way. Then it ends the requests without the engine's thread."""

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
    their states. Of the steps with live requests at least `background_share` also serve background work that waits.
    """

    num_pages: int
    page_size: int = 16
    max_running: int = 64
    max_batch_tokens: int = 512
    max_queue: int = 1024
    prefix_cache: bool = True
    num_snapshots: int = 64
    num_window_pages: Sequence[int] | None = None
    background_share: float = 0.05


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
            slots = StateSlots(settings.max_running + 1, settings.num_snapshots if prefix_cache else 0)
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
        self._background_pace = BackgroundPace(least_share=settings.background_share)
        self._sequences: dict[str, TokenSequence] = {}
        self._changed = threading.Condition()
        self._submitted: deque[TokenSequence] = deque()
        self._aborted: deque[TokenSequence] = deque()
        self._accepts = True
        self._stops = False
        self._thread: threading.Thread | None = None
        self._totals = {"requests": 0, "prompt": 0, "cached": 0, "generated": 0, "steps": 0, "failed": 0}
        self._step_began: float | None = None
        self._has_failed: deque[bool] = deque(maxlen=_NUM_JUDGED)
        self._is_broken = False
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

    def health(self) -> EngineHealth:
        """See `protocol.Engine.health`."""
        began = self._step_began
        return EngineHealth(
            is_alive=not self._is_broken,
            seconds_in_step=0.0 if began is None else time.monotonic() - began,
            latest_steps=tuple(self._has_failed),
        )

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
        """See `protocol.Engine.close`. A step that does not end within seconds is left to itself, with the model."""
        with self._changed:
            self._accepts = False
            self._stops = True
            self._changed.notify_all()
        if self._thread is not None and not self._is_broken:
            self._thread.join(_CLOSE_SECONDS)
            if self._thread.is_alive():
                _log.critical("the engine's step does not end; its requests are ended without it")
                self._give_up()
        if self._thread is not None and self._thread.is_alive():
            return
        self._thread = None
        self._runner.close()

    def submit(self, request: EngineRequest, sink: OutputSink) -> None:
        """See `protocol.Engine.submit`."""
        check_request(request, self._model.info, self._max_tokens)
        sequence = TokenSequence(
            request,
            sink,
            self._model.info.eos_token_ids,
            self._kv,
            entry_points=self._model.entry_points if self._model.allows_late_entry else None,
        )
        with self._changed:
            if not self._accepts:
                raise EngineStopped
            if request.request_id in self._sequences:
                raise DuplicateRequest(request.request_id)
            if request.priority is Priority.LIVE:
                live = [each.request.owner for each in self._submitted if each.request.priority is Priority.LIVE]
                most = self._settings.max_queue + self._settings.max_running - self._scheduler.num_running_live
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
        started = self._step_began = time.monotonic()
        self._read_inbox()
        has_live, has_background = self._scheduler.has_live, self._scheduler.has_background
        chunks = self._scheduler.schedule(self._background_pace.allowance() if has_live else None)
        if not chunks:
            self._step_began = None
            return False
        events = [self._apply(verdict) for verdict in self._compute(chunks)]
        self._totals["steps"] += 1
        if has_live:
            is_served = any(chunk.sequence.request.priority is not Priority.LIVE for chunk in chunks)
            seconds = time.monotonic() - started
            self._background_pace.note(seconds, has_background=is_served, is_waiting=has_background)
        self._publish()
        self._emit(events)
        self._step_began = None
        return True

    def _compute(self, chunks: Sequence[Chunk]) -> list[Verdict]:
        """Run a step. If it raises, its only sequence fails, or its sequences are computed again, each alone."""
        verdicts: list[Verdict] = []
        ready: list[Chunk] = []
        for chunk in chunks:
            try:
                self._acquire_rows(chunk.sequence)
                ready.append(chunk)
            except Exception as error:
                verdicts.append(failed(chunk.sequence, error))
        if not ready:
            return verdicts
        try:
            results = self._runner.run(ready)
        except Exception as error:
            self._has_failed.append(True)
            self._totals["failed"] += 1
            if len(ready) == 1:
                return [*verdicts, failed(ready[0].sequence, error)]
            _log.error("a step of %d requests failed; each is computed again alone", len(ready), exc_info=error)
            self._scheduler.isolate(ready)
            return verdicts
        self._has_failed.append(False)
        return verdicts + verdicts_of(results, self._model.info.vocab_size)

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
        except BaseException:  # a bug of ours between two steps, or a library's panic: no caller may be left waiting
            _log.critical("the engine stopped", exc_info=True)
            self._give_up()

    def _give_up(self) -> None:
        """Refuse everything from now on and end all requests, whatever their state."""
        with self._changed:
            self._is_broken = True
            self._accepts = False
            left = list(self._sequences.values())
        self._stats = replace(self._stats, num_running=0, num_waiting=0, num_steered_running=0)
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
            sequence.rows = self._bank.acquire(sequence.zones, sequence.wanted.branches)
            self._totals["prompt"] += sequence.num_prompt
            self._totals["cached"] += sequence.num_cached_tokens or 0

    def _apply(self, verdict: Verdict) -> tuple[TokenSequence, TokenOutput]:
        """The event that tells of a verdict; a request that ends returns what it holds."""
        sequence, token = verdict.sequence, verdict.token
        self._totals["generated"] += token is not None
        if verdict.reason is None:
            name, logprobs = sequence.request.request_id, verdict.logprobs
            return sequence, TokenOutput(name, token, logprobs, readings=verdict.readings)
        return self._finish(sequence, verdict.reason, verdict)

    def _finish(
        self,
        sequence: TokenSequence,
        reason: FinishReason,
        verdict: Verdict | None = None,
    ) -> tuple[TokenSequence, TokenOutput]:
        """End a request: return its pages and rows, and make its last event (`_emit` then forgets the request)."""
        self._scheduler.remove(sequence, _FINAL_STATE[reason])
        if sequence.rows is not None:
            self._bank.release(sequence.rows)
            sequence.rows = None
        verdict = Verdict(sequence) if verdict is None else verdict
        last = last_output(sequence, reason, token=verdict.token, logprobs=verdict.logprobs, error=verdict.error)
        return sequence, replace(last, readings=verdict.readings)

    def _emit(self, events: Sequence[tuple[TokenSequence, TokenOutput]]) -> None:
        for sequence, output in events:
            if self._sequences.get(output.request_id) is not sequence:
                continue  # `_give_up` has ended it while a step did not end
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
            total_failed_steps=self._totals["failed"],
            num_rows_in_use=self._bank.num_rows_in_use,
            num_states_in_use=0 if self._kv.states is None else self._kv.states.num_held,
            paging=PagingStats(
                pools=tuple(PoolStats(pool.num_pages, pool.num_available) for pool in self._kv.pools),
                page_size=self._kv.page_size,
                total_preemptions=self._scheduler.num_preemptions,
            ),
        )
