"""Time limits of a request: for its body to arrive, and for all of it.

It is a layer around `receive`, which raises when the time is up; `server.api.http.connection` then stops the work.
"""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import ApiError, BodyTooSlow, TimedOut

BODY_BYTES_PER_SECOND = 8 << 10
"""Bytes that a body must bring per extra second, so that large uploads over slow lines succeed."""


class TimeoutLayer:
    """Makes `receive` raise `BodyTooSlow` or `TimedOut`. `request_seconds` None: no limit."""

    def __init__(self, app: ASGIApp, *, request_seconds: float | None, body_seconds: float) -> None:
        self._app = app
        self._request_seconds = request_seconds
        self._body_seconds = body_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_at = asyncio.get_running_loop().time()
        is_whole = False
        num_bytes = 0

        async def receive_in_time() -> Message:
            nonlocal is_whole, num_bytes
            seconds = self._request_seconds
            error: ApiError = self._too_long()
            if not is_whole:
                body_seconds = self._body_seconds + num_bytes / BODY_BYTES_PER_SECOND
                if seconds is None or body_seconds < seconds:
                    seconds, error = body_seconds, _too_slow()
            try:
                async with asyncio.timeout_at(None if seconds is None else started_at + seconds):
                    message = await receive()
            except TimeoutError:
                raise error from None
            num_bytes += len(message.get("body", b""))
            is_whole = is_whole or not message.get("more_body", False)
            return message

        await self._app(scope, receive_in_time, send)

    def _too_long(self) -> TimedOut:
        # an OpenAI client would retry a request that takes too long
        return TimedOut(
            f"the request exceeded the server's time limit of {self._request_seconds or 0:g} s",
            headers={"x-should-retry": "false"},
        )


def _too_slow() -> BodyTooSlow:
    return BodyTooSlow("the request's body did not arrive in time", headers={"Connection": "close"})
