"""`/openapi.json` and the page `/docs` that shows it: open, like `/health`; they tell nothing of what is served.

The page needs nothing from elsewhere, and its policy lets it talk to this server only.
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
_POLICY = Header("content-security-policy", "The page talks to this server only.", {"type": "string"})


def router_for(routers: Sequence[APIRouter]) -> APIRouter:
    """The routes that tell of those of `routers`, and of themselves."""
    router = APIRouter(tags=["Operation"])
    page = _PAGE.read_text(encoding="utf-8")
    headers = {"Content-Security-Policy": _policy_of(page), "X-Content-Type-Options": "nosniff"}
    known: list[bytes] = []

    def document() -> bytes:
        """Made when somebody first asks."""
        if not known:
            known.append(json.dumps(document_of([*routers, router]), ensure_ascii=False).encode())
        return known[0]

    @router.get("/openapi.json")
    @describe(Success(dict, "The document."))
    async def get_openapi(request: Request) -> Response:
        """This document."""
        return Response(await run_sync(document), media_type=JSON)

    @router.get("/docs")
    @describe(Success(None, "The page.", media_type="text/html", headers=(_POLICY,)))
    async def get_docs(request: Request) -> Response:
        """A page that shows this document and tries its operations."""
        return HTMLResponse(page, headers=headers)

    return router


def _policy_of(page: str) -> str:
    """What the page may do: run its own script, look its own way, and ask its own server."""
    hashes = {
        name: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for name, text in _INLINE.findall(page)
    }
    return (
        f"default-src 'none'; script-src 'sha256-{hashes['script']}'; style-src 'sha256-{hashes['style']}'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
