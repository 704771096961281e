"""Answers that are far larger than their requests: bounded, and made where no stream has to wait for them."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.responses import JSONResponse

from server.api.generation.choices import MAX_LOGPROBS
from server.api.http import json_response
from server.api.http.json_response import built_response, written
from server.api.http.objects import ErrorDetails
from tests.server.api.serving import CONTEXT, Server, serving

HELLO: Any = [{"role": "user", "content": "hi"}]
CHAT: dict[str, Any] = {"messages": HELLO, "ignore_eos": True, "logprobs": True, "top_logprobs": 20}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("data")) as running:
        yield running


TOO_MANY: list[tuple[str, dict[str, Any], str]] = [
    ("/v1/chat/completions", CHAT | {"n": 128, "max_tokens": 100}, "top_logprobs"),
    ("/v1/chat/completions", CHAT | {"n": 128, "max_tokens": 100, "stream": True}, "top_logprobs"),
    ("/v1/chat/completions", CHAT | {"n": 128}, "top_logprobs"),
    ("/v1/completions", {"prompt": ["a"] * 128, "max_tokens": 100, "logprobs": 20}, "logprobs"),
    ("/v1/completions", {"prompt": "a", "best_of": 128, "max_tokens": 100, "logprobs": 20}, "logprobs"),
    ("/v1/completions", {"prompt": ["a" * 100] * 128, "max_tokens": 0, "logprobs": 20, "echo": True}, "logprobs"),
]


@pytest.mark.parametrize(("path", "body", "param"), TOO_MANY)
def test_more_logprobs_than_an_answer_may_have_are_refused(
    server: Server, path: str, body: dict[str, Any], param: str
) -> None:
    before = server.engine.stats().total_requests
    refused = server.http.post(path, json=body)
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["param"]) == (400, "invalid_value", param)
    assert str(MAX_LOGPROBS) in error["message"]
    assert server.engine.stats().total_requests == before


def test_one_choice_may_fill_the_context(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.api.generation.choices.MAX_LOGPROBS", 100)
    body = CHAT | {"max_tokens": CONTEXT // 4}
    assert server.http.post("/v1/chat/completions", json=body).status_code == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", CHAT | {"n": 3, "max_tokens": 70, "seed": 1}),
        ("/v1/completions", {"prompt": ["a b", "c"], "max_tokens": 70, "logprobs": 5, "echo": True, "seed": 1}),
        ("/v1/responses", {"input": "a", "max_output_tokens": 70, "top_logprobs": 5, "temperature": 0, "store": False,
                           "include": ["message.output_text.logprobs"]}),
    ],
)  # fmt: skip
def test_a_large_answer_is_the_same_as_a_small_one(
    server: Server, monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any]
) -> None:
    answers = []
    for most in (0, 1 << 30):
        monkeypatch.setattr(json_response, "_MOST_ON_LOOP", most)
        response = server.http.post(path, json=body)
        assert response.status_code == 200, response.text
        assert response.headers["content-type"] == "application/json"
        answers.append(without_identity(response.json()))
    assert answers[0] == answers[1]


def without_identity(answer: Any) -> Any:
    """The answer without ids and times, and without numbers that depend on what else is in a batch."""
    if isinstance(answer, list):
        return [without_identity(each) for each in answer]
    if not isinstance(answer, dict):
        return "a number" if isinstance(answer, float) else answer
    told = {"id", "created", "created_at", "completed_at", "cached_tokens", "cache_write_tokens"}
    return {name: without_identity(value) for name, value in answer.items() if name not in told}


VALUES: list[Any] = [
    {}, [], None, {"a": []}, {"a": {}}, [[]], {"é\n": ["\u2028", 1.5, True]},
    {"choices": [{"b": list(range(200))}] * 3},
    {"a": [{"b": {"c": [{"d": {"e": [{"f": [{"g": [1, {"h": 2}]}] * 130}]}}]}}] * 70},
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES)
def test_what_is_written_in_pieces_is_what_is_written_at_once(value: Any) -> None:
    assert "".join(written(value)).encode() == JSONResponse(value).body


def test_no_piece_of_a_large_answer_is_large() -> None:
    token = {"token": "x", "top_logprobs": [{"token": "y", "logprob": -1.0, "bytes": [1]}] * 20}
    choice = {"index": 0, "logprobs": {"content": [token] * 300}}
    value = {"id": "a", "choices": [choice] * 3}
    assert max(map(len, written(value))) < len(json.dumps(token)) * 70


def test_only_small_answers_are_made_on_the_event_loop() -> None:
    def build() -> ErrorDetails:
        threads.append(threading.current_thread())
        return {"message": "m", "type": "t", "param": None, "code": None}

    threads: list[threading.Thread] = []
    for size in (10, 1 << 20):
        asyncio.run(built_response(build, size))
    assert threads[0] is threading.current_thread()
    assert threads[1] is not threading.current_thread()
