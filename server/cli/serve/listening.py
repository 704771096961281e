"""The listening socket, and the HTTP server whose first Ctrl-C drains and whose second one stops at once."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn

from server.cli.errors import CommandFailed
from server.cli.signals import handling, status_of

_log = logging.getLogger(__name__)

FLUSH_SECONDS = 5
"""Seconds for connections to receive the rest of their answers after the last request ended."""

_CUT_OFF_SECONDS = 5
"""Seconds for the remaining requests to notice that their clients were disconnected."""

_LAST_SECONDS = FLUSH_SECONDS + _CUT_OFF_SECONDS
"""Seconds, of those in which the server ends, that running requests do not get."""

_NOT_IN_TIME = 1

_ACCEPTED_AT_ONCE = 8
"""Connections that are accepted before the event loop does something else.

While no file descriptor is left, asyncio tries so often, once a second, and logs each failure. It takes the number for
the length of the system's queue too, which is therefore set again.
"""

_MOST_NOT_ACCEPTED = 2048
"""Connections that the system keeps until they are accepted."""


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to `host` and `port` (0: a free one). Raises `CommandFailed`."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError):
        raise CommandFailed(f"--host {host}: no such address") from None
    family, kind, protocol, _, address = found[0]
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise cannot_listen(host, port, error) from None
    return bound


def cannot_listen(host: str, port: int, error: OSError) -> CommandFailed:
    """The failure for an `error` raised when binding or listening."""
    if error.errno == errno.EADDRINUSE:
        return CommandFailed(f"port {port} on {host} is in use; use another --port, or --port 0 for a free one")
    if error.errno == errno.EACCES:
        return CommandFailed(f"this account may not use port {port} on {host}; choose one above 1023 with --port")
    return CommandFailed(f"cannot listen on {host}, port {port}: {error.strerror or error}")


def url_of(bound: socket.socket) -> str:
    """Where a client on this machine finds the server."""
    host, port = bound.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1" if host == "0.0.0.0" else "::1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextlib.contextmanager
def hangups(stop: Callable[[], object]) -> Iterator[None]:
    """Within, SIGHUP calls `stop` where the process has a terminal, which is gone then; elsewhere it does nothing.

    Whoever started the process with SIGHUP ignored (`nohup`) keeps that.
    """
    if not hasattr(signal, "SIGHUP") or signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        yield
        return
    has_terminal = os.isatty(0)

    def handle(number: int, frame: FrameType | None) -> None:
        if has_terminal:
            stop()
        else:
            _log.warning("SIGHUP does nothing: there is nothing to read again; SIGTERM stops the server")

    with handling({signal.SIGHUP: handle}):
        yield


class DrainingServer(uvicorn.Server):
    """Calls `on_ready` when it is serving. `stop` or the first signal runs `drain` in a thread and then ends it.

    `protocol` speaks HTTP on each connection. After a signal the server ends within `drain_seconds`, or else the
    process is ended. `drain` is called with the seconds that running requests get of them.
    """

    def __init__(
        self,
        app: Callable[..., object],
        *,
        protocol: type[asyncio.Protocol],
        on_ready: Callable[[], None],
        drain: Callable[[float], None],
        drain_seconds: float,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=protocol,
                ws="none",
                log_config=None,
                access_log=False,  # `server.api.http.request_log` logs every exchange, with its id
                server_header=False,
                backlog=_ACCEPTED_AT_ONCE,
                timeout_graceful_shutdown=FLUSH_SECONDS + _CUT_OFF_SECONDS,
            )
        )
        self._on_ready = on_ready
        self._drain = drain
        self._drain_seconds = drain_seconds
        self._is_draining = threading.Lock()
        self.exit_status = 0
        """The status with which the process should end."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start serving, then call `on_ready`."""
        await super().startup(sockets)
        for bound in sockets or ():
            bound.listen(_MOST_NOT_ACCEPTED)
        if self.started:
            self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let connections receive the rest; a client that does not read then counts as disconnected."""
        asyncio.get_running_loop().call_later(FLUSH_SECONDS, self._cut_off)
        await super().shutdown(sockets)

    def _cut_off(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """First signal: drain. Second: stop at once, as the signal itself would have."""
        if not self.stop():
            os._exit(status_of(sig))

    def stop(self) -> bool:
        """Begin to end, from any thread; False if that has begun already."""
        for_requests = max(self._drain_seconds / 2, self._drain_seconds - _LAST_SECONDS)
        return self._begin_to_end(for_requests, self._drain_seconds)

    def fail(self, exit_status: int) -> bool:
        """Begin to end with `exit_status`, with no time for running requests; False if that has begun already."""
        if not self._begin_to_end(0.0, _LAST_SECONDS):
            return False
        self.exit_status = exit_status
        return True

    def _begin_to_end(self, seconds: float, limit_seconds: float) -> bool:
        if not self._is_draining.acquire(blocking=False):
            return False
        limit = threading.Timer(limit_seconds, self._end_process)
        limit.daemon = True
        limit.start()
        threading.Thread(target=self._finish, args=(seconds,), name="tiller-drain", daemon=True).start()
        return True

    def _finish(self, seconds: float) -> None:
        try:
            self._drain(seconds)
        finally:
            self.should_exit = True

    def _end_process(self) -> None:
        _log.critical("the server did not stop in time; the process ends now")
        logging.shutdown()
        os._exit(self.exit_status or _NOT_IN_TIME)

    def run_on(self, bound: socket.socket) -> int:
        """Serve on `bound` until the end; returns the exit status. Raises `OSError` if it cannot listen there."""
        with hangups(self.stop):
            asyncio.run(self.serve(sockets=[bound]))
        return self.exit_status
