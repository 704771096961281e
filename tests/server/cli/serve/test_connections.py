"""Connections end when no request begins on them and when nobody takes what is sent; slow ones that get on do not."""

from __future__ import annotations

import contextlib
import errno
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.cli.serve.connections import MAX_SMALL_CHUNKS, MIN_CHUNK_BYTES, timed_protocol
from tests.server.api.http.misbehaving import RECEIVE_BUFFER, SEGMENT
from tests.server.api.serving import Server, eventually, serving

HEAD = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n"
LONG: dict[str, Any] = {
    "messages": [{"role": "user", "content": "hi"}],
    "n": 4,
    "max_tokens": 400,
    "ignore_eos": True,
    "logprobs": True,
    "top_logprobs": 20,
}


@pytest.fixture
def timed(tmp_path: Path) -> Iterator[Server]:
    """A server that waits 0.3 s for a head, and 0.3 s for who does not read."""
    with serving(tmp_path, http=timed_protocol(0.3, 0.3)) as server:
        yield server


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that waits for a minute."""
    with serving(tmp_path_factory.mktemp("data"), http=timed_protocol(60, 60)) as server:
        yield server


def connect(server: Server) -> socket.socket:
    """A connection whose buffers are small."""
    connection = socket.socket()
    connection.settimeout(60)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT)
    connection.connect(("127.0.0.1", int(server.url.rpartition(":")[2])))
    return connection


def read_all(connection: socket.socket) -> bytes:
    """Everything until the server ends the connection."""
    return b"".join(iter(lambda: connection.recv(65536), b""))


def chat(*, stream: bool) -> bytes:
    """A request whose answer is larger than the buffers."""
    body = json.dumps(LONG | {"stream": stream}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def gets_on(connection: socket.socket) -> bool:
    """Send header after header, until the server does not take them any more: then False."""
    for _ in range(2000):
        try:
            connection.sendall(b"X: 1\r\n")
            if connection.recv(1) == b"":
                return False
        except TimeoutError:
            continue
        except ConnectionError:
            return False
    return True


@pytest.mark.parametrize("sent", [b"", b"G", HEAD])
def test_a_head_that_is_never_complete_ends_the_connection(timed: Server, sent: bytes) -> None:
    with connect(timed) as connection:
        connection.sendall(sent)
        assert read_all(connection) == b""


@pytest.mark.parametrize(
    ("start", "status"), [("GET /health HTTP/1.0", 200), ("GET / HTTP/9.9", 400), ("PRI * HTTP/2.0", 400)]
)
def test_other_versions_of_http_are_refused(timed: Server, start: str, status: int) -> None:
    with connect(timed) as connection:
        connection.sendall(f"{start}\r\nHost: 127.0.0.1\r\n\r\n".encode())
        assert read_all(connection).startswith(f"HTTP/1.1 {status} ".encode())


def test_so_does_one_that_grows_but_never_ends(timed: Server) -> None:
    with connect(timed) as connection:
        connection.sendall(HEAD)
        connection.settimeout(0.01)
        assert not gets_on(connection)


def test_and_the_second_head_on_a_connection(timed: Server) -> None:
    with connect(timed) as connection:
        connection.sendall(HEAD + b"\r\n")
        while not connection.recv(65536).endswith(b'{"status":"ok"}'):
            pass
        connection.sendall(HEAD)
        assert read_all(connection) == b""


def test_a_connection_may_be_used_again(timed: Server) -> None:
    with connect(timed) as connection:
        for _ in range(20):
            connection.sendall(HEAD[:10])
            connection.sendall(HEAD[10:] + b"\r\n")
            while not connection.recv(65536).endswith(b'{"status":"ok"}'):
                pass


@pytest.mark.parametrize("stream", [True, False])
def test_who_does_not_read_is_cut_off(timed: Server, stream: bool) -> None:
    with connect(timed) as connection:
        connection.sendall(chat(stream=stream))
        eventually(lambda: timed.engine.stats().total_requests == LONG["n"])
        eventually(lambda: connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET)
        eventually(timed.is_idle)
    assert timed.http.get("/health").status_code == 200


@pytest.mark.slow
def test_who_reads_slowly_gets_everything(tmp_path: Path) -> None:
    """It takes longer than a client may take nothing, and something of the answer waits all the time."""
    pause = threading.Event()
    with serving(tmp_path, http=timed_protocol(2, 2)) as server, connect(server) as connection:
        connection.sendall(chat(stream=False))
        received = connection.recv(1)
        started_at = time.monotonic()
        while data := connection.recv(16384):
            received += data
            last_at = time.monotonic()
            pause.wait(0.008)
    assert last_at - started_at > 2 * 2, "it was no slow reader"
    answer = json.loads(received.partition(b"\r\n\r\n")[2])
    assert [choice["finish_reason"] for choice in answer["choices"]] == ["length"] * LONG["n"]


@pytest.mark.parametrize("head", ["Host: elsewhere", "Host: 127.0.0.1"])
def test_a_broken_body_is_400_and_no_failure_of_the_server(
    timed: Server, head: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether the request was answered before it broke (403, another host) or not."""
    request = f"POST /v1/completions HTTP/1.1\r\n{head}\r\nTransfer-Encoding: chunked\r\n\r\n"
    with connect(timed) as connection:
        connection.sendall(request.encode() + b"zz\r\n")
        assert b" 400 " in read_all(connection)
    with connect(timed) as connection:
        connection.sendall(request.encode() + b"2\r\n{}\r\n")
        if "elsewhere" in head:
            received = b""
            while b"cross_origin" not in received:
                received += connection.recv(65536)
        connection.sendall(b"zz\r\n")
        read_all(connection)
    assert timed.http.get("/health").status_code == 200
    assert [record for record in caplog.records if record.exc_info] == []


def read_answer(connection: socket.socket) -> bytes:
    """One whole answer."""
    answer = b""
    while (found := re.search(rb"content-length: (\d+)\r\n(?s:.*)\r\n\r\n", answer, re.IGNORECASE)) is None or (
        len(answer) < found.end() + int(found[1])
    ):
        answer += connection.recv(65536)
    return answer


def num_taken(connection: socket.socket, data: bytes, most: int) -> int:
    """How often `data` can be sent until the server ends the connection, at most `most` times."""
    for number in range(most):
        try:
            connection.sendall(data)
        except ConnectionError:
            return number
    return most


def test_a_body_that_goes_on_after_its_answer_ends_the_connection(patient: Server) -> None:
    """It would be read for as long as it lasts, and thrown away."""
    piece = b"x" * 65536
    with connect(patient) as connection:
        connection.sendall(b"POST /v1/nowhere HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000000000\r\n\r\nx")
        assert read_answer(connection).startswith(b"HTTP/1.1 404")
        assert num_taken(connection, piece, 1000) < 1000


def test_a_body_that_ends_soon_after_its_answer_keeps_the_connection(patient: Server) -> None:
    with connect(patient) as connection:
        for _ in range(3):
            connection.sendall(b"POST /v1/nowhere HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 50000\r\n\r\n")
            assert read_answer(connection).startswith(b"HTTP/1.1 404")
            connection.sendall(b"x" * 50000)
        connection.sendall(HEAD + b"Connection: close\r\n\r\n")
        assert read_all(connection).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(("size", "status"), [(1, b"400"), (MIN_CHUNK_BYTES, b"200")])
def test_a_body_in_tiny_chunks_is_refused(patient: Server, size: int, status: bytes) -> None:
    """A chunk costs the server as much whatever is in it."""
    body = b'{"prompt": "a", "max_tokens": 1' + b" " * (size * (MAX_SMALL_CHUNKS + 100)) + b"}"
    chunks = b"".join(b"%x\r\n%s\r\n" % (size, body[at : at + size].ljust(size)) for at in range(0, len(body), size))
    head = b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    with connect(patient) as connection:
        connection.sendall(head + chunks)
        with contextlib.suppress(ConnectionError):
            connection.sendall(b"0\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 " + status)
