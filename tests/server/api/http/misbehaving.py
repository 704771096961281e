"""Clients over raw sockets that read slowly, stop reading, vanish, trickle, or speak no HTTP.

Each behaviour is a coroutine of a connection, its random choices, and where those stay who only keep their socket. It
gives the statuses of the answers that it read, in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import socket
import struct
from collections.abc import Awaitable, Callable

from tests.server.api.http.fuzzed_requests import http_bytes, long_chat, right_request, wrong_request

RECEIVE_BUFFER = 4096
"""Bytes that the operating system takes for a client that does not read; small, so that the server notices early."""

SEGMENT = 536
"""Bytes of a packet, from which the server's side reckons how much it may take for a client; small for the same."""

_STATUS_LINE = re.compile(rb"HTTP/1\.1 (\d{3}) ")


class Connection:
    """A socket whose every byte is under the client's control: nothing is read ahead."""

    def __init__(self, port: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._socket = socket.socket()
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT)
        self._port = port
        self.received = bytearray()

    async def open(self) -> None:
        """Connect."""
        await self._loop.sock_connect(self._socket, ("127.0.0.1", self._port))

    async def send(self, data: bytes) -> None:
        """Send all of it."""
        await self._loop.sock_sendall(self._socket, data)

    async def trickle(self, data: bytes, choose: random.Random) -> None:
        """Send it a few bytes at a time."""
        while data:
            size = choose.randrange(1, 12)
            await self.send(data[:size])
            await asyncio.sleep(choose.uniform(0, 0.02))
            data = data[size:]

    async def read(self, most: int, piece: int = 65536) -> bool:
        """Read up to `most` bytes, at most `piece` at a time; False when the server ended the answer before."""
        while most > 0:
            data = await self._loop.sock_recv(self._socket, min(piece, most))
            if not data:
                return False
            self.received += data
            most -= len(data)
        return True

    async def read_all(self, piece: int = 65536) -> list[int]:
        """Read until the server ends the connection; the statuses of all answers."""
        while await self.read(1 << 20, piece):
            pass
        return [int(status) for status in _STATUS_LINE.findall(self.received)]

    def end_sending(self) -> None:
        """Close this side only."""
        self._socket.shutdown(socket.SHUT_WR)

    def vanish(self) -> None:
        """Drop the connection: the server gets a reset."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    def close(self) -> None:
        """Idempotent."""
        self._socket.close()


class Held:
    """Where clients stay that do nothing more, until they are let go."""

    def __init__(self) -> None:
        self.num_clients = 0
        self._released = asyncio.Event()

    async def stay(self) -> None:
        """Until `release`."""
        self.num_clients += 1
        await self._released.wait()

    def release(self) -> None:
        """Let all go."""
        self._released.set()


Behaviour = Callable[[Connection, random.Random, Held], Awaitable[list[int]]]


def _right(choose: random.Random) -> bytes:
    path, body = right_request(choose)
    return http_bytes(path, json.dumps(body).encode())


async def reads_byte_by_byte(connection: Connection, choose: random.Random, held: Held) -> list[int]:
    """The first bytes one at a time, the rest in small pieces."""
    await connection.send(_right(choose))
    if await connection.read(choose.randrange(200, 3000), piece=1):
        return await connection.read_all(piece=choose.randrange(64, 2048))
    return await connection.read_all()


async def stops_reading(connection: Connection, choose: random.Random, held: Held) -> list[int]:
    """A large answer is asked for, some of it is read, and the socket is kept."""
    path, body = long_chat(choose)
    await connection.send(http_bytes(path, json.dumps(body).encode(), closes=choose.random() < 0.5))
    await connection.read(choose.choice((0, 1, 300, 5000)))
    await held.stay()
    return []


async def vanishes(connection: Connection, choose: random.Random, held: Held) -> list[int]:
    """Within the head, within the body, or after some bytes of the answer."""
    request = _right(choose)
    head, separator, body = request.partition(b"\r\n\r\n")
    moment = choose.randrange(4)
    if moment == 0:
        await connection.send(request[: choose.randrange(len(head))])
    elif moment == 1:
        await connection.send(head + separator + body[: choose.randrange(len(body))])
    else:
        await connection.send(request)
        await connection.read(0 if moment == 2 else choose.randrange(1, 4000))
    connection.vanish()
    return []


async def vanishes_later(connection: Connection, choose: random.Random, held: Held) -> list[int]:
    """Some time after the request, with whatever had come."""
    path, body = choose.choice((right_request, long_chat))(choose)
    await connection.send(http_bytes(path, json.dumps(body).encode()))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(choose.uniform(0, 3)):
            await connection.read(1 << 24)
    connection.vanish()
    return []


async def closes_half(connection: Connection, choose: random.Random, held: Held) -> list[int]:
    """Its own side, after the request or within it; uvicorn takes that for leaving."""
    request = _right(choose)
    await connection.send(choose.choice((request, request[: choose.randrange(len(request))])))
    connection.end_sending()
    return await connection.read_all()


async def is_slow_to_ask(connection: Connection, choose: random.Random, held: Held) -> list[int]:
    """The head comes a few bytes at a time, and then the body."""
    request = _right(choose)
    num_slow = choose.randrange(60, 200)
    await connection.trickle(request[:num_slow], choose)
    await connection.send(request[num_slow:])
    return await connection.read_all()


async def never_asks(connection: Connection, choose: random.Random, held: Held) -> list[int]:
    """The head is never complete; the server ends that."""
    head = _right(choose).partition(b"\r\n\r\n")[0]
    await connection.send(head[: choose.randrange(len(head))])
    return await connection.read_all()


async def never_ends_its_body(connection: Connection, choose: random.Random, held: Held) -> list[int]:
    """The server answers that it waited too long."""
    await connection.send(_right(choose)[: -choose.randrange(1, 20)])
    return await connection.read_all()


async def sends_garbage(connection: Connection, choose: random.Random, held: Held) -> list[int]:
    """No HTTP, or nearly."""
    path, body = wrong_request(choose)
    nearly: tuple[bytes, ...] = (
        choose.randbytes(choose.randrange(1, 5000)) + b"\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00" + choose.randbytes(300) + b"\n\n",
        b"POST " + path.encode() + b" HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
        b"POST " + path.encode() + b" HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n" + body,
        b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Long: " + b"a" * 200_000 + b"\r\n\r\n",
    )
    with contextlib.suppress(ConnectionError):  # the server need not read all of it
        await connection.send(choose.choice(nearly))
        return await connection.read_all()
    return []


async def asks_wrongly(connection: Connection, choose: random.Random, held: Held) -> list[int]:
    """A body that is refused."""
    await connection.send(http_bytes(*wrong_request(choose)))
    return await connection.read_all()


async def asks_ahead(connection: Connection, choose: random.Random, held: Held) -> list[int]:
    """Several requests at once on one connection, whose answers come in their order."""
    requests = [right_request(choose, most=20) for _ in range(choose.randrange(1, 4))]
    sent = [http_bytes(path, json.dumps(body).encode(), closes=False) for path, body in requests]
    await connection.send(b"".join(sent) + _right(choose))
    return await connection.read_all()


async def asks_ahead_and_vanishes(connection: Connection, choose: random.Random, held: Held) -> list[int]:
    """As `asks_ahead`, but it leaves within the first answer, with requests that nobody will read the answers of."""
    path, body = right_request(choose)
    await connection.send(http_bytes(path, json.dumps(body).encode(), closes=False) * choose.randrange(2, 30))
    await connection.read(choose.randrange(1, 500))
    connection.vanish()
    return []


ANSWERED = frozenset({200, 429})
REFUSED = frozenset({400, 404, 405, 408, 413, 422})

BEHAVIOURS: dict[Behaviour, frozenset[int]] = {
    reads_byte_by_byte: ANSWERED,
    stops_reading: frozenset(),
    vanishes: frozenset(),
    vanishes_later: frozenset(),
    closes_half: ANSWERED | REFUSED,
    is_slow_to_ask: ANSWERED,
    never_asks: frozenset(),
    never_ends_its_body: frozenset({408}),
    sends_garbage: REFUSED,
    asks_wrongly: REFUSED,
    asks_ahead: ANSWERED,
    asks_ahead_and_vanishes: frozenset(),
}
"""With the statuses that its answers may have."""


async def misbehave(port: int, number: int, seed: int, spread: float, held: Held) -> str:
    """Client `number` of a wave comes within `spread` seconds and does its worst; the name of what it did.

    Raises `AssertionError` for an answer that it should not have got.
    """
    choose = random.Random(f"{seed}/{number}")
    behaviour = list(BEHAVIOURS)[number % len(BEHAVIOURS)]
    await asyncio.sleep(choose.uniform(0, spread))
    connection = Connection(port)
    try:
        await connection.open()
        statuses = await behaviour(connection, choose, held)
    finally:
        connection.close()
    name = str(getattr(behaviour, "__name__", behaviour))
    assert set(statuses) <= BEHAVIOURS[behaviour], f"{seed}/{number} {name}: {bytes(connection.received[:2000])!r}"
    return name
