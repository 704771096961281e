"""What Prometheus reads of requests agrees with what their answers say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.api.http.metrics import MAX_VECTOR_LABELS, OTHER_VECTORS, Metrics
from server.engine.engine import BatchingEngine, EngineSettings
from tests.server.api.serving import CONTEXT, Server, eventually, serving, tiny_model, vector
from tests.shared_files import ROOT


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Server]:
    """A server that nobody has asked anything."""
    with serving(tmp_path) as running:
        running.store.put("calm", vector(1))
        running.store.put("bold", vector(2, 0, 1, 2))
        yield running


def samples(server: Server) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample, by its name and its labels but for the model's name."""
    families = text_string_to_metric_families(server.http.get("/metrics").text)
    return {
        (sample.name, frozenset((name, label) for name, label in sample.labels.items() if name != "model_name")): (
            sample.value
        )
        for family in families
        for sample in family.samples
    }


def value(server: Server, name: str, **labels: str) -> float:
    """One sample; 0 when it is not there."""
    return samples(server).get((name, frozenset(labels.items())), 0.0)


def complete(server: Server, **body: Any) -> dict[str, Any]:
    """A completion's usage."""
    response = server.http.post("/v1/completions", json={"prompt": "abc", "ignore_eos": True, **body})
    assert response.status_code == 200, response.text
    usage: dict[str, Any] = response.json()["usage"]
    return usage


def test_each_token_but_a_choice_s_first_has_a_latency(fresh: Server) -> None:
    complete(fresh, max_tokens=5, n=2)
    complete(fresh, max_tokens=1)
    assert value(fresh, "vllm:inter_token_latency_seconds_count") == 2 * 4
    assert value(fresh, "vllm:time_to_first_token_seconds_count") == 2
    assert (
        0
        < value(fresh, "vllm:inter_token_latency_seconds_sum")
        < value(fresh, "vllm:e2e_request_latency_seconds_sum") * 2
    )


def test_lengths_and_waits_are_counted_by_choice(fresh: Server) -> None:
    complete(fresh, max_tokens=5, n=2)
    complete(fresh, max_tokens=9, prompt="abcdef")
    assert value(fresh, "vllm:request_prompt_tokens_sum") == 3 + 3 + 6
    assert value(fresh, "vllm:request_generation_tokens_sum") == 5 + 5 + 9
    for name in ("request_prompt_tokens", "request_generation_tokens", "request_queue_time_seconds"):
        assert value(fresh, f"vllm:{name}_count") == 3
    assert value(fresh, "vllm:request_prompt_tokens_bucket", le="5.0") == 2
    assert value(fresh, "vllm:request_prompt_tokens_bucket", le=str(float(CONTEXT))) == 3


class HeldEngine(BatchingEngine):
    """Does not begin by itself, so that a test knows what waits."""

    def start(self) -> HeldEngine:
        """Nothing yet; `BatchingEngine.start` begins."""
        return self


def test_the_time_in_the_queue_is_the_wait_for_the_first_step(tmp_path: Path) -> None:
    with serving(tmp_path, engine_class=HeldEngine, stream_keep_alive=0.3) as server:
        body = {"prompt": "abc", "max_tokens": 1, "stream": True}
        with server.http.stream("POST", "/v1/completions", json=body) as response:
            lines = response.iter_lines()
            while next(lines) != ": keep-alive":
                pass  # 0.3 s have passed
            BatchingEngine.start(server.engine)
            list(lines)
        assert value(server, "vllm:request_queue_time_seconds_count") == 1
        assert value(server, "vllm:request_queue_time_seconds_sum") >= 0.25


def test_steered_tokens_are_counted_by_vector(fresh: Server) -> None:
    complete(fresh, max_tokens=4, n=2, steering=[{"vector": "calm"}])
    complete(fresh, max_tokens=3, steering=[{"vector": "calm"}, {"vector": "bold"}, {"vector": "calm", "scale": 2}])
    complete(fresh, max_tokens=7, steering=[{"vector": "bold", "scale": 0}])
    complete(fresh, max_tokens=7)
    assert value(fresh, "tiller:steered_tokens_total", vector="calm") == 8 + 3
    assert value(fresh, "tiller:steered_tokens_total", vector="bold") == 3


def test_the_tokens_of_who_left_count_as_well(fresh: Server) -> None:
    body = {"prompt": "a", "max_tokens": 500, "ignore_eos": True, "stream": True, "steering": [{"vector": "calm"}]}
    with fresh.http.stream("POST", "/v1/completions", json=body) as response:
        lines = response.iter_lines()
        for _ in range(12):
            next(lines)
    eventually(fresh.is_idle)
    assert value(fresh, "tiller:steered_tokens_total", vector="calm") >= 4
    assert value(fresh, "vllm:request_generation_tokens_count") == 0


def test_labels_of_steered_tokens_are_bounded() -> None:
    engine = BatchingEngine(tiny_model(), EngineSettings(num_pages=64, page_size=8))
    metrics = Metrics(engine)
    for number in range(2 * MAX_VECTOR_LABELS):
        metrics.count_steered_token(f"v{number}")
    engine.close()
    lines = re.findall(
        r'^tiller:steered_tokens_total\{vector="(\w+)"\} (\S+)$', metrics.render().decode(), re.MULTILINE
    )
    assert len(lines) == MAX_VECTOR_LABELS + 1
    assert (OTHER_VECTORS, str(float(MAX_VECTOR_LABELS))) in lines


def test_scores_are_measured_only_if_asked_for_and_their_labels_are_bounded() -> None:
    engine = BatchingEngine(tiny_model(), EngineSettings(num_pages=64, page_size=8))
    for has_probes in (False, True):
        metrics = Metrics(engine, has_probes=has_probes)
        for number in range(2 * MAX_VECTOR_LABELS):
            metrics.observe_score(f"v{number // 2}" if number % 20 else "", number % 2, 0.45)
        text = metrics.render().decode()
        counts = re.findall(r'^tiller:probe_score_count\{layer="(-?\d+)",vector="(\w+)"\} (\S+)$', text, re.MULTILINE)
        if not has_probes:
            assert not counts
            continue
        assert len(counts) == MAX_VECTOR_LABELS + 1
        assert sum(float(count) for *_, count in counts) == 2 * MAX_VECTOR_LABELS
        assert {"_inline", OTHER_VECTORS} <= {name for _, name, _ in counts}
        low, high = (re.search(rf'bucket{{layer="1",le="{edge}",vector="v0"}} (\S+)', text) for edge in ("0.4", "0.5"))
        assert low is not None
        assert high is not None
        assert (low[1], high[1]) == ("0.0", "1.0")
    engine.close()


def test_the_scores_of_an_answer_reach_the_histogram(tmp_path: Path) -> None:
    with serving(tmp_path, probe_metrics=True) as server:
        server.store.put("calm", vector(1))
        complete(server, max_tokens=3, ignore_eos=True, probes=[{"vector": "calm"}])
        assert value(server, "tiller:probe_score_count", vector="calm", layer="1") == 3


def test_the_page_for_operators_lists_what_there_is(fresh: Server) -> None:
    complete(fresh, max_tokens=1, steering=[{"vector": "calm"}])
    page = (ROOT / "docs" / "operations.md").read_text()
    listed = set(re.findall(r"^\| `((?:vllm|tiller):\w+)`", page, re.MULTILINE))
    families = {family.name for family in text_string_to_metric_families(fresh.http.get("/metrics").text)}
    assert listed == {name for name in families if not name.endswith("_created")}
