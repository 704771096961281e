"""Turns errors into responses: every failure has OpenAI's envelope, and none contains a traceback.

`server.errors` and `engine_errors` define the status and code of each error.
"""

from __future__ import annotations

import logging

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match

from server.api.http.engine_errors import from_engine_error
from server.api.http.json_response import json_response
from server.api.http.objects import ErrorEnvelope
from server.engine.errors import EngineError
from server.errors import ApiError, EngineFailure, InvalidRequest, from_vectors_error
from vectors.errors import VectorsError

_log = logging.getLogger(__name__)

_CODES = {404: "unknown_url", 405: "method_not_allowed"}


def envelope_of(error: ApiError) -> ErrorEnvelope:
    """OpenAI's error body for `error`."""
    return {"error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code}}


def response_of(error: ApiError) -> Response:
    """The HTTP response for `error`."""
    return json_response(envelope_of(error), status=error.status, headers=error.headers)


def install(app: FastAPI) -> None:
    """Answer every error that a route raises with an envelope."""
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(EngineError, _on_engine_error)
    app.add_exception_handler(VectorsError, _on_vectors_error)
    app.add_exception_handler(HTTPException, _on_http_exception)


async def _on_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    if isinstance(error, EngineFailure):
        _log.error("%s", error, exc_info=error)
    return response_of(error)


async def _on_engine_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, EngineError)
    found = from_engine_error(error)
    found.__cause__ = error
    return await _on_api_error(request, found)


async def _on_vectors_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, VectorsError)
    found = from_vectors_error(error)
    if isinstance(found, EngineFailure):
        raise error  # the access log records it with its traceback
    if found.status >= 500:
        _log.error("%s", error)
    return response_of(found)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """Answer the framework's own errors: an unknown path or method."""
    assert isinstance(error, HTTPException)
    envelope: ErrorEnvelope = {
        "error": {
            "message": f"{request.method} {request.url.path[:200]}: {error.detail}",
            "type": InvalidRequest.type,
            "param": None,
            "code": _CODES.get(error.status_code),
        }
    }
    headers = {"Allow": ", ".join(_methods_at(request))} if error.status_code == 405 else error.headers
    return json_response(envelope, status=error.status_code, headers=headers)


def _methods_at(request: Request) -> list[str]:
    """All methods of the request's path; the framework gives only those of the first route."""
    routes = request.app.router.routes
    return [
        method
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE")
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in routes)
    ]
