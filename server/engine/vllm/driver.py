"""StepDriver: the requests that vLLM has, what they hold, the orders of each step and what its answers mean."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vllm import SamplingParams as VllmSamplingParams
from vllm.v1.request import Request, RequestStatus

from server.engine.errors import StepFailed, WorkFailed
from server.engine.protocol import ModelInfo
from server.engine.request import FinishReason, Generate, Priority, TokenOutput
from server.engine.vllm.live import LiveRequest
from server.engine.vllm.messages import Answer, Drawing, StepOrders
from server.engine.vllm.pages import block_hasher
from server.engine.vllm.rows import RowTable

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class VllmLimits:
    """The limits of the engine: its own, and those of the buffers that its workers have.

    `num_rows` of steering, row 0 among them, with `num_slots` changes of components at a place; a step captures
    `num_captures` tokens. `num_background` of `max_running` places are left to background work that waits.
    """

    max_running: int
    max_queue: int
    num_rows: int
    num_slots: int
    num_captures: int
    num_background: int


class StepDriver:
    """Implements `scheduler.Driver` for the scheduler of the engine core `core`. Used only by the engine's thread.

    `events` are the outputs that are to be delivered; `totals` count requests, tokens, steps and preemptions.
    """

    def __init__(self, core: Any, info: ModelInfo, limits: VllmLimits) -> None:
        self._core = core
        self._info = info
        self._limits = limits
        self._rows = RowTable(limits.num_rows)
        self._by_name: dict[str, LiveRequest] = {}
        self.events: list[tuple[LiveRequest, TokenOutput]] = []
        self.totals: Counter[str] = Counter()
        if core.request_block_hasher is not None:
            algorithm = core.vllm_config.cache_config.prefix_caching_hash_algo
            core.request_block_hasher = block_hasher(
                self._by_name.__getitem__, core.scheduler.hash_block_size, algorithm
            )
        core.scheduler.driver = self

    @property
    def running(self) -> Sequence[LiveRequest]:
        """The requests that have started and not ended."""
        return [live for live in self._by_name.values() if not live.is_over]

    @property
    def num_rows_in_use(self) -> int:
        """Rows held by running requests."""
        return self._rows.num_in_use

    @property
    def is_busy(self) -> bool:
        """True when vLLM has something to do, if only to tell its workers who has ended."""
        return bool(self._core.scheduler.has_requests() or self._core.batch_queue)

    def num_running(self, priority: Priority) -> int:
        """How many requests of `priority` run."""
        return sum(live.request.priority is priority for live in self.running)

    def has_room_for(self, live: LiveRequest) -> bool:
        """True when there are the rows and captures that `live` needs."""
        num_capturing = sum(len(set(each.capture_positions)) for each in self.running)
        fits = num_capturing + len(set(live.capture_positions)) <= self._limits.num_captures
        return fits and self._rows.has_room_for(live.zones)

    def start(self, live: LiveRequest) -> None:
        """Hand a request to vLLM; if that fails, the request does."""
        try:
            live.begin(self._info.eos_token_ids)
            live.rows = self._rows.acquire(live.zones)
            self._by_name[live.name] = live
            work = live.request.work
            num_tokens = max(1, work.max_tokens) if isinstance(work, Generate) else 1
            live.vllm_request = Request(
                request_id=live.name,
                prompt_token_ids=list(live.known),
                # what is drawn, and when it ends, is decided here
                sampling_params=VllmSamplingParams(max_tokens=num_tokens, ignore_eos=True, detokenize=False),
                pooling_params=None,
                arrival_time=live.submitted_at,
                priority=int(live.request.priority),
                block_hasher=self._core.request_block_hasher,
            )
            self._core.add_request(live.vllm_request)
        except Exception as error:
            self._end(live, replace(live.output(FinishReason.ERROR), error=_as_failure(live, error)))

    def abort(self, live: LiveRequest) -> None:
        """End a request, whether it has started or not."""
        self._core.scheduler.finish_requests(live.name, RequestStatus.FINISHED_ABORTED)
        self._end(live, live.output(FinishReason.ABORT))

    def forget(self) -> None:
        """Forget the requests that have ended; vLLM may ask for them until its step is over."""
        for name in [name for name, live in self._by_name.items() if live.is_over]:
            del self._by_name[name]

    def orders(self, counts: dict[str, int], requests: dict[str, Any]) -> StepOrders:
        """See `scheduler.Driver`."""
        orders = StepOrders(self._rows.take_unwritten())
        for name, count in counts.items():
            live, request = self._by_name[name], requests[name]
            end, is_last = request.num_computed_tokens, not request.is_prefill_chunk
            if live.seconds_queued is None:
                self._note_start(live, num_cached=end - count)
                if isinstance(work := live.request.work, Generate):
                    orders.drawings[name] = Drawing(
                        live.request.prompt, work.sampling, self._info.eos_token_ids, work.num_logprobs
                    )
            try:
                orders.chunks[name] = live.chunk(end - count, end, self._info.vocab_size, is_last=is_last)
            except Exception as error:
                live.error = _as_failure(live, error)
        self.totals["steps"] += 1
        return orders

    def take(self, names: Collection[str], answers: dict[str, Answer]) -> list[str]:
        """See `scheduler.Driver`."""
        ended = []
        for name in names:
            live = self._by_name.get(name)
            if live is None or live.is_over:
                continue  # it was aborted while the step was under way
            try:
                output = live.take(answers.get(name))
            except Exception as error:
                output = replace(live.output(FinishReason.ERROR), error=_as_failure(live, error))
            if output is None:
                continue
            self.totals["generated"] += output.token_id is not None
            if output.finish_reason is None:
                self.events.append((live, output))
            else:
                self._end(live, output)
                ended.append(name)
        return ended

    def _note_start(self, live: LiveRequest, num_cached: int) -> None:
        live.seconds_queued, live.num_cached = time.monotonic() - live.submitted_at, num_cached
        if live.is_first:
            self.totals["prompt"] += len(live.request.prompt)
            self.totals["cached"] += num_cached

    def _end(self, live: LiveRequest, output: TokenOutput) -> None:
        """Take back what a request holds, and tell its last event."""
        live.is_over = True
        if live.rows is not None:
            self._rows.release(live.zones)
            live.rows = None
        if live.vllm_request is not None:
            self.totals["preemptions"] += live.vllm_request.num_preemptions
        self.events.append((live, output))


def _as_failure(live: LiveRequest, error: Exception) -> WorkFailed:
    """What the client learns of `error`; the log learns all."""
    if isinstance(error, WorkFailed):
        _log.warning("request %s: %s", live.request.request_id, error)
        return error
    _log.error("request %s failed", live.request.request_id, exc_info=error)
    return StepFailed()
