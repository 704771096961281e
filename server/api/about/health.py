"""Endpoints for operators: `/health`, `/ready`, `/version`, `/metrics`.

The first three are open. `/metrics` reveals names of vectors, so it needs a key where keys are set.
"""

from __future__ import annotations

from anyio.to_thread import run_sync
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
@describe(Success(Health, "The server works."), errors=(Unavailable,))
async def health(request: Request) -> Response:
    """Check that the server works.

    Answers 503 with the reason when it does not and will not recover: restart it then.
    """
    services_of(request).check_alive()
    return json_response(Health(status="ok"))


@router.get("/ready")
@describe(Success(Readiness, "The server accepts new work."), errors=(Unavailable,))
async def ready(request: Request) -> Response:
    """Check whether the server accepts new work.

    Answers 503 with the reason while it is shutting down, in trouble, or its data folder is not where it opened it.
    """
    services = services_of(request)
    services.check_ready()
    await run_sync(services.check_storage, limiter=services.looking_at_storage)
    return json_response(Readiness(status="ready"))


@router.get("/version")
@describe(Success(Version, "The server's version."))
async def version() -> Version:
    """Get the server's version."""
    return {"version": __version__}


@router.get("/metrics", dependencies=[Depends(require(Role.USE))])
@describe(Success(None, "The metrics in Prometheus' text format.", media_type="text/plain"))
async def metrics(request: Request) -> Response:
    """Get metrics for Prometheus."""
    content = services_of(request).metrics.render()
    return Response(content, media_type="text/plain; version=0.0.4; charset=utf-8")
