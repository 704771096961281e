"""Connections that nobody serves for ever: those whose request does not begin, and those whose answer nobody takes.

uvicorn's HTTP protocol with two time-outs that it lacks, and an end for requests whose client breaks the protocol in
the middle. A client that is slow, but gets on, is left alone. It does not know requests' bodies, nor what is answered;
`server.api.http.timeouts` is about those.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class TimedProtocol(H11Protocol):
    """One connection."""

    head_seconds: ClassVar[float]
    """How long a request's head may take, from when the connection was made, or from its first byte on a used one."""
    send_seconds: ClassVar[float]
    """After so long in which the client took nothing of what is to be sent, it is cut off."""

    _head_timer: asyncio.TimerHandle | None = None
    _send_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn does
        """It begins."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(0)  # writing is paused whenever anything is left to be sent
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        """Something came."""
        super().data_received(data)
        self._watch_head()

    def pause_writing(self) -> None:
        """The client does not take what is sent as fast as it is made."""
        super().pause_writing()
        self._watch_sending()

    def resume_writing(self) -> None:
        """The client has everything, or the operating system will see to it."""
        super().resume_writing()
        self._stop_send_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        self._stop_head_timer()
        self._stop_send_timer()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """The client broke the protocol: it is told, unless it is being answered, and for the request it is gone."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.close()
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()

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
            connection = self.transport.get_extra_info("socket")  # with a reset, or its system buffers would wait on
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
    """What makes such connections, for `uvicorn.Config(http=…)`."""
    return type("TimedProtocol", (TimedProtocol,), {"head_seconds": head_seconds, "send_seconds": send_seconds})
