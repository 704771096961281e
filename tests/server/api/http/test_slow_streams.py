"""Streams that are silent get comments, which no client takes for an event; readers that are slow hold up nobody."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypedDict

import httpx
import pytest
from starlette.requests import ClientDisconnect

from server.api.http import sse
from server.api.http.services import Services
from server.api.http.sse import EventStream
from server.config import Settings
from server.engine.engine import BatchingEngine
from server.errors import TimedOut
from tests.server.api.serving import Server, eventually, serving

HELLO: Any = [{"role": "user", "content": "hi"}]


class Said(TypedDict):
    """What the streams here say."""

    text: str


class HeldEngine(BatchingEngine):
    """Does not begin by itself, so that streams are silent for as long as the test likes."""

    def start(self) -> HeldEngine:
        """Nothing yet; `BatchingEngine.start` begins."""
        return self


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Server]:
    """A server that sends a comment after 0.05 s of silence."""
    with serving(tmp_path, engine_class=HeldEngine, stream_keep_alive=0.05) as server:
        yield server


def test_a_silent_stream_gets_comments_between_whole_events(held: Server) -> None:
    body = {"messages": HELLO, "max_tokens": 4, "stream": True, "ignore_eos": True}
    text = ""
    with held.http.stream("POST", "/v1/chat/completions", json=body) as response:
        for part in response.iter_text():
            text += part
            if text.count(": keep-alive") >= 3 and held.engine.stats().total_requests == 0:
                BatchingEngine.start(held.engine)
                eventually(lambda: held.engine.stats().total_requests == 1)
    *blocks, last = text.split("\n\n")
    events = [json.loads(block.removeprefix("data: ")) for block in blocks[:-1] if block != ": keep-alive"]
    assert (blocks[-1], last) == ("data: [DONE]", "")
    assert events[-1]["choices"][0]["finish_reason"] == "length"


def test_no_text_ends_a_line_of_the_stream() -> None:
    """Not even for clients that cut at all that Unicode calls the end of a line."""
    text = "".join(map(chr, [*range(0x20), 0x85, 0x2028, 0x2029])) + "é漢🙂"
    lines = sse.format_event(Said(text=text)).decode().splitlines()
    assert [json.loads(line.removeprefix("data: ")) for line in lines if line] == [{"text": text}]


def test_openai_s_client_skips_comments(held: Server) -> None:
    stream = held.sdk.chat.completions.create(model="tiny", messages=HELLO, max_tokens=4, stream=True)
    chunks = [next(stream)]
    raw = held.http.stream("POST", "/v1/completions", json={"prompt": "a", "max_tokens": 1, "stream": True})
    with raw as response:
        lines = response.iter_lines()
        while next(lines) != ": keep-alive":
            pass  # so the other stream, which is older, has had one as well
        BatchingEngine.start(held.engine)
        chunks += stream
        assert [line for line in lines if line][-1] == "data: [DONE]"
    assert chunks[-1].choices[0].finish_reason == "length"
    assert all(chunk.object == "chat.completion.chunk" for chunk in chunks)


def test_who_does_not_read_holds_no_pages(server: Server) -> None:
    """The engine goes on to the end; what was generated waits, `max_tokens` events a choice at most."""
    body = {
        "messages": HELLO,
        "max_tokens": 450,
        "n": 8,
        "stream": True,
        "ignore_eos": True,
        "logprobs": True,
        "top_logprobs": 20,
    }
    generated = server.engine.stats().total_generated_tokens
    with server.http.stream("POST", "/v1/chat/completions", json=body) as response:
        eventually(lambda: server.engine.stats().total_generated_tokens == generated + 8 * 450, within=120)
        eventually(server.is_idle)
        events = [line for line in response.iter_lines() if line.startswith("data: ")]
    assert events[-1] == "data: [DONE]"
    tokens = [json.loads(event[6:])["choices"][0]["logprobs"] for event in events[:-1]]
    assert sum(len(logprobs["content"]) for logprobs in tokens if logprobs) == 8 * 450


class Reader:
    """A client's side of a connection that takes nothing until it reads."""

    def __init__(self) -> None:
        self.reads = asyncio.Event()
        self.num_waiting = 0
        self.received: list[bytes] = []

    async def send(self, message: Any) -> None:
        """As a server sends: it waits until there is room, then takes the message whole."""
        self.num_waiting += 1
        await self.reads.wait()
        self.num_waiting -= 1
        self.received.append(message.get("body", b""))

    async def receive(self) -> Any:
        """It never leaves."""
        await asyncio.Event().wait()


def stream_scope(seconds: float) -> Any:
    """The scope of a request to an application with this keep-alive."""
    parts = {part.name: None for part in dataclasses.fields(Services) if part.name not in ("settings", "started_at")}
    services = Services(settings=Settings(stream_keep_alive=seconds), **parts)  # type: ignore[arg-type]
    return {"type": "http", "app": SimpleNamespace(state=SimpleNamespace(services=services))}


def test_nothing_is_formatted_for_who_does_not_read() -> None:
    async def check() -> None:
        reader = Reader()
        num_taken = 0

        async def payloads() -> AsyncIterator[Said]:
            nonlocal num_taken
            for number in range(1000):
                num_taken += 1
                yield {"text": str(number)}

        stream = EventStream(payloads(), close=lambda: None)
        sending = asyncio.ensure_future(stream(stream_scope(0.001), reader.receive, reader.send))
        while reader.num_waiting < 1:
            await asyncio.sleep(0)
        reader.reads.set()
        while len(reader.received) < 1:
            await asyncio.sleep(0)
        reader.reads.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(sending), 0.05)  # fifty times the keep-alive
        assert num_taken <= len(reader.received) + 1
        assert reader.num_waiting <= 2  # an event and a comment
        reader.reads.set()
        await sending
        bodies = [body for body in reader.received if body.startswith(b"data: {")]
        assert [json.loads(body[6:])["text"] for body in bodies] == [str(number) for number in range(1000)]

    asyncio.run(check())


def test_little_is_formatted_for_who_has_left() -> None:
    """Its sends return at once then, and what waits for it must hold up nobody."""

    async def check() -> None:
        reader = Reader()
        num_taken = 0

        async def payloads() -> AsyncIterator[Said]:
            nonlocal num_taken
            for number in range(1000):
                num_taken += 1
                yield {"text": str(number)}

        async def receive() -> Any:
            await reader.reads.wait()
            return {"type": "http.disconnect"}

        stream = EventStream(payloads(), close=lambda: None)
        sending = asyncio.ensure_future(stream(stream_scope(60), receive, reader.send))
        while reader.num_waiting < 1:
            await asyncio.sleep(0)
        reader.reads.set()
        with pytest.raises(ClientDisconnect):
            await sending
        assert num_taken < 20

    asyncio.run(check())


def test_who_does_not_read_that_its_time_is_up_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "_LAST_EVENT_SECONDS", 0.01)

    async def check() -> None:
        reader = Reader()
        reader.reads.set()
        is_closed: list[bool] = []

        async def payloads() -> AsyncIterator[Said]:
            yield {"text": ""}
            reader.reads.clear()
            while True:
                yield {"text": ""}

        async def receive() -> Any:
            while reader.num_waiting == 0:
                await asyncio.sleep(0)
            raise TimedOut("too long")

        stream = EventStream(payloads(), close=lambda: is_closed.append(True))
        with pytest.raises(ClientDisconnect):
            await stream(stream_scope(60), receive, reader.send)
        assert is_closed == [True]

    asyncio.run(check())


def test_comments_end_with_the_stream(held: Server) -> None:
    BatchingEngine.start(held.engine)
    body = {"prompt": "a", "max_tokens": 2, "stream": True}
    with httpx.Client(base_url=held.url, timeout=60) as client:
        first = client.post("/v1/completions", json=body)
        assert first.text.endswith("data: [DONE]\n\n")
        assert client.get("/health").json() == {"status": "ok"}  # over the same connection, with nothing in between
