"""Prometheus metrics: the engine's counters and the latencies of requests, under vLLM's names where it has them.

Each application has its own registry. A label never comes from a client, except the name of an existing vector, and
only the first `MAX_VECTOR_LABELS` vectors get their own label.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from server.engine.protocol import Engine

MAX_VECTOR_LABELS = 100
OTHER_VECTORS = "_other"
INLINE_VECTORS = "_inline"
"""Those without a name, whose directions came with the request. No vector's name begins with an underscore."""

_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2.5, 5)
_SECONDS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.5, 0.75, 1, 2, 5, 10, 20, 40, 80, 160, 320, 640)
_SCORES = (
    *(-20.0, -10.0, -5.0, -2.0, -1.0, -0.5, -0.25, -0.1, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
    *(2.0, 5.0, 10.0, 20.0),
)


class _EngineCollector(Collector):
    """Reads `engine.stats()` whenever Prometheus asks."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        """One consistent snapshot as metric families; those of pages and rows only if the engine has them."""
        stats = self._engine.stats()
        pages = free_pages = used = preemptions = None
        if stats.paging is not None:
            pools = stats.paging.pools
            pages, free_pages = (sum(pool.num_pages for pool in pools), sum(pool.num_free_pages for pool in pools))
            used = max(pool.usage for pool in pools)
            preemptions = stats.paging.total_preemptions
        gauges = (
            ("vllm:num_requests_running", "Requests that are running.", stats.num_running),
            ("vllm:num_requests_waiting", "Requests that are waiting.", stats.num_waiting),
            ("vllm:kv_cache_usage_perc", "Share of KV pages in use, 0 to 1, in the fullest group of layers.", used),
            ("tiller:num_requests_steered", "Steered requests that are running.", stats.num_steered_running),
            ("tiller:steering_rows_in_use", "Rows of the steering bank in use.", stats.num_rows_in_use),
            ("tiller:recurrent_states_in_use", "States of recurrent layers in use.", stats.num_states_in_use),
            ("tiller:kv_pages", "KV pages in total.", pages),
            ("tiller:kv_pages_free", "KV pages that a new request could take.", free_pages),
        )
        totals = (
            ("vllm:prompt_tokens", "Prompt tokens.", stats.total_prompt_tokens),
            ("vllm:generation_tokens", "Generated tokens.", stats.total_generated_tokens),
            ("vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", stats.total_prompt_tokens),
            ("vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache.", stats.total_cached_tokens),
            ("vllm:num_preemptions", "Preemptions: requests that gave up their pages for a while.", preemptions),
            ("tiller:engine_requests", "Sequences that the engine accepted.", stats.total_requests),
            ("tiller:engine_steps", "Steps of the engine.", stats.total_steps),
            ("tiller:engine_steps_failed", "Steps of the engine that raised.", stats.total_failed_steps),
        )
        label = [self._engine.info.model_id]
        for name, text, value in gauges:
            if value is not None:
                gauge = GaugeMetricFamily(name, text, labels=["model_name"])
                gauge.add_metric(label, value)
                yield gauge
        for name, text, value in totals:
            if value is not None:
                counter = CounterMetricFamily(name, text, labels=["model_name"])
                counter.add_metric(label, value)
                yield counter


class Metrics:
    """The application's own measurements, beside the engine's; those of probes only if it `has_probes`."""

    def __init__(self, engine: Engine, *, has_probes: bool = False) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_EngineCollector(engine))
        self.model = engine.info.model_id
        self._vectors: set[str] = set()
        self._first_token = self._histogram("vllm:time_to_first_token_seconds", "Time to the first token.")
        self._inter_token = self._histogram(
            "vllm:inter_token_latency_seconds", "Time between two tokens of a choice.", _TOKEN_SECONDS
        )
        self._queue_time = self._histogram("vllm:request_queue_time_seconds", "Time to the first step.")
        self._whole = self._histogram("vllm:e2e_request_latency_seconds", "Time to the last token.")
        lengths = _lengths(engine.info.max_model_len)
        self._prompt_length = self._histogram("vllm:request_prompt_tokens", "Prompt tokens of a choice.", lengths)
        self._length = self._histogram("vllm:request_generation_tokens", "Generated tokens of a choice.", lengths)
        self._finished = self._counter(
            "vllm:request_success", "Finished choices by reason.", "model_name", "finished_reason"
        )
        self._steered = self._counter("tiller:steered_requests", "Requests that named a vector.", "vector")
        self._steered_tokens = self._counter(
            "tiller:steered_tokens", "Generated tokens of choices that a vector steered.", "vector"
        )
        self._scores = None
        if has_probes:
            self._scores = Histogram(
                "tiller:probe_score",
                "Scores of generated tokens.",
                ["vector", "layer"],
                buckets=_SCORES,
                registry=self._registry,
            )
        self._probes: set[tuple[str, int]] = set()
        self._responses = self._counter("tiller:http_responses", "Responses by class of status.", "status")

    def observe_first_token(self, seconds: float) -> None:
        """Record the time to a request's first token."""
        self._first_token.labels(self.model).observe(seconds)

    def observe_inter_token(self, seconds: float) -> None:
        """Record the time between two tokens of a choice."""
        self._inter_token.labels(self.model).observe(seconds)

    def observe_queue_time(self, seconds: float) -> None:
        """Record how long a choice waited for its first step."""
        self._queue_time.labels(self.model).observe(seconds)

    def observe_lengths(self, num_prompt_tokens: int, num_generated_tokens: int) -> None:
        """Record the lengths of a choice that ended by itself."""
        self._prompt_length.labels(self.model).observe(num_prompt_tokens)
        self._length.labels(self.model).observe(num_generated_tokens)

    def observe_request(self, seconds: float) -> None:
        """Record the time to a request's last token."""
        self._whole.labels(self.model).observe(seconds)

    def count_finished(self, reason: str) -> None:
        """Count a choice that ended by itself."""
        self._finished.labels(self.model, reason).inc()

    def count_vector(self, name: str) -> None:
        """Count an accepted request that uses the vector `name`, which exists; "": one that came with the request."""
        self._steered.labels(self._vector_label(name)).inc()

    def count_steered_token(self, name: str) -> None:
        """Count a token generated under the vector `name`, as in `count_vector`."""
        self._steered_tokens.labels(self._vector_label(name)).inc()

    def observe_score(self, name: str, layer: int, score: float) -> None:
        """Record what a probe of the vector `name`, as in `count_vector`, read of a token at `layer`, if this is on."""
        if self._scores is None:
            return
        label = (name or INLINE_VECTORS, layer)
        if label not in self._probes and len(self._probes) >= MAX_VECTOR_LABELS:
            label = (OTHER_VECTORS, -1)
        else:
            self._probes.add(label)
        self._scores.labels(*label).observe(score)

    def count_response(self, status: int) -> None:
        """Count a sent response."""
        self._responses.labels(f"{status // 100}xx").inc()

    def render(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self._registry)

    def _vector_label(self, name: str) -> str:
        if not name:
            return INLINE_VECTORS
        if name not in self._vectors and len(self._vectors) >= MAX_VECTOR_LABELS:
            return OTHER_VECTORS
        self._vectors.add(name)
        return name

    def _histogram(self, name: str, text: str, buckets: Sequence[float] = _SECONDS) -> Histogram:
        return Histogram(name, text, ["model_name"], buckets=buckets, registry=self._registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self._registry)


def _lengths(most: int) -> list[float]:
    """1, 2, 5, 10, … up to `most`."""
    steps = (float(digit * 10**power) for power in range(9) for digit in (1, 2, 5))
    return [step for step in steps if step < most] + [float(most)]
