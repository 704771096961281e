"""Clients that leave, servers that drain or are full, failures within a stream, and what operators see."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from server import __version__
from server.api.http.engine_errors import from_engine_error
from server.api.http.metrics import MAX_VECTOR_LABELS, Metrics
from server.engine.engine import BatchingEngine, EngineSettings
from server.engine.errors import NoTokenAllowed
from server.engine.request import EngineRequest, Generate
from tests.server.api.failing import FailingEngine
from tests.server.api.serving import Server, eventually, serving, tiny_model, vector

LONG: dict[str, Any] = {
    "messages": [{"role": "user", "content": "hello"}],
    "max_tokens": 480,
    "ignore_eos": True,
}


def sample(server: Server, name: str) -> float:
    """The value of a metric, summed over its labels."""
    lines = server.http.get("/metrics").text.splitlines()
    values = [line.rpartition(" ")[2] for line in lines if line.startswith((f"{name}{{", f"{name} "))]
    assert values, name
    return sum(map(float, values))


def test_leaving_a_stream_aborts_all_its_choices(server: Server) -> None:
    generated = server.engine.stats().total_generated_tokens
    with server.http.stream("POST", "/v1/chat/completions", json=LONG | {"stream": True, "n": 4}) as response:
        lines = response.iter_lines()
        for _ in range(12):
            next(lines)
        eventually(lambda: server.engine.stats().num_running == 4)
    eventually(server.is_idle)
    assert server.engine.stats().total_generated_tokens - generated < 4 * 480


def test_leaving_before_the_answer_aborts_it(server: Server) -> None:
    generated = server.engine.stats().total_generated_tokens
    with pytest.raises(httpx.ReadTimeout):
        server.http.post(
            "/v1/completions", json={"prompt": ["a", "b"], "max_tokens": 500, "ignore_eos": True, "n": 4}, timeout=0.3
        )
    eventually(server.is_idle)
    assert server.engine.stats().total_generated_tokens - generated < 8 * 500


class HeldEngine(BatchingEngine):
    """Does not begin by itself, so that a test knows what waits."""

    def start(self) -> HeldEngine:
        """Nothing yet; `BatchingEngine.start` begins."""
        return self


def test_a_full_queue_is_429_with_retry_after(tmp_path: Path) -> None:
    limits = EngineSettings(num_pages=400, page_size=8, max_running=2, max_batch_tokens=64, max_queue=1)
    with serving(tmp_path, engine_settings=limits, engine_class=HeldEngine) as server:
        for name in ("first", "second"):
            server.engine.submit(EngineRequest(name, (5, 6), Generate(3)), lambda output: None)
        with pytest.raises(openai.RateLimitError) as caught:
            server.sdk.chat.completions.create(model="tiny", messages=LONG["messages"], n=2)
        assert caught.value.code == "queue_full"
        assert caught.value.response.headers["retry-after"]
        BatchingEngine.start(server.engine)
        eventually(lambda: server.engine.stats().total_requests == 3)
        eventually(server.is_idle)
        assert server.engine.stats().total_generated_tokens <= 6  # the choice that had been taken was aborted


def test_more_answers_than_the_server_can_ever_take_are_refused(tmp_path: Path) -> None:
    limits = EngineSettings(num_pages=400, page_size=8, max_running=2, max_batch_tokens=64, max_queue=1)
    with serving(tmp_path, engine_settings=limits) as server, pytest.raises(openai.BadRequestError) as caught:
        server.sdk.chat.completions.create(model="tiny", messages=LONG["messages"], n=4)
    assert caught.value.param == "n"


def test_a_request_whose_every_token_would_end_it_is_the_clients_fault(server: Server) -> None:
    stops = list(range(server.engine.info.vocab_size))
    body = {"prompt": "a", "max_tokens": 4, "min_tokens": 1, "stop_token_ids": stops}
    response = server.http.post("/v1/completions", json=body)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, "min_tokens", "invalid_value")
    assert server.http.post("/v1/completions", json=body | {"min_tokens": 0}).status_code == 200
    late = from_engine_error(NoTokenAllowed())
    assert (late.status, late.code) == (422, "no_token_allowed")


def test_a_draining_server_finishes_and_refuses(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        assert server.http.get("/ready").status_code == 200
        with server.http.stream("POST", "/v1/chat/completions", json=LONG | {"stream": True}) as response:
            lines = response.iter_lines()
            next(lines)
            drained: list[bool] = []
            drain = threading.Thread(target=lambda: drained.append(server.engine.drain(60)))
            drain.start()
            eventually(lambda: not server.engine.is_accepting)
            assert server.http.get("/health").status_code == 200
            assert server.http.get("/ready").status_code == 503
            with pytest.raises(openai.InternalServerError) as caught:
                server.sdk.chat.completions.create(model="tiny", messages=LONG["messages"])
            assert (caught.value.status_code, caught.value.code) == (503, "shutting_down")
            assert [line for line in lines if line][-1] == "data: [DONE]"
        drain.join()
        assert drained == [True]


@pytest.fixture
def failing(tmp_path: Path) -> Iterator[Server]:
    """A server whose engine fails every request."""
    with serving(tmp_path, engine_class=FailingEngine) as server:
        yield server


def test_a_failure_within_a_stream_is_an_event_and_the_end(failing: Server) -> None:
    with failing.http.stream("POST", "/v1/chat/completions", json=LONG | {"stream": True}) as response:
        assert response.status_code == 200
        events = [line for line in response.iter_lines() if line]
    assert '"error"' in events[-1]
    assert "secret" not in "".join(events)
    assert "data: [DONE]" not in events
    stream = failing.sdk.chat.completions.create(model="tiny", messages=LONG["messages"], stream=True)
    with pytest.raises(openai.APIError):
        list(stream)


def test_a_failure_before_the_answer_is_a_500_without_details(failing: Server) -> None:
    response = failing.http.post("/v1/chat/completions", json=LONG)
    assert (response.status_code, response.json()["error"]["code"]) == (500, "engine_failure")
    assert "secret" not in response.text


def test_the_unexpected_is_logged_with_its_id_and_not_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with serving(tmp_path) as server:
        server.store.put("doomed", vector(1))
        server.store.close()
        with caplog.at_level(logging.ERROR):
            response = server.http.delete("/v1/steering/vectors/doomed", headers={"x-request-id": "mine-7"})
        assert (response.status_code, response.headers["x-request-id"]) == (500, "mine-7")
        assert response.json()["error"]["type"] == "server_error"
        assert str(tmp_path) not in response.text
        eventually(lambda: any(getattr(record, "request_id", None) == "mine-7" for record in caplog.records))


def test_a_damaged_vector_is_refused_in_words_and_others_are_served(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(tmp_path) as server:
        revision = server.store.put("doomed", vector(1))[0].revision
        server.store.put("whole", vector(2))
    damaged = tmp_path / "vectors" / "objects" / f"{revision}.safetensors"
    damaged.write_bytes(bytes(damaged.stat().st_size))
    with serving(tmp_path) as server, caplog.at_level(logging.ERROR):
        response = server.http.post("/v1/chat/completions", json=LONG | {"model": "tiny+doomed"})
        whole = server.http.post("/v1/chat/completions", json=LONG | {"model": "tiny+whole", "max_tokens": 1})
    error = response.json()["error"]
    assert (response.status_code, error["code"], whole.status_code) == (503, "stored_data_damaged", 200)
    assert f"vector 'doomed', revision {revision[:12]}: vectors/objects/{damaged.name} is damaged" in error["message"]
    assert str(tmp_path) not in response.text
    assert error["message"] in caplog.text


def test_a_path_cannot_forge_log_lines(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "tiller.access"):
        server.http.get("/a%0Aforged%20line", headers={"x-request-id": "forger"})
        eventually(lambda: any("forger" in record.getMessage() for record in caplog.records))
    assert all("\n" not in record.getMessage() for record in caplog.records)


def test_every_response_has_a_request_id(server: Server) -> None:
    assert server.http.get("/health", headers={"x-request-id": "a.b-1"}).headers["x-request-id"] == "a.b-1"
    fresh = [server.http.get("/health", headers={"x-request-id": "no spaces"}).headers["x-request-id"] for _ in "ab"]
    assert len(set(fresh)) == 2
    assert "no spaces" not in fresh


def test_metrics_follow_the_work(server: Server) -> None:
    names = ("vllm:prompt_tokens_total", "vllm:generation_tokens_total", "vllm:request_success_total")
    server.sdk.chat.completions.create(model="tiny+calm", messages=LONG["messages"], max_tokens=3)
    before = [sample(server, name) for name in names]
    steered = sample(server, "tiller:steered_requests_total")
    answer = server.sdk.chat.completions.create(
        model="tiny+calm", messages=LONG["messages"], max_tokens=5, n=2, extra_body={"ignore_eos": True}
    )
    assert answer.usage is not None
    after = [sample(server, name) for name in names]
    assert [new - old for new, old in zip(after, before, strict=True)] == [2 * answer.usage.prompt_tokens, 10, 2]
    assert sample(server, "tiller:steered_requests_total") == steered + 1
    assert sample(server, "vllm:time_to_first_token_seconds_count") >= 2
    assert sample(server, "vllm:e2e_request_latency_seconds_count") >= 2
    for gauge in ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"):
        eventually(lambda gauge=gauge: sample(server, gauge) == 0)  # type: ignore[misc]
    for total in ("vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total", "tiller:http_responses_total"):
        assert sample(server, total) > 0


def test_labels_of_vectors_are_bounded() -> None:
    settings = EngineSettings(num_pages=64, page_size=8)
    engine = BatchingEngine(tiny_model(), settings)
    metrics = Metrics(engine)
    for number in range(3 * MAX_VECTOR_LABELS):
        metrics.count_vector(f"v{number}")
    engine.close()
    lines = [
        line for line in metrics.render().decode().splitlines() if line.startswith("tiller:steered_requests_total")
    ]
    assert len(lines) == MAX_VECTOR_LABELS + 1
    assert any(line.endswith(f" {float(2 * MAX_VECTOR_LABELS)}") for line in lines)


def test_small_things(server: Server) -> None:
    assert server.http.get("/version").json() == {"version": __version__}
    assert server.http.get("/health").json() == {"status": "ok"}
