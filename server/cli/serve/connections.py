"""Time-outs for connections whose request never starts or whose answer is never read.

uvicorn's HTTP protocol with two time-outs that it lacks; it also ends requests whose client breaks the protocol midway,
and connections on which a body goes on after it was refused.
A slow client that makes progress is left alone. Time-outs of bodies and answers are in `server.api.http.timeouts`.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_LATE_BYTES = 64 << 10
"""The most bytes of a body that are read after its request was answered: enough for the next request to follow."""

MAX_HEAD_BYTES = 64 << 10
"""The most bytes of a request's head."""

MAX_SMALL_CHUNKS = 4096
"""How many chunks a body may have whatever their size; beyond, they must bring `MIN_CHUNK_BYTES` each on average."""

MIN_CHUNK_BYTES = 64


class _BoundedConnection(h11.Connection):
    """The protocol of a connection, which refuses other versions of HTTP than 1.x, and bodies in tiny chunks.

    h11 reads any version as if it were 1.1. Each chunk costs as much as a large one.
    """

    num_late_bytes = 0
    """Bytes of the present request that came after its answer was complete."""
    _num_chunks = 0
    _num_bytes = 0

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """The next event. Raises `h11.RemoteProtocolError`."""
        event = super().next_event()
        if isinstance(event, h11.Request):
            if not event.http_version.startswith(b"1."):
                raise h11.RemoteProtocolError("expected HTTP/1.1")
            self._num_chunks = self._num_bytes = self.num_late_bytes = 0
        elif isinstance(event, h11.Data):
            self._num_chunks += event.chunk_start  # one that comes in parts counts once
            self._num_bytes += len(event.data)
            if self._num_chunks > max(MAX_SMALL_CHUNKS, self._num_bytes // MIN_CHUNK_BYTES):
                raise h11.RemoteProtocolError("the chunks of the body are too small")
        return event


class TimedProtocol(H11Protocol):
    """One connection."""

    head_seconds: ClassVar[float]
    """Seconds for a request's head, from the start of the connection, or from its first byte on a reused one."""
    send_seconds: ClassVar[float]
    """Seconds without the client reading anything to be sent after which it is disconnected."""

    conn: _BoundedConnection
    _head_timer: asyncio.TimerHandle | None = None
    _send_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn does
        """The connection begins."""
        self.conn = _BoundedConnection(h11.SERVER, self.config.h11_max_incomplete_event_size or MAX_HEAD_BYTES)
        super().connection_made(transport)
        transport.set_write_buffer_limits(0)  # pause writing whenever anything is left to be sent
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        """Data arrived. A body that goes on although its request is answered ends the connection."""
        if self._is_answered_early:
            self.conn.num_late_bytes += len(data)
            if self.conn.num_late_bytes > MAX_LATE_BYTES:
                self.transport.close()
                return
        super().data_received(data)
        self._watch_head()

    def pause_writing(self) -> None:
        """The client reads more slowly than the answer is produced."""
        super().pause_writing()
        self._watch_sending()

    def resume_writing(self) -> None:
        """The client has everything, or the operating system has the rest."""
        super().resume_writing()
        self._stop_send_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection ended."""
        self._stop_head_timer()
        self._stop_send_timer()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """The client broke the protocol: tell it, unless an answer has begun, and treat it as disconnected."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.close()
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    @property
    def _is_answered_early(self) -> bool:
        """True when the answer is complete and the request is not."""
        return self.cycle is not None and self.cycle.response_complete and self.conn.their_state is h11.SEND_BODY

    def _watch_head(self) -> None:
        is_awaited = self.cycle is None or self.cycle.response_complete
        if not is_awaited or self.transport.is_closing():
            self._stop_head_timer()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(self.head_seconds, self.timeout_keep_alive_handler)

    def _watch_sending(self) -> None:
        left = self.transport.get_write_buffer_size()
        self._send_timer = self.loop.call_later(self.send_seconds, self._cut_off_unless_below, left)

    def _cut_off_unless_below(self, num_bytes: int) -> None:
        if self.transport.get_write_buffer_size() < num_bytes:
            self._watch_sending()
        else:
            connection = self.transport.get_extra_info("socket")  # reset it, or system buffers would wait on
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_send_timer(self) -> None:
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None


def timed_protocol(head_seconds: float, send_seconds: float) -> type[TimedProtocol]:
    """The factory of such connections, for `uvicorn.Config(http=…)`."""
    return type("TimedProtocol", (TimedProtocol,), {"head_seconds": head_seconds, "send_seconds": send_seconds})
