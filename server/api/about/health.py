"""What operators look at: `/health`, `/ready`, `/version`, `/metrics`.

The first three are open; `/metrics` tells names of vectors and so needs a key where keys are set.
"""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from server import __version__
from server.api.about.objects import Health, Readiness, Version
from server.api.http.auth import require
from server.api.http.description import Success, describe
from server.api.http.json_response import json_response
from server.api.http.services import services_of
from server.errors import Unavailable
from server.keys import Role

router = APIRouter(tags=["Operation"])


@router.get("/health")
@describe(Success(Health, "It is."))
async def health() -> Health:
    """The process is alive."""
    return {"status": "ok"}


@router.get("/ready")
@describe(Success(Readiness, "It is."), errors=(Unavailable,))
async def ready(request: Request) -> Response:
    """New work is accepted; 503 while the server drains."""
    services_of(request).check_ready()
    return json_response(Readiness(status="ready"))


@router.get("/version")
@describe(Success(Version, "The version."))
async def version() -> Version:
    """The server's version."""
    return {"version": __version__}


@router.get("/metrics", dependencies=[Depends(require(Role.USE))])
@describe(Success(None, "All metrics.", media_type="text/plain"))
async def metrics(request: Request) -> Response:
    """Prometheus' text format."""
    content = services_of(request).metrics.render()
    return Response(content, media_type="text/plain; version=0.0.4; charset=utf-8")
