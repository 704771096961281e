"""Which web pages may call the server from a browser: `--cors-origin`.

This is the outermost layer, so that errors and streams also get its headers. It only decides what a browser shows to a
page; `server.api.http.auth` decides who may call.
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
    "x-ratelimit-limit-tokens",
    "x-ratelimit-remaining-tokens",
    "x-ratelimit-reset-tokens",
)
"""Response headers that a page may read, besides those that every page may."""


class CorsLayer(CORSMiddleware):
    """Starlette's layer for `origins`, with refusals in OpenAI's envelope. It needs no cookies: keys are headers.

    An allowed page may also call a server on its own machine or network (private network access).
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
        """The response to a preflight request."""
        answer = super().preflight_response(request_headers)
        if answer.status_code < 400:
            return answer
        reason = bytes(answer.body).decode()
        return response_of(Forbidden(f"{reason}; this server's --cors-origin does not allow it", code="cross_origin"))
