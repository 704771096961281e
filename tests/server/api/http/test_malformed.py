"""Malformed requests: each is a 4xx whose envelope names the field, none is a 500, none reaches the engine."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.api.serving import Server, eventually

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
HELLO = {"role": "user", "content": "hi"}


def steer(**entry: Any) -> dict[str, Any]:
    """A chat whose steering has one entry."""
    return {"messages": [HELLO], "steering": [{"vector": "calm"} | entry]}


def chat(**fields: Any) -> dict[str, Any]:
    """A chat with `fields`."""
    return {"messages": [HELLO]} | fields


BODIES: list[tuple[str, Any, str]] = [
    (CHAT, {}, "messages"),
    (CHAT, chat(messages=[]), "messages"),
    (CHAT, chat(messages="hi"), "messages"),
    (CHAT, chat(messages=[{"role": "user"}]), "messages.0.content"),
    (CHAT, chat(messages=[{"content": "hi"}]), "messages.0.role"),
    (CHAT, chat(messages=[{"role": "tool", "content": "hi"}]), "messages.0.tool_call_id"),
    (CHAT, chat(messages=[{"role": "user", "content": "hi", "tool_call_id": "x"}]), "messages.0.tool_call_id"),
    (
        CHAT,
        chat(messages=[{"role": "user", "content": "hi", "reasoning_content": "x"}]),
        "messages.0.reasoning_content",
    ),
    (CHAT, chat(messages=[HELLO, {"role": "user", "content": 3}]), "messages.1.content"),
    (CHAT, chat(messages=[{"role": "user", "content": [{"type": "image_url"}]}]), "messages.0.content.0"),
    (CHAT, chat(messages=[{"role": "user", "content": [{"type": "text"}]}]), "messages.0.content.0"),
    (CHAT, chat(messages=[{"role": "user", "content": "hi", "mood": "x"}]), "messages.0.mood"),
    (CHAT, chat(messages=[{"role": "assistant", "content": "x", "tool_calls": [1]}]), "messages.0.tool_calls.0"),
    (CHAT, chat(model=3), "model"),
    (CHAT, chat(model="gpt"), "model"),
    (CHAT, chat(model="tiny+"), "model"),
    (CHAT, chat(model="tiny+calm:nan"), "model"),
    (CHAT, chat(model="tiny+calm:1e999"), "model"),
    (CHAT, chat(model="tiny+calm@12:1"), "model"),
    (CHAT, chat(model="tiny+../x"), "model"),
    (CHAT, chat(model="tiny+calm:1e38"), "model"),
    (CHAT, chat(model="tiny" + "+calm" * 65), "model"),
    (CHAT, chat(model="tiny+calm:1." + "0" * 5000), "model"),
    (CHAT, chat(temperature=-0.1), "temperature"),
    (CHAT, chat(temperature=2.5), "temperature"),
    (CHAT, chat(temperature="1"), "temperature"),
    (CHAT, chat(temperature=True), "temperature"),
    (CHAT, chat(top_p=1.1), "top_p"),
    (CHAT, chat(top_k=1.5), "top_k"),
    (CHAT, chat(min_p=-1), "min_p"),
    (CHAT, chat(n=0), "n"),
    (CHAT, chat(n=129), "n"),
    (CHAT, chat(stop=["x"] * 17), "stop"),
    (CHAT, chat(stop=[""]), "stop"),
    (CHAT, chat(stop=4), "stop"),
    (CHAT, chat(seed=2**63), "seed"),
    (CHAT, chat(seed="x"), "seed"),
    (CHAT, chat(max_tokens=0), "max_tokens"),
    (CHAT, chat(max_completion_tokens=-1), "max_completion_tokens"),
    (CHAT, chat(max_tokens=1, max_completion_tokens=2), "max_tokens"),
    (CHAT, chat(max_tokens=10_000), "messages"),
    (CHAT, chat(max_tokens=2, min_tokens=3), "min_tokens"),
    (CHAT, chat(frequency_penalty=3), "frequency_penalty"),
    (CHAT, chat(presence_penalty=-3), "presence_penalty"),
    (CHAT, chat(repetition_penalty=0), "repetition_penalty"),
    (CHAT, chat(repetition_penalty=1e-40), "repetition_penalty"),
    (CHAT, chat(logit_bias={"x": 1}), "logit_bias.x"),
    (CHAT, chat(logit_bias={"5": 101}), "logit_bias.5"),
    (CHAT, chat(logit_bias={"100000": 1}), "logit_bias"),
    (CHAT, chat(logit_bias=[1]), "logit_bias"),
    (CHAT, chat(top_logprobs=3), "top_logprobs"),
    (CHAT, chat(logprobs=True, top_logprobs=21), "top_logprobs"),
    (CHAT, chat(stop_token_ids=[-1]), "stop_token_ids"),
    (CHAT, chat(stop_token_ids=[5] * 5000), "stop_token_ids"),
    (CHAT, chat(stream="yes"), "stream"),
    (CHAT, chat(stream_options={"include_usage": True}), "stream_options"),
    (CHAT, chat(stream=True, stream_options={"usage": True}), "stream_options.usage"),
    (CHAT, chat(prompt_cache_options={"prewarm": True}), "prompt_cache_options.prewarm"),
    (CHAT, chat(prompt_cache_options={"mode": "explicit"}), "prompt_cache_options.mode"),
    (CHAT, chat(prompt_cache_retention="for ever"), "prompt_cache_retention"),
    (CHAT, chat(response_format={"type": "grammar"}), "response_format"),
    (CHAT, chat(response_format={"type": "json_schema"}), "response_format.json_schema"),
    (CHAT, chat(tools=[{"type": "function"}]), "tools.0.function"),
    (CHAT, chat(tools=[{"type": "web_search"}]), "tools.0.type"),
    (CHAT, chat(store=True), "store"),
    (CHAT, chat(reasoning_effort="low"), "reasoning_effort"),
    (CHAT, chat(metadata={"a": 1}), "metadata.a"),
    (CHAT, chat(chat_template_kwargs={"tokenize": False}), "chat_template_kwargs.tokenize"),
    (CHAT, chat(steering={}), "steering"),
    (CHAT, chat(steering=[{}]), "steering.0.vector"),
    (CHAT, chat(steering=[{"vector": "calm"}] * 65), "steering"),
    (CHAT, steer(vector=5), "steering.0.vector"),
    (CHAT, steer(vector="../x"), "steering.0.vector"),
    (CHAT, steer(vector="calm@"), "steering.0.vector"),
    (CHAT, steer(vector="calm@xyz123"), "steering.0.vector"),
    (CHAT, steer(scale="big"), "steering.0.scale"),
    (CHAT, steer(scale=1e300), "steering.0.scale"),
    (CHAT, steer(layers=[]), "steering.0.layers"),
    (CHAT, steer(layers=",".join(["0-4000"] * 1000)), "steering.0.layers"),
    (CHAT, steer(layers=[1, 1]), "steering.0.layers"),
    (CHAT, steer(layers="2-1"), "steering.0.layers"),
    (CHAT, steer(layers="one"), "steering.0.layers"),
    (CHAT, steer(layers=[3]), "steering.0.layers"),
    (CHAT, steer(layers=[True]), "steering.0.layers"),
    (CHAT, steer(layers=1), "steering.0.layers"),
    (CHAT, steer(positions="some"), "steering.0.positions"),
    (CHAT, steer(operation="twist"), "steering.0.operation"),
    (CHAT, steer(preserve_norm=1), "steering.0.preserve_norm"),
    (CHAT, steer(strength=1), "steering.0.strength"),
    (COMPLETIONS, {}, "prompt"),
    (COMPLETIONS, {"prompt": 3}, "prompt"),
    (COMPLETIONS, {"prompt": [True]}, "prompt.0"),
    (COMPLETIONS, {"prompt": ["a", []]}, "prompt.1"),
    (COMPLETIONS, {"prompt": [-1]}, "prompt"),
    (COMPLETIONS, {"prompt": ["a"] * 2048, "n": 128}, "n"),
    (COMPLETIONS, {"prompt": "a", "logprobs": 21}, "logprobs"),
    (COMPLETIONS, {"prompt": "a", "messages": []}, "messages"),
]

RAW: list[tuple[str, bytes]] = [
    ("empty", b""),
    ("no JSON", b"{"),
    ("a list", b"[]"),
    ("a number", b"1"),
    ("NaN", b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}'),
    ("deep", b'{"metadata":' + b"[" * 100_000),
    ("long number", b'{"seed": ' + b"9" * 10_000 + b"}"),
    ("not UTF-8", b'{"prompt": "\xff"}'),
    ("half a surrogate", b'{"prompt": "\\ud800", "messages": [{"role": "user", "content": "\\ud800"}]}'),
]


@pytest.mark.parametrize(("path", "body", "param"), BODIES, ids=[f"{body}"[:60] for _, body, _ in BODIES])
def test_the_field_is_named(server: Server, path: str, body: Any, param: str) -> None:
    for stream in ({}, {"stream": True}):
        response = server.http.post(path, json=stream | body)
        if "stream_options" in body and stream:
            continue
        assert response.status_code in (400, 404)
        error = response.json()["error"]
        assert (error["param"], error["type"]) == (param, "invalid_request_error"), error
        assert error["code"]
        assert set(error) == {"message", "type", "param", "code"}
    eventually(server.is_idle)


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize(("what", "body"), RAW)
def test_what_is_no_json_object_is_refused(server: Server, path: str, what: str, body: bytes) -> None:
    response = server.http.post(path, content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400, what
    assert response.json()["error"]["code"] == "invalid_json"


def test_infinite_numbers_are_refused(server: Server) -> None:
    body = b'{"messages": [{"role": "user", "content": "x"}], "steering": [{"vector": "calm", "scale": 1e999}]}'
    response = server.http.post(CHAT, content=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "steering.0.scale")


def test_unknown_paths_and_methods_have_envelopes(server: Server) -> None:
    for method, path, status in (("GET", "/v2", 404), ("GET", CHAT, 405), ("POST", "/v1/models", 405)):
        response = server.http.request(method, path)
        assert (response.status_code, response.json()["error"]["type"]) == (status, "invalid_request_error")


def test_a_long_json_body_is_refused(server: Server) -> None:
    response = server.http.post(CHAT, content=b" " * (17 << 20))
    assert (response.status_code, response.json()["error"]["code"]) == (413, "payload_too_large")
