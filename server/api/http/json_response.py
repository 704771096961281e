"""The one way in which an answer becomes a JSON response."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.responses import JSONResponse

from server.api.http.objects import TypedObject


def json_response(answer: TypedObject, *, status: int = 200, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """`answer` as the body of a response. A plain `dict` is a type error: its keys would be checked by nobody."""
    return JSONResponse(answer, status_code=status, headers=headers)
