"""Gives every request an id and a log line, counts it, and answers unexpected errors.

It is an ASGI layer, so that streams pass through unchanged. Inner layers and routes may add response headers
(`response_headers` in the request's state) and fields of the log line (`log_fields`).
"""

from __future__ import annotations

import logging
import re
import time
import uuid
from typing import Any
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.http.failures import response_of
from server.api.http.metrics import Metrics
from server.api.http.observed import observe
from server.errors import ApiError

_log = logging.getLogger("tiller.access")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_CLIENT_LEFT = 499


class RequestLogLayer:
    """Gives requests an id (the client's `x-request-id`, if it is valid) and writes the access log."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else f"req-{uuid.uuid4().hex}"
        scope.setdefault("state", {})["request_id"] = request_id
        status: int | None = None

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                headers.update(scope["state"].get("response_headers", {}))
            await send(message)

        record = observe()
        started_at = time.perf_counter()
        path = quote(scope["path"][:500])
        what = f"{request_id} {scope['method']} {path}"
        fields = {"request_id": request_id, "method": scope["method"], "path": path}
        extra: dict[str, Any] = {"request_id": request_id, "fields": fields}
        try:
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            status = _CLIENT_LEFT
        except Exception:  # the log gets the details, the client only the fact
            _log.exception("%s failed", what, extra=extra)
            if status is None:
                error = ApiError("the server failed; the details are in its log", code="internal_error")
                await response_of(error)(scope, receive, send_with_id)
        finally:
            seconds = time.perf_counter() - started_at
            self._metrics.count_response(status or 500)
            fields |= {"status": status, "seconds": round(seconds, 6), **record.fields()}
            fields |= scope["state"].get("log_fields", {})
            _log.info("%s %s %.3fs", what, status, seconds, extra=extra)
