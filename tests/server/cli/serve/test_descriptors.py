"""Clients that hold every file descriptor: who has a connection is served, the log stays short, and it passes."""

from __future__ import annotations

import contextlib
import http.client
import resource
import signal
import socket
import subprocess
import sys

from tests.server.cli.running import DEADLINE, ROOT

MOST_OPEN = 40
MOST_FAILURES = 500

SERVER = """
import logging, sys
from uvicorn.protocols.http.h11_impl import H11Protocol
from server.cli.serve.listening import DrainingServer, bind

async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body"})

class Failures(logging.Handler):
    count = 0

    def emit(self, record):
        if "out of system resource" in record.getMessage():
            self.count += 1
            if self.count == 1:
                print("none left", flush=True)

failures = Failures()
logging.getLogger("asyncio").addHandler(failures)
bound = bind("127.0.0.1", 0)
server = DrainingServer(
    app,
    protocol=H11Protocol,
    on_ready=lambda: print(bound.getsockname()[1], flush=True),
    drain=lambda seconds: None,
    drain_seconds=60.0,
)
status = server.run_on(bound)
print(failures.count, flush=True)
sys.exit(status)
"""


def limit() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (MOST_OPEN, MOST_OPEN))


def answers(connection: http.client.HTTPConnection) -> bool:
    connection.request("GET", "/")
    response = connection.getresponse()
    response.read()
    return response.status == 200


def test_who_is_connected_is_served_while_no_descriptor_is_left() -> None:
    command = [sys.executable, "-u", "-c", SERVER]
    with (
        subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8", preexec_fn=limit
        ) as server,
        contextlib.ExitStack() as ending,
    ):
        ending.callback(server.kill)
        assert server.stdout is not None
        address = ("127.0.0.1", int(server.stdout.readline()))
        first = http.client.HTTPConnection(*address, timeout=DEADLINE)
        assert answers(first)
        others = [socket.create_connection(address, timeout=DEADLINE) for _ in range(2 * MOST_OPEN)]
        assert server.stdout.readline() == "none left\n"
        assert all(answers(first) for _ in range(10))
        for other in others:
            other.close()
        first.close()
        with contextlib.closing(http.client.HTTPConnection(*address, timeout=DEADLINE)) as later:
            assert answers(later)
        server.send_signal(signal.SIGTERM)
        assert server.wait(DEADLINE) == 0
        assert int(server.stdout.readline()) < MOST_FAILURES
