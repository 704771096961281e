"""Requests that take too long end with an error that says so, and give back what they held."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from server.engine.engine import BatchingEngine
from tests.server.api.serving import Server, eventually, serving

HELLO: Any = [{"role": "user", "content": "hi"}]
LONG: dict[str, Any] = {"messages": HELLO, "max_tokens": 480, "ignore_eos": True, "n": 4}


class HeldEngine(BatchingEngine):
    """Does not begin by itself, so that nothing is ever answered in time."""

    def start(self) -> HeldEngine:
        """Nothing yet; `BatchingEngine.start` begins."""
        return self


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Server]:
    """A server that gives a request 0.2 s, and an engine that takes longer."""
    with serving(tmp_path, engine_class=HeldEngine, request_timeout=0.2) as server:
        yield server


def test_an_answer_that_takes_too_long_is_504_and_aborted(held: Server) -> None:
    for path, body in (("/v1/chat/completions", LONG), ("/v1/completions", {"prompt": ["a", "b"], "max_tokens": 500})):
        response = held.http.post(path, json=body)
        error = response.json()["error"]
        assert (response.status_code, error["type"], error["code"]) == (504, "server_error", "request_timeout")
        assert response.headers["x-request-id"]
    BatchingEngine.start(held.engine)
    eventually(held.is_idle)
    assert held.engine.stats().total_generated_tokens == 0


def test_openai_s_client_does_not_send_it_again(held: Server) -> None:
    client = held.sdk.with_options(max_retries=2)
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model="tiny", messages=HELLO)
    assert caught.value.status_code == 504
    lines = held.http.get("/metrics", headers={"connection": "close"}).text.splitlines()
    assert 'tiller:http_responses_total{status="5xx"} 1.0' in lines


def test_a_stream_that_takes_too_long_ends_with_an_error_event(held: Server) -> None:
    with held.http.stream("POST", "/v1/chat/completions", json=LONG | {"stream": True}) as response:
        assert response.status_code == 200
        events = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert [json.loads(event).get("error", {}).get("code") for event in events] == [None] * 4 + ["request_timeout"]
    with pytest.raises(openai.APIError, match=r"time limit of 0\.2 s"):
        list(held.sdk.chat.completions.create(model="tiny", messages=HELLO, stream=True))
    BatchingEngine.start(held.engine)
    eventually(held.is_idle)
    assert held.engine.stats().total_generated_tokens == 0


def test_what_is_quick_enough_is_answered(tmp_path: Path) -> None:
    with serving(tmp_path, request_timeout=60, body_timeout=60) as server:
        answer = server.sdk.chat.completions.create(model="tiny", messages=HELLO, max_tokens=3)
        assert answer.usage is not None
        assert answer.usage.completion_tokens <= 3


def test_a_body_that_does_not_come_is_408_and_the_connection_closed(tmp_path: Path) -> None:
    head = "{} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {}\r\nContent-Length: 1000\r\n\r\n"
    bodies = (
        ("POST /v1/chat/completions", "application/json", b'{"messages"'),
        ("PUT /v1/steering/vectors/late", "application/octet-stream", b"x"),
        ("PUT /v1/steering/vectors/late", "multipart/form-data; boundary=b", b"--b\r\n"),
    )
    with serving(tmp_path, body_timeout=0.2) as server:
        host, _, port = server.url.removeprefix("http://").partition(":")
        for request, kind, body in bodies:
            with socket.create_connection((host, int(port)), timeout=60) as connection:
                connection.sendall(head.format(request, kind).encode() + body)
                answer = b"".join(iter(lambda: connection.recv(65536), b""))
            assert answer.startswith(b"HTTP/1.1 408 "), answer
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "request_timeout"
        assert server.store.names() == []


def test_a_large_body_may_take_its_time(tmp_path: Path) -> None:
    """What has arrived buys time: 400 KiB buy 50 s, in which the rest comes."""
    prompt = "a" * 400 * 1024
    body = json.dumps({"prompt": prompt, "max_tokens": 1}).encode()
    with serving(tmp_path, body_timeout=0.2) as server:
        host, _, port = server.url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
            connection.sendall(head.encode() + b"Connection: close\r\n\r\n" + body[:-1])
            connection.settimeout(0.6)
            with pytest.raises(TimeoutError):  # three times as long as an empty body may take
                connection.recv(1)
            connection.settimeout(60)
            connection.sendall(body[-1:])
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert b"context_length_exceeded" in answer
