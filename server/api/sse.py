"""Server-sent events: the only place that formats `data:`.

Once the first byte is out an error can only be an event; the stream then closes. It does not know what the payloads
mean.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.api.connection import while_connected
from server.errors import ApiError

_log = logging.getLogger(__name__)

_DONE = b"data: [DONE]\n\n"


def event(payload: dict[str, Any]) -> bytes:
    """One event."""
    return b"data: " + json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


class EventStream(Response):
    """Sends `payloads` as events, then `[DONE]`. `close` is called however it ends, also when the client left."""

    def __init__(self, payloads: AsyncIterator[dict[str, Any]], *, close: Callable[[], None]) -> None:
        super().__init__(None, media_type="text/event-stream")
        del self.headers["content-length"]
        self.headers["cache-control"] = "no-cache"
        self.headers["x-accel-buffering"] = "no"
        self._payloads = payloads
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the end, or until the client leaves."""
        try:
            await while_connected(receive, self._send_all(scope, send))
        finally:
            self._close()

    async def _send_all(self, scope: Scope, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for body in self._events(scope):
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _events(self, scope: Scope) -> AsyncIterator[bytes]:
        try:
            async for payload in self._payloads:
                yield event(payload)
            yield _DONE
        except ApiError as error:
            yield event(error.envelope())
        except Exception:  # the client must learn that the answer is incomplete, and nothing more
            request_id = scope.get("state", {}).get("request_id", "-")
            _log.exception("%s its stream failed", request_id, extra={"fields": {"request_id": request_id}})
            yield event(ApiError("the server failed; its log has the details", code="internal_error").envelope())
