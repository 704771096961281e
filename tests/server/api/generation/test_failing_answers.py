"""Answers that the model cannot give: the client learns why, and whether another try would help."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch

from server.api.http.engine_errors import from_engine_error
from server.engine.grammar import GrammarFailed
from server.engine.model import prepare_model
from tests.server.api.responses.shapes import events_of
from tests.server.api.serving import MODEL, Server, byte_tokenizer, serving, tiny_module, vector

TOO_STRONG = [{"vector": "loud", "scale": 5e36}] * 16
"""Their sum is infinite in float32."""
CHAT = [{"role": "user", "content": "hello"}]
QUESTION = {"type": "predicate", "name": "warm", "instructions": "Is it warm?"}
ROUTES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": CHAT, "max_tokens": 4},
    "/v1/completions": {"prompt": "hello", "max_tokens": 4},
    "/v1/responses": {"input": "hello", "max_output_tokens": 4},
    "/v1/decisions": {"input": "hello", "questions": [QUESTION]},
}
STREAMING = [path for path in ROUTES if path != "/v1/decisions"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("loud")) as server:
        server.store.put("loud", vector(1))
        yield server


@pytest.mark.parametrize("path", ROUTES)
def test_steering_that_is_too_strong_is_said_to_be(server: Server, path: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        response = server.http.post(path, json=ROUTES[path] | {"steering": TOO_STRONG})
    assert response.status_code == 422, response.text
    error = response.json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", "output_not_finite", "steering")
    assert "a smaller scale may help" in error["message"]
    assert any("a smaller scale may help" in record.message for record in caplog.records)
    assert server.http.post(path, json=ROUTES[path]).status_code == 200


@pytest.mark.parametrize("path", STREAMING)
def test_a_stream_ends_with_the_reason(server: Server, path: str) -> None:
    body = ROUTES[path] | {"steering": TOO_STRONG, "stream": True}
    with server.http.stream("POST", path, json=body) as response:
        text = response.read().decode()
    if path == "/v1/responses":
        last = events_of(text)[-1]
        assert last["type"] == "response.failed"
        error = last["response"]["error"]
        assert (error["code"], error["type"]) == ("invalid_prompt", "invalid_request_error")
    else:
        error = json.loads(text.strip().rpartition("data: ")[2])["error"]
        assert error["code"] == "output_not_finite"
    assert "a smaller scale may help" in error["message"]


def test_the_client_does_not_try_it_again(server: Server) -> None:
    before = server.engine.stats().total_requests
    client = server.sdk.with_options(max_retries=2)
    with pytest.raises(openai.UnprocessableEntityError, match="a smaller scale may help"):
        client.chat.completions.create(model=MODEL, messages=CHAT, extra_body={"steering": TOO_STRONG})  # type: ignore[arg-type]
    assert server.engine.stats().total_requests == before + 1


def test_a_model_that_overflows_by_itself_is_not_blamed_on_steering(tmp_path: Path) -> None:
    model = prepare_model(tiny_module(), model_id=MODEL)
    with torch.no_grad():
        model.module.get_submodule("model.layers.0.mlp.down_proj").weight.fill_(torch.inf)  # type: ignore[operator]
    with serving(tmp_path, model=model, tokenizer=byte_tokenizer()) as server:
        response = server.http.post("/v1/completions", json=ROUTES["/v1/completions"])
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (500, "output_not_finite", None)
    assert "nothing steers it" in error["message"]


def test_a_constraint_that_fails_gives_its_own_reason() -> None:
    error = from_engine_error(GrammarFailed("the constraint failed: it has grown too large"))
    assert (error.status, error.code) == (422, "constraint_failed")
    assert error.message == "the constraint failed: it has grown too large"
