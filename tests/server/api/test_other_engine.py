"""The whole application over an engine that has nothing in common with ours but the door: the same answers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.engine.engine import EngineSettings
from server.engine.model import LoadedModel
from tests.server.api.serving import CONTEXT, Server, eventually, serving, tiny_module, vector
from tests.server.engine.contract.naive import NaiveEngine

MESSAGES: Any = [{"role": "user", "content": "Say something nice."}]
SAMPLED: dict[str, Any] = {"model": "tiny", "temperature": 0.9, "seed": 5}
STEERING = [
    {"vector": "calm", "scale": 0.7, "positions": "all"},
    {"vector": "bold", "layers": [0, 2], "operation": "ablate", "preserve_norm": True},
]
SCHEMA = {
    "type": "object",
    "properties": {"mood": {"enum": ["calm", "cross"]}, "level": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["mood", "level"],
    "additionalProperties": False,
}
QUESTIONS: Any = [
    {"type": "predicate", "name": "late", "instructions": "The parcel was late."},
    {"type": "choice", "instructions": "What is it about?", "choices": [{"value": "a delivery"}, {"value": "a bill"}]},
]


def naive(model: LoadedModel, settings: EngineSettings) -> contextlib.AbstractContextManager[NaiveEngine]:
    """The naive engine of the same weights, with room for as many requests."""
    return contextlib.closing(NaiveEngine(tiny_module(), model.info, settings.max_queue + settings.max_running))


@dataclass(frozen=True)
class Pair:
    """Two servers that differ in their engines only."""

    ours: Server
    other: Server


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Both with the same vectors."""
    with (
        serving(tmp_path_factory.mktemp("ours")) as ours,
        serving(tmp_path_factory.mktemp("other"), engine_class=naive) as other,
    ):
        for server in (ours, other):
            server.store.put("calm", vector(1))
            server.store.put("bold", vector(2, 0, 1, 2))
        yield Pair(ours, other)


def assert_alike(one: Any, other: Any, path: str = "") -> None:
    """Equal but for ids, times, and what a cache found; numbers within 1e-4."""
    if isinstance(one, dict) and isinstance(other, dict):
        assert one.keys() == other.keys(), path
        for key in one.keys() - {"id", "created", "created_at", "completed_at", "cached_tokens", "cache_write_tokens"}:
            assert_alike(one[key], other[key], f"{path}.{key}")
    elif isinstance(one, list) and isinstance(other, list):
        assert len(one) == len(other), path
        for index, (left, right) in enumerate(zip(one, other, strict=True)):
            assert_alike(left, right, f"{path}.{index}")
    elif isinstance(one, float) and isinstance(other, float):
        assert one == pytest.approx(other, abs=1e-4), path
    else:
        assert one == other, path


def chat(server: Server, **options: Any) -> Any:
    """A chat completion."""
    asked = SAMPLED | {"messages": MESSAGES, "max_tokens": 10} | options
    return server.sdk.chat.completions.create(**asked).model_dump()


def streamed_chat(server: Server, **options: Any) -> Any:
    """The text, log-probabilities and finish reason of each choice of a streamed chat completion, and its usage."""
    asked = SAMPLED | {"messages": MESSAGES, "max_tokens": 10, "stream_options": {"include_usage": True}} | options
    texts: dict[int, str] = {}
    logprobs: dict[int, list[Any]] = {}
    reasons: dict[int, str] = {}
    usage = None
    for chunk in server.sdk.chat.completions.create(stream=True, **asked):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
            if choice.logprobs is not None:
                logprobs.setdefault(choice.index, []).extend(choice.logprobs.model_dump()["content"] or [])
            if choice.finish_reason is not None:
                reasons[choice.index] = choice.finish_reason
    assert usage is not None
    return {"texts": texts, "logprobs": logprobs, "reasons": reasons, "usage": usage.model_dump()}


def completion(server: Server, **options: Any) -> Any:
    """A text completion."""
    asked = SAMPLED | {"prompt": ["The quick", "brown fox"], "max_tokens": 6} | options
    return server.sdk.completions.create(**asked).model_dump()


def response(server: Server, **options: Any) -> Any:
    """A response, without the ids of its parts."""
    asked: dict[str, Any] = {"model": "tiny", "input": "Say something nice.", "max_output_tokens": 8, "temperature": 0}
    return server.sdk.responses.create(**asked | options).model_dump()


def streamed_response(server: Server) -> Any:
    """The types of a streamed response's events, and the response in the last one."""
    asked: dict[str, Any] = {"model": "tiny", "input": "Say it.", "max_output_tokens": 8, "temperature": 0}
    events = list(server.sdk.responses.create(stream=True, **asked))
    last: Any = events[-1]
    return {"types": [event.type for event in events], "response": last.response.model_dump()}


def decision(server: Server, **options: Any) -> Any:
    """Decisions."""
    asked: dict[str, Any] = {"model": "tiny", "input": "The parcel came late.", "questions": QUESTIONS} | options
    return server.sdk.decisions.create(**asked).model_dump()


def refusal(path: str, **body: Any) -> Callable[[Server], Any]:
    """What a request that cannot be served gets."""

    def ask(server: Server) -> Any:
        answer = server.http.post(path, json=body)
        assert answer.status_code >= 400
        return {"status": answer.status_code, "body": answer.json()}

    return ask


EXCHANGES: dict[str, Callable[[Server], Any]] = {
    "a chat": chat,
    "greedy chat, with log-probabilities": lambda server: chat(server, temperature=0, logprobs=True, top_logprobs=3),
    "several answers": lambda server: chat(server, n=3, logprobs=True),
    "a steered chat": lambda server: chat(server, extra_body={"steering": STEERING}),
    "a streamed chat": lambda server: streamed_chat(server, n=2, logprobs=True, top_logprobs=1),
    "a steered, streamed chat": lambda server: streamed_chat(server, extra_body={"steering": STEERING}),
    "a chat that a stop string ends": lambda server: chat(server, max_tokens=60, stop=["a", "e", "1"], temperature=1.3),
    "penalties and biases": lambda server: chat(
        server,
        frequency_penalty=1.0,
        presence_penalty=0.5,
        logit_bias={"70": 4},
        extra_body={"repetition_penalty": 1.3},
    ),
    "an answer that obeys a schema": lambda server: chat(
        server,
        max_tokens=80,
        response_format={"type": "json_schema", "json_schema": {"name": "mood", "strict": True, "schema": SCHEMA}},
        extra_body={"steering": [{"vector": "calm", "parts": ["structured"]}]},
    ),
    "completions": lambda server: completion(server, n=2),
    "completions with echo and log-probabilities": lambda server: completion(
        server, echo=True, logprobs=2, extra_body={"steering": STEERING}
    ),
    "an echo alone": lambda server: completion(server, echo=True, logprobs=1, max_tokens=0),
    "the best of several": lambda server: completion(server, n=1, best_of=3),
    "a response": response,
    "a steered response": lambda server: response(server, extra_body={"steering": STEERING}),
    "a streamed response": streamed_response,
    "decisions": decision,
    "steered decisions": lambda server: decision(server, extra_body={"steering": STEERING}),
    "a model list": lambda server: server.sdk.models.list().model_dump(),
    "health": lambda server: server.http.get("/health").json(),
    "readiness": lambda server: server.http.get("/ready").json(),
    "too long a prompt": refusal("/v1/completions", prompt="x" * CONTEXT, max_tokens=1),
    "a token that does not exist": refusal("/v1/completions", prompt=[1, 9999]),
    "more answers than there is room for": refusal("/v1/completions", prompt=["x"] * 20, n=100),
}


@pytest.mark.parametrize("name", EXCHANGES)
def test_answers_are_the_same(pair: Pair, name: str) -> None:
    assert_alike(EXCHANGES[name](pair.other), EXCHANGES[name](pair.ours))


def test_steering_changes_what_the_other_engine_says(pair: Pair) -> None:
    assert chat(pair.other)["choices"] != chat(pair.other, extra_body={"steering": STEERING})["choices"]


def test_a_client_that_leaves_ends_its_requests(pair: Pair) -> None:
    stream = pair.other.sdk.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=400, stream=True, n=3, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    stream.close()
    eventually(pair.other.is_idle)


def test_metrics_are_those_of_ours_without_pages_and_rows(pair: Pair) -> None:
    def names(server: Server) -> set[str]:
        return {family.name for family in text_string_to_metric_families(server.http.get("/metrics").text)}

    assert names(pair.ours) - names(pair.other) == {
        "vllm:kv_cache_usage_perc",
        "vllm:num_preemptions",
        "tiller:steering_rows_in_use",
        "tiller:recurrent_states_in_use",
        "tiller:kv_pages",
        "tiller:kv_pages_free",
    }
    assert names(pair.other) < names(pair.ours)


def test_a_full_queue_and_a_draining_engine_are_told_as_ours_are(tmp_path: Path) -> None:
    limits = EngineSettings(num_pages=400, page_size=8, max_running=1, max_queue=0)
    with serving(tmp_path, engine_class=naive, engine_settings=limits) as server:
        asked: dict[str, Any] = {"model": "tiny", "prompt": "x", "extra_body": {"ignore_eos": True}}
        with server.sdk.completions.create(max_tokens=400, stream=True, **asked) as stream:
            next(iter(stream))
            with pytest.raises(openai.RateLimitError) as full:
                server.sdk.completions.create(max_tokens=1, **asked)
            assert (full.value.code, full.value.response.headers["retry-after"]) == ("queue_full", "1")
        eventually(server.is_idle)
        assert server.engine.drain(20)
        with pytest.raises(openai.InternalServerError) as draining:
            server.sdk.completions.create(max_tokens=1, **asked)
        assert (draining.value.status_code, draining.value.code) == (503, "shutting_down")
        assert draining.value.response.headers["retry-after"] == "5"
        assert server.http.get("/ready").status_code == 503
