"""How long a request may take: its body to arrive, and all of it.

A layer around `receive`: whoever waits for the client, for more of its body or for its leaving, learns there that the
time is up; `server.api.http.connection` then stops the work.
"""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import ApiError, BodyTooSlow, TimedOut

BODY_BYTES_PER_SECOND = 8 << 10
"""A body may take this much longer for what has arrived of it, so that large uploads over slow lines get through."""


class TimeoutLayer:
    """Makes `receive` raise `BodyTooSlow` or `TimedOut`. `request_seconds` None: as long as it takes."""

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
        # an OpenAI client would send a request that takes too long twice more
        return TimedOut(
            f"the request took longer than the {self._request_seconds or 0:g} s that this server gives one",
            headers={"x-should-retry": "false"},
        )


def _too_slow() -> BodyTooSlow:
    return BodyTooSlow("the request's body did not arrive in time", headers={"Connection": "close"})
