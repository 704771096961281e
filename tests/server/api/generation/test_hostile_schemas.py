"""Schemas that cannot be enforced, or are made to be slow: refused by name, at nobody else's cost."""

from __future__ import annotations

import asyncio
import functools
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.api.http.places import Places
from server.errors import Overloaded
from tests.server.answers import chat_templates as styles
from tests.server.api.serving import Server, eventually, serving

HELLO = [{"role": "user", "content": "hello there"}]
TEXT = {"type": "string"}
SLOW_TO_APPLY = {
    "anyOf": [{"type": "array", "items": {"type": "string", "minLength": number}} for number in range(250)]
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A model with tools."""
    with serving(tmp_path_factory.mktemp("data"), chat_template=styles.HERMES) as running:
        yield running


def under(schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}


def strict_tools(*schemas: Any) -> dict[str, Any]:
    tools = [
        {"type": "function", "function": {"name": f"f{number}", "strict": True, "parameters": schema}}
        for number, schema in enumerate(schemas)
    ]
    return {"tools": tools}


def asked(server: Server, **fields: Any) -> httpx.Response:
    return server.http.post("/v1/chat/completions", json={"messages": HELLO, "max_tokens": 8} | fields, timeout=120)


def refused(response: httpx.Response, param: str) -> str:
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["code"], error["param"]) == (
        400,
        "invalid_request_error",
        "invalid_json_schema",
        param,
    ), response.text
    message: str = error["message"]
    assert message.startswith(f"{param}: ")
    return message


def many_optional(number: int) -> dict[str, Any]:
    return {"type": "object", "properties": {f"p{number}_{index}": TEXT for index in range(5000)}}


@pytest.mark.parametrize(
    ("schema", "word"),
    [
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"not": TEXT}, "not"),
        ({"$ref": "https://example.com/x.json"}, "example.com"),
        ({"type": "string", "pattern": "(a"}, "unclosed group"),
        ({"type": "string", "format": "regex"}, "format"),
        ({"type": "object", "minProperties": 3}, "minProperties"),
        ({"type": "object", "required": 3}, "required"),
        ({"type": "object", "properties": {"a": []}}, "expected a schema"),
        ({"const": json.loads("[" * 300 + "]" * 300)}, "recursion limit"),
        (many_optional(0), "grammar size"),
    ],
)
def test_what_cannot_be_enforced_is_refused_by_name(server: Server, schema: Any, word: str) -> None:
    assert word in refused(asked(server, **under(schema)), "response_format")
    good, bad = ({"type": "object", "properties": {"a": part}} for part in (TEXT, schema))
    assert word in refused(asked(server, **strict_tools(good, bad)), "tools.1")
    assert word in refused(asked(server, stream=True, **under(schema)), "response_format")


class Stream:
    """A long answer without a grammar, read as it comes."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.num_pieces = 0
        self.text = ""
        self._thread = threading.Thread(target=self._read)

    def _read(self) -> None:
        body = {"messages": HELLO, "max_tokens": 400, "ignore_eos": True, "seed": 5, "stream": True}
        with self._server.http.stream("POST", "/v1/chat/completions", json=body, timeout=120) as response:
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    self.text += json.loads(line.removeprefix("data: "))["choices"][0]["delta"].get("content", "")
                    self.num_pieces += 1

    def __enter__(self) -> Stream:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._thread.join()


@pytest.mark.slow
def test_others_go_on_while_hostile_schemas_are_compiled(server: Server) -> None:
    with Stream(server) as alone:
        pass
    with Stream(server) as stream, ThreadPoolExecutor(4) as pool:
        eventually(lambda: stream.num_pieces > 0)
        before = stream.num_pieces
        for response in pool.map(lambda number: asked(server, **under(many_optional(number))), range(1, 4)):
            refused(response, "response_format")
            assert stream.num_pieces > before
    assert stream.text == alone.text


@pytest.mark.slow
def test_others_go_on_beside_a_grammar_that_is_slow_to_apply(server: Server) -> None:
    """Its answers end (cut, complete, or given up), the others' are the same as ever, and nothing is left behind."""
    with Stream(server) as alone:
        pass
    with Stream(server) as stream:
        response = asked(server, n=8, seed=1, **(under(SLOW_TO_APPLY) | {"max_tokens": 60}))
    assert response.status_code in (200, 400, 500)
    if response.status_code == 500:
        assert "the constraint failed" in response.json()["error"]["message"]
    assert stream.text == alone.text
    assert asked(server, **under({"type": "integer"})).status_code == 200


def test_a_schema_beyond_the_limits_is_refused_by_name_and_holds_up_nobody(tmp_path: Path) -> None:
    """A harmless schema, under a limit that none keeps to."""
    schema = {"type": "object", "properties": {"a": TEXT}}
    shaped = {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}
    tool = {"type": "function", "function": {"name": "track", "parameters": schema}}
    called = {"tools": [tool], "tool_choice": "required"}
    with serving(tmp_path, chat_template=styles.HERMES, grammar_seconds=0.0001) as limited:
        for fields, param in ((shaped, "response_format"), (called, "tools")):
            refused = limited.http.post("/v1/chat/completions", json={"messages": HELLO, "max_tokens": 4} | fields)
            error = refused.json()["error"]
            assert (refused.status_code, error["code"], error["param"]) == (400, "invalid_json_schema", param)
            assert "takes more than 0.0001 s; expected a simpler schema" in error["message"]
        plain = limited.http.post("/v1/chat/completions", json={"messages": HELLO, "max_tokens": 4})
        assert plain.status_code == 200


def test_places_are_few_and_so_are_those_who_wait_for_them() -> None:
    async def fill() -> tuple[int, list[int], int]:
        places, gate, running = Places(2, 3), threading.Event(), [0]

        def hold(number: int) -> int:
            running[0] += 1
            most.append(running[0])
            gate.wait(60)
            running[0] -= 1
            return number

        most: list[int] = []
        held = [asyncio.ensure_future(places.run(functools.partial(hold, number))) for number in range(5)]
        while running[0] < 2:
            await asyncio.sleep(0.01)
        with pytest.raises(Overloaded) as refused:
            await places.run(lambda: hold(5))
        assert refused.value.headers["Retry-After"]
        gate.set()
        done = await asyncio.gather(*held)
        return max(most), done, await places.run(lambda: hold(6))

    assert asyncio.run(fill()) == (2, [0, 1, 2, 3, 4], 6)
