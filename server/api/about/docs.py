"""`/openapi.json`, and the page `/docs` that shows it. Both are open, like `/health`, and reveal nothing
about the model.

The page loads nothing from other servers, and its policy lets it talk only to this one.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, Response

from server.api.about.openapi import document_of
from server.api.http.description import JSON, Header, Success, describe

_PAGE = Path(__file__).with_name("docs.html")
_INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)
_POLICY = Header("content-security-policy", "Restricts the page to requests to this server.", {"type": "string"})


def router_for(routers: Sequence[APIRouter]) -> APIRouter:
    """The routes that describe those of `routers` and themselves."""
    router = APIRouter(tags=["Operation"])
    page = _PAGE.read_text(encoding="utf-8")
    headers = {"Content-Security-Policy": _policy_of(page), "X-Content-Type-Options": "nosniff"}
    known: list[bytes] = []

    def document() -> bytes:
        """Built on the first request."""
        if not known:
            known.append(json.dumps(document_of([*routers, router]), ensure_ascii=False).encode())
        return known[0]

    @router.get("/openapi.json")
    @describe(Success(dict, "The OpenAPI document."))
    async def get_openapi(request: Request) -> Response:
        """Get this document."""
        return Response(await run_sync(document), media_type=JSON)

    @router.get("/docs")
    @describe(Success(None, "The HTML page.", media_type="text/html", headers=(_POLICY,)))
    async def get_docs(request: Request) -> Response:
        """Show this document as a page where operations can be tried."""
        return HTMLResponse(page, headers=headers)

    return router


def _policy_of(page: str) -> str:
    """The policy of the page: it may use its own script and style, and send requests to its own server."""
    hashes = {
        name: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for name, text in _INLINE.findall(page)
    }
    return (
        f"default-src 'none'; script-src 'sha256-{hashes['script']}'; style-src 'sha256-{hashes['style']}'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
