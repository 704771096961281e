"""Turns every JSON answer into a response."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.responses import JSONResponse

from server.api.http.objects import TypedObject


def json_response(answer: TypedObject, *, status: int = 200, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """`answer` as the body of a response. A plain `dict` is a type error, because nothing checks its keys."""
    return JSONResponse(answer, status_code=status, headers=headers)
