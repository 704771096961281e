"""Corrects the paths of requests: base URLs come with a slash too many, or without `/v1`.

It is outside of every layer that looks at a path, so that keys, limits, logs and errors all see the corrected one.
"""

from __future__ import annotations

import re

from starlette.routing import Match
from starlette.types import ASGIApp, Receive, Scope, Send

_SLASHES = re.compile(r"/{2,}")
_VERSION = "/v1"


class PathLayer:
    """Joins repeated slashes, drops a trailing one, a repeated `/v1`, and adds a missing one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] == "http":
            path = _corrected(scope)
            if path != scope["path"]:
                scope = {**scope, "path": path, "raw_path": path.encode()}
        await self._app(scope, receive, send)


def _corrected(scope: Scope) -> str:
    path = _SLASHES.sub("/", scope["path"])
    path = path.rstrip("/") or "/"
    while path.startswith(f"{_VERSION}{_VERSION}/"):
        path = path.removeprefix(_VERSION)
    if not path.startswith(f"{_VERSION}/") and not _leads_to_route(scope, path):
        versioned = f"{_VERSION}{path}"
        if _leads_to_route(scope, versioned):
            return versioned
    return path


def _leads_to_route(scope: Scope, path: str) -> bool:
    """True when some route has this path, whatever its methods."""
    routes = scope["app"].router.routes
    return any(route.matches({**scope, "path": path})[0] is not Match.NONE for route in routes)
