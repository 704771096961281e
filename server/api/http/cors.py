"""Which web pages may call the server from a browser: `--cors-origin`.

The outermost layer, so that errors and streams carry its headers like any answer. It decides what a browser shows a
page; who may call at all is `server.api.http.auth`'s.
"""

from __future__ import annotations

from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from server.api.http.failures import response_of
from server.errors import Forbidden

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")

EXPOSED = (
    "x-request-id",
    "retry-after",
    "etag",
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
)
"""Headers of answers that a page may read, beside those that every page may."""


class CorsLayer(CORSMiddleware):
    """Starlette's layer for `origins`; its refusals leave as envelopes. Cookies are never asked for: keys are headers.

    A page on the network that may call is let through to a server on this machine too (private network access).
    """

    def __init__(self, app: ASGIApp, origins: Collection[str]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=METHODS,
            allow_headers=("*",),
            allow_private_network=True,
            expose_headers=EXPOSED,
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        """The answer to a browser that asks before it sends a page's request."""
        answer = super().preflight_response(request_headers)
        if answer.status_code < 400:
            return answer
        reason = bytes(answer.body).decode()
        return response_of(Forbidden(f"{reason}: this server's --cors-origin does not allow it", code="cross_origin"))
