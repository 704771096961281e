"""Responses that cannot be finished: after the first byte the failure is an event, before it an ordinary error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import pytest

from server.engine.engine import BatchingEngine
from tests.server.api.failing import FailingEngine
from tests.server.api.responses.shapes import events_of
from tests.server.api.serving import Server, eventually, serving

BODY: dict[str, Any] = {"input": "hello", "max_output_tokens": 40, "temperature": 0, "store": True}


def failed(server: Server, body: dict[str, Any]) -> dict[str, Any]:
    """The response of a stream whose last event says that it failed."""
    with server.http.stream("POST", "/v1/responses", json=body | {"stream": True}) as response:
        assert response.status_code == 200
        events = events_of(response.read().decode())
    assert [event["type"] for event in events if event["type"] == "response.failed"] == [events[-1]["type"]]
    answer: dict[str, Any] = events[-1]["response"]
    assert (answer["status"], answer["error"]["code"]) == ("failed", "server_error")
    assert [item["status"] for item in answer["output"]] == ["incomplete"] * len(answer["output"])
    with pytest.raises(openai.NotFoundError):
        server.sdk.responses.retrieve(answer["id"])
    return answer


def test_an_engine_that_fails_ends_the_stream_with_an_event(tmp_path: Path) -> None:
    with serving(tmp_path, engine_class=FailingEngine) as server:
        answer = failed(server, BODY)
        assert len(answer["output"]) == 1
        assert answer["error"]["message"] == "the engine failed while it processed this request"
        response = server.http.post("/v1/responses", json=BODY)
        assert (response.status_code, response.json()["error"]["code"]) == (500, "engine_failure")


class HeldEngine(BatchingEngine):
    """Does not begin by itself, so that nothing is ever answered in time."""

    def start(self) -> HeldEngine:
        """Nothing yet; `BatchingEngine.start` begins."""
        return self


def test_time_that_is_up_ends_the_stream_with_an_event(tmp_path: Path) -> None:
    with serving(tmp_path, engine_class=HeldEngine, request_timeout=0.2) as server:
        assert "time limit of 0.2 s" in failed(server, BODY)["error"]["message"]
        assert server.http.post("/v1/responses", json=BODY).status_code == 504
        BatchingEngine.start(server.engine)
        eventually(server.is_idle)
        assert server.engine.stats().total_generated_tokens == 0


def test_a_response_for_which_the_disk_has_no_room(tmp_path: Path) -> None:
    """The database may hold so many pages and no more, which SQLite reports like a full disk."""
    with serving(tmp_path) as server:
        assert server.responses is not None
        body = BODY | {"max_output_tokens": 2, "input": "x" * 300, "metadata": {"a": "y" * 500}}
        with server.responses.transaction() as connection:
            connection.execute("PRAGMA max_page_count = 1")
            connection.execute("UPDATE own_time SET seconds = seconds")
        replies = [server.http.post("/v1/responses", json=body) for _ in range(30)]
        refused = next(reply for reply in replies if reply.status_code != 200)
        assert (refused.status_code, refused.json()["error"]["code"]) == (507, "disk_full")
        assert "the disk that holds the database of responses is full" in refused.json()["error"]["message"]
        assert "database of responses is full" in failed(server, body)["error"]["message"]
        with server.responses.transaction() as connection:
            connection.execute("PRAGMA max_page_count = 100000")
        assert server.http.post("/v1/responses", json=body).status_code == 200


def test_a_response_that_cannot_be_kept_is_not_said_to_be_complete(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        assert server.responses is not None
        server.responses.close()
        body = BODY | {"max_output_tokens": 2}
        with server.http.stream("POST", "/v1/responses", json=body | {"stream": True}) as stream:
            events = events_of(stream.read().decode())
        assert events[-1]["type"] == "response.failed"
        assert events[-1]["response"]["error"]["message"] == "the server failed; the details are in its log"
        response = server.http.post("/v1/responses", json=body)
        assert (response.status_code, response.json()["error"]["code"]) == (500, "internal_error")
