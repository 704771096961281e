"""Schemas that cannot be enforced, or are made to be slow: refused by name, at nobody else's cost."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.api.http.places import Places, Result
from server.errors import Overloaded
from server.keys import ApiKeys
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
    """A harmless schema that takes many ticks of the processor's clock, under a limit that is less than one."""
    schema = {"type": "object", "properties": {f"field {number}": TEXT for number in range(300)}}
    shaped = {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}
    tool = {"type": "function", "function": {"name": "track", "parameters": schema}}
    called = {"tools": [tool], "tool_choice": "required"}
    with serving(tmp_path, chat_template=styles.HERMES, grammar_seconds=0.000001) as limited:
        for fields, param in ((shaped, "response_format"), (called, "tools")):
            refused = limited.http.post("/v1/chat/completions", json={"messages": HELLO, "max_tokens": 4} | fields)
            error = refused.json()["error"]
            assert (refused.status_code, error["code"], error["param"]) == (400, "invalid_json_schema", param)
            assert "takes more than 1e-06 s; expected a simpler schema" in error["message"]
        plain = limited.http.post("/v1/chat/completions", json={"messages": HELLO, "max_tokens": 4})
        assert plain.status_code == 200


class Held:
    """Tasks that note that they run, and then wait to be let go."""

    def __init__(self) -> None:
        self.running: list[str] = []
        self.order: list[str] = []
        self._lock = threading.Lock()
        self._gates: dict[str, threading.Event] = {}

    def task(self, name: str) -> Callable[[], str]:
        self._gates[name] = threading.Event()

        def hold() -> str:
            with self._lock:
                self.running.append(name)
                self.order.append(name)
            self._gates[name].wait(60)
            with self._lock:
                self.running.remove(name)
            return name

        return hold

    def let_go(self, *names: str) -> None:
        for name in names:
            self._gates[name].set()

    async def are_running(self, *names: str) -> None:
        async with asyncio.timeout(30):
            while sorted(self.running) != sorted(names):
                await asyncio.sleep(0.01)


def test_places_are_few_and_so_are_those_who_wait_for_them() -> None:
    async def fill() -> list[str]:
        places, held = Places(3, 2), Held()
        tasks = [asyncio.ensure_future(places.run(held.task(f"a{number}"), "a")) for number in range(4)]
        await held.are_running("a0", "a1")
        with pytest.raises(Overloaded) as refused:
            await places.run(held.task("a4"), "a")
        assert refused.value.headers["Retry-After"]
        held.let_go("a0", "a1", "a2", "a3")
        return await asyncio.gather(*tasks)

    assert asyncio.run(fill()) == ["a0", "a1", "a2", "a3"]


def test_no_owner_has_all_places_or_fills_the_queue() -> None:
    async def fill() -> list[str]:
        places, held = Places(3, 4), Held()

        def run(name: str) -> asyncio.Future[str]:
            return asyncio.ensure_future(places.run(held.task(name), name[0]))

        tasks = [run(f"a{number}") for number in range(6)]
        await held.are_running("a0", "a1")
        tasks.append(run("b0"))  # at once, though others wait
        await held.are_running("a0", "a1", "b0")
        tasks += [run("b1"), run("c0")]  # into a full queue
        await asyncio.sleep(0)
        held.let_go("a0")
        await held.are_running("a1", "a2", "b0")  # the turn of a, who waited first
        held.let_go("a1")
        await held.are_running("a2", "b0", "b1")  # not of a again
        held.let_go("b0")
        await held.are_running("a2", "b1", "c0")
        held.let_go("a2", "a3", "a4", "a5", "b1", "c0")
        return await asyncio.gather(*tasks)

    assert len(asyncio.run(fill())) == 9


def test_who_leaves_gives_up_its_place() -> None:
    """While it waits at once; while it runs, as soon as its thread is free."""

    async def leave() -> str:
        places, held = Places(2, 8), Held()
        first = asyncio.ensure_future(places.run(held.task("a0"), "a"))
        waits = asyncio.ensure_future(places.run(held.task("a1"), "a"))
        await held.are_running("a0")
        waits.cancel()
        first.cancel()
        held.let_go("a0")
        await asyncio.gather(first, waits, return_exceptions=True)
        last = asyncio.ensure_future(places.run(held.task("a2"), "a"))
        held.let_go("a2")
        await last
        return " ".join(held.order)

    assert asyncio.run(leave()) == "a0 a2"


def test_each_key_has_places_of_its_own(tmp_path: Path) -> None:
    owners: list[str] = []

    class Noting(Places):
        async def run(self, task: Callable[[], Result], owner: str) -> Result:
            owners.append(owner)
            return await super().run(task, owner)

    with serving(tmp_path, keys=ApiKeys(use=["one", "other"])) as server:
        assert server.app is not None
        server.app.state.services = replace(server.app.state.services, compiling=Noting(2, 2))
        for number, key in enumerate(("one", "one", "other")):
            schema = under({"type": "integer", "maximum": number})["response_format"]
            chat = {"messages": HELLO, "max_tokens": 2, "response_format": schema}
            form = {"type": "json_schema", "name": "x", "schema": {"type": "integer", "minimum": number}}
            response = {"input": "hello there", "max_output_tokens": 16, "text": {"format": form}}
            headers = {"Authorization": f"Bearer {key}"}
            for path, body in (("/v1/chat/completions", chat), ("/v1/responses", response)):
                assert server.http.post(path, json=body, headers=headers).status_code == 200
    assert [owner == owners[0] for owner in owners] == [True] * 4 + [False] * 2
