"""Server-sent events: the only place that formats `data:` and `event:`.

Once the first byte is sent, an error can only be an event, and the stream then closes. A stream that is silent for long
gets comments, which clients skip, so that no proxy drops it. A client that does not read stops the sending: nothing is
formatted before the server can send it, and only the engine's events queue up, at most `max_tokens` per choice.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.api.http.connection import while_connected
from server.api.http.failures import envelope_of
from server.api.http.objects import TypedObject
from server.api.http.services import services_of
from server.errors import ApiError, from_vectors_error
from vectors.errors import StorageFailed

_log = logging.getLogger(__name__)

_DONE = b"data: [DONE]\n\n"
_COMMENT = b": keep-alive\n\n"

_LINE_ENDS = {ord(character): f"\\u{ord(character):04x}" for character in "\x85\u2028\u2029"}
"""Line separators of Unicode that JSON does not escape; many clients split a stream there."""

_LAST_EVENT_SECONDS = 5.0
"""How long a client may take to receive the error that its time is up."""


def format_event(payload: TypedObject, *, is_named: bool = False) -> bytes:
    """One event; a named one takes its name from the `type` of its payload."""
    name = f"event: {payload['type']}\n" if is_named else ""
    data = json.dumps(payload, ensure_ascii=False, separators=(",", ":")).translate(_LINE_ENDS)
    return f"{name}data: {data}\n\n".encode()


class EventStream(Response):
    """Sends `payloads` as events. `close` is always called at the end, also if the client left.

    A stream of events without names ends with `[DONE]`; in one of named events, the name of the last event marks the
    end. `failed` makes the payload of an error.
    """

    def __init__(
        self,
        payloads: AsyncIterator[TypedObject],
        *,
        close: Callable[[], None],
        failed: Callable[[ApiError], TypedObject] = envelope_of,
        is_named: bool = False,
    ) -> None:
        super().__init__(None, media_type="text/event-stream")
        del self.headers["content-length"]
        self.headers["cache-control"] = "no-cache"
        self.headers["x-accel-buffering"] = "no"
        self._payloads = payloads
        self._close = close
        self._failed = failed
        self._is_named = is_named
        self._is_started = False
        self._sent_at = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the end, until the client leaves, or until the request's time is up."""
        try:
            await while_connected(receive, self._send_all(scope, send))
        except ApiError as error:
            if not self._is_started:
                raise
            await self._send_last(send, self._failure(error))
        finally:
            self._close()

    async def _send_all(self, scope: Scope, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        self._is_started = True
        self._note_sent()
        seconds = services_of(Request(scope)).settings.stream_keep_alive
        comments = asyncio.ensure_future(self._send_comments(send, seconds))
        try:
            async for body in self._events(scope):
                await send({"type": "http.response.body", "body": body, "more_body": True})
                self._note_sent()
                await asyncio.sleep(0)  # a backlog must not block other requests, nor go on after the client left
        finally:
            comments.cancel()
            await asyncio.gather(comments, return_exceptions=True)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_comments(self, send: Send, seconds: float) -> None:
        """Send a comment whenever nothing was sent for `seconds`; each `send` is one whole comment or event."""
        while True:
            silent = asyncio.get_running_loop().time() - self._sent_at
            if silent < seconds:
                await asyncio.sleep(seconds - silent)
            else:
                await send({"type": "http.response.body", "body": _COMMENT, "more_body": True})
                self._note_sent()

    async def _send_last(self, send: Send, body: bytes) -> None:
        try:
            async with asyncio.timeout(_LAST_EVENT_SECONDS):
                await send({"type": "http.response.body", "body": body, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except TimeoutError:
            raise ClientDisconnect from None  # a client that reads nothing counts as gone

    def _note_sent(self) -> None:
        self._sent_at = asyncio.get_running_loop().time()

    async def _events(self, scope: Scope) -> AsyncIterator[bytes]:
        try:
            async for payload in self._payloads:
                yield format_event(payload, is_named=self._is_named)
            if not self._is_named:
                yield _DONE
        except ApiError as error:
            yield self._failure(error)
        except StorageFailed as error:
            _log.error("%s", error)
            yield self._failure(from_vectors_error(error))
        except Exception:  # the client must learn that the answer is incomplete, and nothing more
            request_id = scope.get("state", {}).get("request_id", "-")
            _log.exception("%s stream failed", request_id, extra={"fields": {"request_id": request_id}})
            yield self._failure(ApiError("the server failed; the details are in its log", code="internal_error"))

    def _failure(self, error: ApiError) -> bytes:
        return format_event(self._failed(error), is_named=self._is_named)
