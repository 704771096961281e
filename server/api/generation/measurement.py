"""Measures one generation from its events: latencies and counts for Prometheus and for the request's record.

Events must be noted in order, on one thread.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from server.api.http.metrics import INLINE_VECTORS, Metrics
from server.api.http.observed import Observed, observed
from server.engine.request import EngineRequest, TokenOutput


class Measurement:
    """Measures the sequences that answer one request. `metrics` None: background work, which is not counted."""

    def __init__(self, requests: Sequence[EngineRequest], metrics: Metrics | None) -> None:
        self._metrics = metrics
        self._record = Observed() if metrics is None else observed()
        self._began_at = time.perf_counter()
        self._complete: set[str] = set()
        self._last_token_at: dict[str, float] = {}
        self._num_generated = dict.fromkeys((request.request_id for request in requests), 0)
        self._requests = {request.request_id: request for request in requests}
        self._vectors = {request.request_id: _steering_vectors(request) for request in requests}
        if metrics is None:
            return
        self._record.model = metrics.model
        self._record.vectors = sorted({name or INLINE_VECTORS for names in self._vectors.values() for name in names})
        prompts = {id(request.prompt): len(request.prompt) for request in requests}  # `n` choices share one tuple
        self._record.num_prompt_tokens += sum(prompts.values())

    def note(self, output: TokenOutput, arrived_at: float) -> None:
        """Note an event of the engine and its arrival time (`time.perf_counter`)."""
        if self._metrics is None:
            return
        if output.token_id is not None and output.request_id not in self._complete:
            self._note_token(self._metrics, output.request_id, arrived_at)
            self._note_scores(self._metrics, output)
        if output.finish_reason is not None and output.seconds_queued is not None:
            self._metrics.observe_queue_time(output.seconds_queued)

    def _note_token(self, metrics: Metrics, request_id: str, arrived_at: float) -> None:
        if not self._last_token_at:
            self._record.first_token_seconds = arrived_at - self._began_at
            metrics.observe_first_token(self._record.first_token_seconds)
        previous = self._last_token_at.get(request_id)
        if previous is not None:
            metrics.observe_inter_token(arrived_at - previous)
        self._last_token_at[request_id] = arrived_at
        self._num_generated[request_id] += 1
        self._record.num_generated_tokens += 1
        for name in self._vectors[request_id]:
            metrics.count_steered_token(name)

    def _note_scores(self, metrics: Metrics, output: TokenOutput) -> None:
        if output.readings is None:
            return
        probes = self._requests[output.request_id].plan.probes
        for probe, score in zip(probes, output.readings.scores, strict=True):
            if score is not None:
                metrics.observe_score(probe.vector, probe.place[1], score)

    def note_finish(self, request_id: str, reason: str) -> None:
        """Note that a sequence's answer is complete."""
        if self._metrics is None:
            return
        self._complete.add(request_id)  # later tokens, until the engine learns of a stop string, are not counted
        self._record.finish_reasons.append(reason)
        self._metrics.count_finished(reason)
        self._metrics.observe_lengths(len(self._requests[request_id].prompt), self._num_generated[request_id])

    def note_end(self) -> None:
        """Note that all sequences are complete."""
        if self._metrics is not None:
            self._metrics.observe_request(time.perf_counter() - self._began_at)


def _steering_vectors(request: EngineRequest) -> tuple[str, ...]:
    """The names of the vectors that steer the request, each once."""
    return tuple({entry.vector: None for entry in request.plan.entries if entry.applied.is_active})
