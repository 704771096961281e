"""`POST /v1/streams/{answer_id}/cancel`: ends choices of an answer while the others stream on.

Closing the connection ends all of an answer; this ends one choice of several. It runs nothing, so no rate limits it.
"""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from server.api.http.auth import require
from server.api.http.bodies import MAX_JSON_BYTES, read_model
from server.api.http.description import JSON, Parameter, Success, describe
from server.api.http.json_response import json_response
from server.api.http.limiting import caller_of
from server.api.http.services import services_of
from server.api.streams.objects import CancelledChoices
from server.api.streams.wire import CancelRequest
from server.errors import InvalidRequest, NotFound
from server.keys import Role

router = APIRouter(dependencies=[Depends(require(Role.USE))], tags=["Generation"])

_ANSWER_ID = Parameter("answer_id", "The id that every chunk of the stream has.", {"type": "string"}, "path")


@router.post("/v1/streams/{answer_id}/cancel")
@describe(
    Success(CancelledChoices, "The choices that were ended; their last chunks have the finish reason `abort`."),
    bodies={JSON: CancelRequest},
    errors=(InvalidRequest, NotFound),
    parameters=(_ANSWER_ID,),
)
async def cancel_choices(request: Request, answer_id: str) -> Response:
    """End choices of a streamed answer."""
    body = await read_model(request, CancelRequest, MAX_JSON_BYTES)
    ended = services_of(request).streams.cancel(answer_id, caller_of(request).owner, body.choices)
    cancelled: CancelledChoices = {"id": answer_id, "object": "stream.cancelled", "choices": ended}
    return json_response(cancelled)
