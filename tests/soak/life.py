"""One life of the server, as its clients see it: where it is, how to ask it, and when it is over."""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpx

from tests.soak.ledger import SoakFailed

BUSY = frozenset({429, 503, 504, 507})
"""Statuses with which a server says that it cannot now, and changes nothing."""


class Tally:
    """Answers by status, and what clients did by name, over all lives."""

    def __init__(self) -> None:
        self.statuses: collections.Counter[int] = collections.Counter()
        self.done: collections.Counter[str] = collections.Counter()

    @property
    def num_requests(self) -> int:
        """Answers, and clients that went away before theirs."""
        return self.statuses.total()

    def note(self, status: int, content: bytes, asked: str) -> None:
        """An answer. Raises `SoakFailed` for a 5xx that is none of those that give a reason, or gives none."""
        self.statuses[status] += 1
        if status >= 500 and (status not in BUSY or b'"code":' not in content.replace(b" ", b"")):
            raise SoakFailed(f"{asked}: got {status}: {content[:500]!r}")


@dataclass
class Life:
    """A running server. `client` asks it; `is_over`: clients begin nothing more; `is_killed`: connections break."""

    number: int
    url: str
    client: httpx.AsyncClient
    tally: Tally
    is_over: asyncio.Event = field(default_factory=asyncio.Event)
    is_killed: bool = False

    @property
    def port(self) -> int:
        """For raw sockets."""
        return int(self.url.rpartition(":")[2])

    async def ask(
        self, method: str, path: str, *, expected: Collection[int] = (200,), **options: Any
    ) -> httpx.Response:
        """A whole answer, with a status that is expected or `BUSY`. Raises `SoakFailed`, and httpx's errors."""
        reply = await self.client.request(method, path, **options)
        self.tally.note(reply.status_code, reply.content, f"{method} {path}")
        if reply.status_code not in {*expected, *BUSY}:
            raise SoakFailed(f"{method} {path}: expected {expected}, got {reply.status_code}: {reply.text[:500]}")
        return reply

    async def read(self, path: str, **params: Any) -> Any:
        """The JSON of a GET, asked again while the server is busy."""
        while (reply := await self.ask("GET", path, params=params)).status_code in BUSY:
            await asyncio.sleep(0.1)
        return reply.json()

    async def read_pages(self, path: str, limit: int = 100) -> list[dict[str, Any]]:
        """All entries of a list."""
        found: list[dict[str, Any]] = []
        while True:
            after = {"after": found[-1]["id"]} if found else {}
            page = await self.read(path, limit=limit, **after)
            found += page["data"]
            if not page["has_more"]:
                return found


class Client(Protocol):
    """Somebody who uses the server, over all lives."""

    name: str

    async def act(self, life: Life) -> None:
        """Something whole. Raises `SoakFailed`, and what the network raises when the server is killed."""
        ...


async def live(client: Client, life: Life) -> None:
    """Act again and again, until the life is over."""
    while not life.is_over.is_set():
        try:
            await client.act(life)
        except (httpx.TransportError, ConnectionError) as error:
            if life.is_killed:
                return
            raise SoakFailed(f"{client.name}: the server broke a connection: {error!r}") from error
        except AssertionError as error:
            raise SoakFailed(f"{client.name}: {error}") from error
        life.tally.done[client.name] += 1
