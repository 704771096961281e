"""What a wrong body may cost: strict UTF-8, bounded errors, and large bodies away from the event loop."""

from __future__ import annotations

import asyncio
import threading
import tracemalloc
from typing import Any

import pytest
from pydantic import BaseModel, model_validator
from starlette.requests import Request

from server.api.chat.wire import ChatRequest
from server.api.http.bodies import MAX_JSON_BYTES, MAX_MEMBERS, parse_json, read_model, validated
from server.errors import InvalidRequest
from tests.server.api.serving import Server

HELLO = {"role": "user", "content": "hi"}
MOST_MIB = 16
"""More than what describing the first wrong field takes, far less than describing a million."""


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/steering/vectors"])
@pytest.mark.parametrize(
    "body",
    [
        b'{"prompt":"a\xed\xa0\x80"}',
        b'{"prompt":"a\xed\xa0\xbd\xed\xb8\x80"}',
        b'{"prompt":"\xc0\x80"}',
        b'{"\xed\xa0\x80":1}',
        b'{"prompt":"\\ud800"}',
        '{"prompt":"a"}'.encode("utf-16"),
        '{"prompt":"a"}'.encode("utf-16-le"),
        '{"prompt":"a"}'.encode("utf-32-be"),
    ],
)
def test_only_utf8_is_read(server: Server, path: str, body: bytes) -> None:
    response = server.http.post(path, content=body, headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_json")


def test_characters_beyond_the_basic_plane_are_read() -> None:
    assert parse_json(b'{"a":"\xf0\x9f\x98\x80\\ud83d\\ude00"}') == {"a": "😀😀"}


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"messages": [1] * 1_000_000}, "messages.0"),
    ({"messages": [HELLO] * 10 + [{}] * 1_000_000}, "messages.10.role"),
    ({"messages": [HELLO, {f"key-{number}": 1 for number in range(MAX_MEMBERS)}]}, "messages.1.role"),
    ({"messages": [HELLO], "stop_token_ids": ["x"] * 1_000_000}, "stop_token_ids"),
]


@pytest.mark.parametrize(("body", "param"), WRONG, ids=[param for _, param in WRONG])
def test_of_a_million_faults_the_first_is_described(body: dict[str, Any], param: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequest) as refused:
            validated(ChatRequest, body)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert refused.value.param is not None
    assert refused.value.param.startswith(param)
    assert most < MOST_MIB << 20


def test_an_object_has_a_bounded_number_of_members() -> None:
    members = ",".join(f'"{number}":1' for number in range(MAX_MEMBERS))
    assert len(parse_json(b"{%s}" % members.encode())) == MAX_MEMBERS
    for body in ('{%s,"x":1}', '{"metadata":{%s,"x":1}}', '{"messages":[{%s,"x":1}]}'):
        with pytest.raises(InvalidRequest, match=f"more than {MAX_MEMBERS} members"):
            parse_json((body % members).encode())


class _Watched(BaseModel):
    """Notes which thread validates it."""

    text: str
    thread: int

    @model_validator(mode="before")
    @classmethod
    def _note(cls, data: dict[str, Any]) -> dict[str, Any]:
        return data | {"thread": threading.get_ident()}


def test_large_bodies_are_validated_off_the_event_loop() -> None:
    async def thread_for(num_bytes: int) -> int:
        async def receive() -> dict[str, object]:
            return {"type": "http.request", "body": b'{"text":"%s"}' % (b"x" * num_bytes)}

        request = Request({"type": "http", "method": "POST", "path": "/", "headers": []}, receive)
        return (await read_model(request, _Watched, MAX_JSON_BYTES)).thread

    assert asyncio.run(thread_for(100)) == threading.get_ident()
    assert asyncio.run(thread_for(1 << 20)) != threading.get_ident()
