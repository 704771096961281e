"""VllmEngine: the thread that drives vLLM's engine core.

vLLM schedules, holds the KV and runs the model in its workers. What a request means stays with tiller: its phases and
parts, its grammar, its draws, when it ends, and what it answers. `Branch` is run as a request for each plan, whose
common pages vLLM shares. A worker that dies or a step that raises ends the engine, because vLLM's state is lost then.
"""

from __future__ import annotations

import itertools
import logging
import secrets
import threading
import time
from collections import deque
from dataclasses import replace
from typing import Any

from server.engine.admission import check_request
from server.engine.errors import DuplicateRequest, EngineStopped, InvalidWork, QueueFull, StepFailed
from server.engine.protocol import EngineHealth, EngineStats, ModelInfo, PagingStats, PoolStats
from server.engine.request import Branch, Capture, EngineRequest, FinishReason, Force, OutputSink, Priority, TokenOutput
from server.engine.vllm.driver import StepDriver, VllmLimits
from server.engine.vllm.live import LiveRequest, WholeBranch
from server.engine.vllm.rows import fingerprints_of, most_slots
from server.fair_queue import FairQueue

_log = logging.getLogger(__name__)

_NUM_JUDGED = 100
"""The latest steps of which `health` tells."""

_CLOSE_SECONDS = 4.0
"""Seconds that `close` waits for the step under way. Then it ends the requests without the workers."""


class VllmEngine:
    """Implements `protocol.Engine` with vLLM's engine core `core`, whose scheduler is a `SteeringScheduler`."""

    def __init__(self, core: Any, info: ModelInfo, limits: VllmLimits) -> None:
        self.info = info
        self._core = core
        self._limits = limits
        self._driver = StepDriver(core, info, limits)
        core.model_executor.register_failure_callback(self._lose_workers)
        self._requests: dict[str, LiveRequest | WholeBranch] = {}
        self._waiting: dict[Priority, FairQueue[LiveRequest]] = {
            priority: FairQueue(lambda live: live.request.owner) for priority in Priority
        }
        prefix = secrets.token_hex(4)  # pages of a request's own have its name in their keys
        self._names = (f"{prefix}-{number}" for number in itertools.count())
        self._changed = threading.Condition()
        self._submitted: deque[LiveRequest] = deque()
        self._aborted: deque[LiveRequest] = deque()
        self._accepts, self._stops, self._is_broken, self._is_shut = True, False, False, False
        self._step_began: float | None = None
        self._has_failed: deque[bool] = deque(maxlen=_NUM_JUDGED)
        self._stats = self._snapshot()
        self._thread = threading.Thread(target=self._run, name="tiller-vllm", daemon=True)
        self._thread.start()

    @property
    def is_accepting(self) -> bool:
        """See `protocol.Engine.is_accepting`."""
        return self._accepts

    @property
    def max_requests(self) -> int:
        """See `protocol.Engine.max_requests`."""
        return self._limits.max_queue + self._limits.max_running

    def submit(self, request: EngineRequest, sink: OutputSink) -> None:
        """See `protocol.Engine.submit`. Raises `InvalidWork` for what only tiller's own engine can do."""
        check_request(request, self.info, self.info.max_model_len)
        self._check(request)
        with self._changed:
            if not self._accepts:
                raise EngineStopped
            if request.request_id in self._requests:
                raise DuplicateRequest(request.request_id)
            if request.priority is Priority.LIVE:
                queue = self._waiting[Priority.LIVE]
                owners = [each.request.owner for each in self._submitted if each.request.priority is Priority.LIVE]
                most = self.max_requests - self._driver.num_running(Priority.LIVE)
                if not queue.has_room_for(request.owner, most, owners):
                    raise QueueFull(len(queue) + len(owners))
            self._submitted.extend(self._parts_of(request, sink))
            self._changed.notify_all()

    def abort(self, request_id: str) -> None:
        """See `protocol.Engine.abort`."""
        with self._changed:
            found = self._requests.get(request_id)
            if found is not None:
                self._aborted.extend(found.parts if isinstance(found, WholeBranch) else [found])
                self._changed.notify_all()

    def stats(self) -> EngineStats:
        """The counters, at least as recent as the latest emitted events."""
        return self._stats

    def health(self) -> EngineHealth:
        """See `protocol.Engine.health`. It does not live on when a worker process has died."""
        began = self._step_began
        seconds = 0.0 if began is None else time.monotonic() - began
        return EngineHealth(not self._is_broken, seconds, tuple(self._has_failed))

    def drain(self, timeout: float) -> bool:
        """See `protocol.Engine.drain`."""
        with self._changed:
            self._accepts = False
            return self._changed.wait_for(lambda: not self._requests, timeout)

    def close(self) -> None:
        """See `protocol.Engine.close`. vLLM gives its workers some seconds to end, and then kills them."""
        with self._changed:
            self._accepts, self._stops = False, True
            self._changed.notify_all()
        self._thread.join(_CLOSE_SECONDS)
        if self._thread.is_alive():
            _log.critical("the workers' step does not end; its requests are ended without it")
            self._give_up()
        with self._changed:
            is_shut, self._is_shut = self._is_shut, True
        if not is_shut:
            self._core.shutdown()

    def _check(self, request: EngineRequest) -> None:
        """Raise `InvalidWork` for what does not fit into the workers' buffers."""
        limits = self._limits
        plans = request.work.plans if isinstance(request.work, Branch) else (request.plan,)
        for plan in plans:
            if plan.probes or plan.gated:
                field = "probes" if plan.probes else "steering"
                raise InvalidWork("with --engine vllm there are no probes and gates; --engine torch has them", field)
            if any(each.dim() > 1 for entry in plan.entries for each in entry.applied.directions.values()):
                raise InvalidWork(
                    "with --engine vllm a vector has one direction a layer; --engine torch takes those with several",
                    "steering",
                )
        if isinstance(request.work, Force) and request.work.keeps_rows:
            raise InvalidWork("with --engine vllm vectors are not calibrated; --engine torch does it")
        every = [plan.zones(len(request.prompt)) for plan in plans]
        if (most := max(len(fingerprints_of(zones)) for zones in every)) >= limits.num_rows:
            raise InvalidWork(
                f"with --engine vllm a request may steer in at most {limits.num_rows - 1} different ways along its "
                f"positions and parts, got {most}; --engine torch has no such limit"
            )
        if (most := max(map(most_slots, every))) > limits.num_slots:
            raise InvalidWork(
                f"with --engine vllm at most {limits.num_slots} vectors may do more than add at one layer and site, "
                f"got {most}; --engine torch has no such limit",
                "steering",
            )
        if isinstance(request.work, Capture) and (most := len(set(request.work.positions))) > limits.num_captures:
            raise InvalidWork(f"with --engine vllm a capture has at most {limits.num_captures} positions, got {most}")

    def _parts_of(self, request: EngineRequest, sink: OutputSink) -> list[LiveRequest]:
        """What is run for `request`, which is registered by its id."""
        if not isinstance(request.work, Branch):
            live = LiveRequest(request, sink, next(self._names))
            self._requests[request.request_id] = live
            return [live]
        whole = WholeBranch(request, sink)
        for number, plan in enumerate(request.work.plans):

            def add(output: TokenOutput, number: int = number) -> None:
                whole.add(number, output)

            part = replace(request, plan=plan)
            whole.parts.append(LiveRequest(part, add, next(self._names), is_first=number == 0, whole=whole))
        self._requests[request.request_id] = whole
        return whole.parts

    def _run(self) -> None:
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(self._has_work)
                    if self._stops:
                        break
                self._step()
            self._read_inbox()
            for live in [*self._driver.running, *itertools.chain(*self._waiting.values())]:
                self._abort(live)
            self._deliver()
        except BaseException:
            if not self._is_broken:
                _log.critical("the engine stopped", exc_info=True)
            self._give_up()

    def _has_work(self) -> bool:
        is_waiting = any(map(len, self._waiting.values()))
        return bool(self._stops or self._driver.is_busy or is_waiting or self._submitted or self._aborted)

    def _step(self) -> None:
        self._read_inbox()
        while (live := self._next()) is not None:
            self._waiting[live.request.priority].take(live)
            self._driver.start(live)
        if self._driver.is_busy:
            self._step_began = time.monotonic()
            try:
                self._core.step_fn()
            except BaseException:
                self._has_failed.append(True)
                raise
            self._has_failed.append(False)
        self._driver.forget()
        self._deliver()
        self._step_began = None

    def _read_inbox(self) -> None:
        with self._changed:
            submitted, aborted = list(self._submitted), list(self._aborted)
            for live in submitted:
                self._waiting[live.request.priority].add(live)
                self._driver.totals["requests"] += live.is_first
            self._submitted.clear()
            self._aborted.clear()
        for live in aborted:
            self._abort(live)

    def _abort(self, live: LiveRequest) -> None:
        if live.is_over:
            return
        if not live.has_started:
            self._waiting[live.request.priority].remove(live)
        self._driver.abort(live)

    def _next(self) -> LiveRequest | None:
        """The next to start, live requests first; None when nothing waits, or it waits for what others hold."""
        driver, queues, most = self._driver, self._waiting, self._limits.max_running
        num_live, num_background = (driver.num_running(priority) for priority in (Priority.LIVE, Priority.BACKGROUND))
        if num_live + num_background >= most:
            return None
        left = max(0, self._limits.num_background - num_background) if queues[Priority.BACKGROUND] else 0
        live = queues[Priority.LIVE].peek(0) if num_live < most - left else None
        live = live or queues[Priority.BACKGROUND].peek(0)
        return live if live is not None and driver.has_room_for(live) else None

    def _deliver(self) -> None:
        """Publish the counters, then hand out the events."""
        self._stats = self._snapshot()
        events, self._driver.events = self._driver.events, []
        for live, output in events:
            self._emit(live, output)

    def _emit(self, live: LiveRequest, output: TokenOutput) -> None:
        name = live.request.request_id
        if self._requests.get(name) is not (live.whole or live):
            return  # `_give_up` has ended it
        try:
            live.sink(output)
        except Exception:  # a sink that raises is its owner's bug; the others must get their tokens
            _log.exception("the sink of request %s raised", name)
        if output.finish_reason is not None and (live.whole is None or live.whole.is_over):
            with self._changed:
                self._requests.pop(name, None)
                self._changed.notify_all()

    def _lose_workers(self) -> None:
        """A worker process has died: called by vLLM on a thread of its own."""
        if not self._stops:
            _log.critical("a worker process of vLLM has died")
            self._give_up()

    def _give_up(self) -> None:
        """Refuse everything from now on and end all requests, whatever their state."""
        with self._changed:
            self._is_broken, self._accepts, self._stops = True, False, True
            left = dict(self._requests)
            self._requests.clear()
            self._changed.notify_all()
        for name, each in left.items():
            try:
                each.sink(TokenOutput(name, finish_reason=FinishReason.ERROR, error=StepFailed()))
            except Exception:
                _log.exception("the sink of request %s raised", name)

    def _snapshot(self) -> EngineStats:
        driver, scheduler = self._driver, self._core.scheduler
        running = driver.running
        pool = scheduler.kv_cache_manager.block_pool
        pages = PoolStats(pool.num_gpu_blocks - 1, pool.get_num_free_blocks())  # block 0 is never used
        return EngineStats(
            num_running=len(running),
            num_waiting=sum(map(len, self._waiting.values())) + len(self._submitted),
            num_steered_running=sum(live.request.plan.is_steered for live in running),
            total_requests=driver.totals["requests"],
            total_prompt_tokens=driver.totals["prompt"],
            total_cached_tokens=driver.totals["cached"],
            total_generated_tokens=driver.totals["generated"],
            total_steps=driver.totals["steps"],
            num_rows_in_use=driver.num_rows_in_use,
            paging=PagingStats((pages,), scheduler.block_size, driver.totals["preemptions"]),
        )
