"""Clients that generate: witnesses who know their answers, others with random requests, leavers and vandals."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from typing import Any

from server.errors import EngineFailure
from tests.server.api.http.fuzzed_requests import long_chat, right_request
from tests.server.api.http.misbehaving import Held, misbehave
from tests.server.api.http.well_behaved import MUSIC, WELL_BEHAVED, ask
from tests.soak.ledger import SoakFailed
from tests.soak.life import BUSY, Life
from tests.soak.vectors import PATH, Content

FEWEST_ANSWERS = 4
"""How many of the contents must lead to answers of their own, so that a swap is seen in them."""

SECONDS_HELD = 4.0
"""For how long a client that does not read keeps its socket, at most."""


class Alone:
    """What answers are when there is nobody else: those of the witnesses, and of a question steered by each content."""

    def __init__(self, contents: Sequence[Content]) -> None:
        self._contents = contents
        self.streams: list[dict[int, str]] = []
        self.steered: dict[str, str] = {}
        """The answer by the revision that steers it."""

    async def learn(self, life: Life) -> None:
        """Ask a server that nobody else asks."""
        self.streams = [(await ask(life.client, path, body)).said for path, body in WELL_BEHAVED]
        for content in self._contents:
            await life.ask("PUT", f"{PATH}/alone", content=content.encoded, expected=(200, 201))
            answer = (await life.ask("POST", "/v1/chat/completions", json=steered_by("alone"))).json()
            self.steered[content.revision] = answer["choices"][0]["message"]["content"]
        await life.ask("DELETE", f"{PATH}/alone")
        if len(set(self.steered.values())) < FEWEST_ANSWERS:
            raise SoakFailed(f"the contents hardly steer: {self.steered.values()}")


def steered_by(name: str) -> dict[str, Any]:
    """A chat under a vector, whose answer is always the same for the same revision."""
    return {"messages": MUSIC, "seed": 5, "max_tokens": 24, "ignore_eos": True, "steering": [{"vector": name}]}


class Witness:
    """Asks for one of the streams again and again: it is what it was alone, whatever others do."""

    name = "streams compared with alone"

    def __init__(self, alone: Alone, seed: int) -> None:
        self._alone = alone
        self._choose = random.Random(seed)

    async def act(self, life: Life) -> None:
        number = self._choose.randrange(len(WELL_BEHAVED))
        stream = await ask(life.client, *WELL_BEHAVED[number])
        life.tally.note(200, b"", "a stream")
        if stream.said != self._alone.streams[number]:
            raise SoakFailed(f"{WELL_BEHAVED[number]}: expected {self._alone.streams[number]}, got {stream.said}")


class SteeredChatter:
    """Chats under vectors that are being swapped: the answer is the one of the revision that it says it is of."""

    name = "chats under swapped vectors"

    def __init__(self, alone: Alone, names: Sequence[str], seed: int) -> None:
        self._alone = alone
        self._names = names
        self._choose = random.Random(seed)

    async def act(self, life: Life) -> None:
        body = steered_by(self._choose.choice(self._names))
        reply = await life.ask("POST", "/v1/chat/completions", json=body, expected=(200, 404))
        if reply.status_code == 404 and reply.json()["error"]["code"] != "vector_not_found":
            raise SoakFailed(f"a chat under a vector that may be deleted: {reply.text[:500]}")
        if reply.status_code == 200:
            answer = reply.json()
            revision, said = answer["steering"][0]["revision"], answer["choices"][0]["message"]["content"]
            if self._alone.steered.get(revision) != said:
                expected = self._alone.steered.get(revision)
                raise SoakFailed(f"under revision {revision[:12]}: expected {expected!r}, got {said!r}")
        elif reply.status_code == 404:
            await asyncio.sleep(0.05)


class RandomAsker:
    """Any right request to any route, read to its end."""

    name = "random requests"

    def __init__(self, seed: int) -> None:
        self._choose = random.Random(seed)

    async def act(self, life: Life) -> None:
        path, body = right_request(self._choose, most=60)
        reply = await life.ask("POST", path, json=body, expected=(200, 422))
        if body.get("stream") and reply.status_code == 200:
            for line in reply.text.splitlines():
                check_event(line)


def check_event(line: str) -> None:
    """Raises `SoakFailed` for an event of a stream that says that the engine failed."""
    if line.startswith("data: {"):
        event = json.loads(line[6:])
        error = event.get("error") or (event.get("response") or {}).get("error") or {}
        if error.get("type") == EngineFailure.type or error.get("code") in (EngineFailure.default_code, "server_error"):
            raise SoakFailed(f"a stream ended with {error}")


class Leaver:
    """Asks for a long stream, and closes its connection after some of it."""

    name = "streams left in the middle"

    def __init__(self, seed: int) -> None:
        self._choose = random.Random(seed)

    async def act(self, life: Life) -> None:
        path, body = long_chat(self._choose)
        left = self._choose.randrange(1, 120)
        async with life.client.stream("POST", path, json=body | {"stream": True}) as reply:
            if reply.status_code in BUSY:
                await reply.aread()
            life.tally.note(reply.status_code, b"" if reply.status_code == 200 else reply.content, path)
            async for line in reply.aiter_lines():
                check_event(line)
                left -= 1
                if left == 0:
                    return


class Vandal:
    """A client over a raw socket that does its worst: reads slowly, vanishes, resets, speaks no HTTP."""

    name = "misbehaving clients"

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._number = 0

    async def act(self, life: Life) -> None:
        self._number += 1
        held = Held()
        let_go = asyncio.get_running_loop().call_later(SECONDS_HELD, held.release)
        try:
            await misbehave(life.port, self._number, self._seed, 0.1, held)
        finally:
            let_go.cancel()
        life.tally.statuses[0] += 1
