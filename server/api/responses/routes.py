"""`/v1/responses`: items in, items out, whole or as a stream; stored only if requested."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from server.api.generation.choices import sampling_of
from server.api.generation.dialogue import Dialogue, FieldNames, replies_to
from server.api.generation.steering import plan_of
from server.api.http.auth import bearer_key, require
from server.api.http.bodies import MAX_JSON_BYTES, read_model, refuse_unknown_query
from server.api.http.connection import while_connected
from server.api.http.description import EVENTS, GENERATION_ERRORS, JSON, Parameter, Success, describe
from server.api.http.json_response import built_response, json_response
from server.api.http.limiting import Caller, caller_of
from server.api.http.pages import limit_of, order_of, page_of
from server.api.http.parameters import RATE_LIMITS, limit, order
from server.api.http.services import Services, services_of
from server.api.http.sse import EventStream
from server.api.responses.events import ResponseStreamEvent
from server.api.responses.items import Conversation, items_of
from server.api.responses.objects import DeletedResponse, InputItemList, KeptItem, ResponseObject
from server.api.responses.output import ResponseOutput
from server.api.responses.response import ResponseInProgress
from server.api.responses.wire import ResponseRequest
from server.errors import InsufficientStorage, InvalidRequest, NotFound, Unavailable
from server.keys import Role, digest_of
from server.response_store import ResponseStore, StoredResponse

router = APIRouter(dependencies=[Depends(require(Role.USE))], tags=["Responses"])

_NAMES = FieldNames(messages="input", schema="text.format", reasoning_effort="reasoning.effort")
_RESPONSE_ID = Parameter("response_id", "The response's id.", {"type": "string"}, "path")
_STREAM = Parameter("stream", "A stored response is never streamed.", {"enum": ["false"]})
_UNSUPPORTED_QUERIES = ("include", "include_obfuscation", "starting_after", "stream")


@router.post("/v1/responses")
@describe(
    Success(ResponseObject, "The response.", headers=RATE_LIMITS),
    Success(ResponseStreamEvent, "With `stream`: server-sent events, named by their type.", media_type=EVENTS),
    bodies={JSON: ResponseRequest},
    errors=(*GENERATION_ERRORS, InsufficientStorage),
)
async def create_response(request: Request) -> Response:
    """Create a response, and store it if requested."""
    services = services_of(request)
    services.check_accepting()
    body = await read_model(request, ResponseRequest, MAX_JSON_BYTES)
    caller, shelf = caller_of(request), _shelf_of(request)
    response = await while_connected(request.receive, _prepare(body, services, shelf, caller))
    generation = response.replies.generation
    generation.submit(caller)
    if body.stream:
        return EventStream(response.events(), close=generation.close, failed=response.failed, is_named=True)
    with generation:
        finished = await while_connected(request.receive, response.whole())
    num_tokens = sum(choice.text.num_tokens for choice in generation.choices)
    return await built_response(lambda: finished, num_tokens * (1 + (body.num_logprobs or 0)))


@router.get("/v1/responses/{response_id}")
@describe(
    Success(ResponseObject, "The stored response."),
    errors=(InvalidRequest, NotFound, Unavailable),
    parameters=(_RESPONSE_ID, _STREAM),
)
async def retrieve_response(request: Request, response_id: str) -> Response:
    """Get a stored response."""
    _check_query(request)
    return json_response(_response_of(await _shelf_of(request).get(response_id)))


@router.delete("/v1/responses/{response_id}")
@describe(
    Success(DeletedResponse, "The response is deleted."),
    errors=(InvalidRequest, NotFound, Unavailable, InsufficientStorage),
    parameters=(_RESPONSE_ID,),
)
async def delete_response(request: Request, response_id: str) -> Response:
    """Delete a stored response."""
    refuse_unknown_query(request)
    await _shelf_of(request).remove(response_id)
    return json_response(DeletedResponse(id=response_id, object="response", deleted=True))


@router.get("/v1/responses/{response_id}/input_items")
@describe(
    Success(InputItemList, "A page of input items, newest first unless ordered otherwise."),
    errors=(InvalidRequest, NotFound, Unavailable),
    parameters=(
        _RESPONSE_ID,
        _STREAM,
        limit(20, 100),
        order("desc"),
        Parameter("after", "The id of the item after which the page begins.", {"type": "string"}),
    ),
)
async def list_input_items(request: Request, response_id: str) -> Response:
    """List the input items of a stored response."""
    _check_query(request, "limit", "order", "after")
    limit = limit_of(request, default=20, most=100)
    items = _items_of((await _shelf_of(request).get(response_id)).input_items)
    if order_of(request, "desc") == "desc":
        items.reverse()
    after = request.query_params.get("after")
    if after is not None:
        ids = [item["id"] for item in items]
        if after not in ids:
            raise InvalidRequest(
                f"after: expected the id of an input item, got {after[:80]!r}", code="invalid_value", param="after"
            )
        items = items[ids.index(after) + 1 :]
    return json_response(page_of(items, limit))


@dataclass(frozen=True, slots=True)
class _StoredResponses:
    """The stored responses of one owner; `store` None: this server stores none."""

    store: ResponseStore | None
    owner: bytes

    async def get(self, response_id: str) -> StoredResponse:
        """A stored response. Raises `NotFound`."""
        found = await self._find(response_id)
        if found is None:
            raise _missing(response_id)
        return found

    async def remove(self, response_id: str) -> None:
        """Delete a stored response. Raises `NotFound`."""
        if self.store is None or not await run_sync(self.store.remove, self.owner, response_id):
            raise _missing(response_id)

    async def conversation(self, body: ResponseRequest) -> list[KeptItem]:
        """The conversation before the request, if it continues a stored response. Raises `InvalidRequest`."""
        previous = body.previous_response_id
        if self.store is None and (body.store or previous is not None):
            param = "store" if body.store else "previous_response_id"
            raise InvalidRequest(
                f"{param}: this server does not store responses", code="unsupported_parameter", param=param
            )
        if previous is None:
            return []
        found = await self._find(previous)
        if found is None:
            raise InvalidRequest(
                f"previous_response_id: the response {previous[:80]!r} does not exist or is not stored",
                code="previous_response_not_found",
                param="previous_response_id",
            )
        return _items_of(found.conversation)

    async def put(self, response: ResponseObject, input_items: Sequence[KeptItem]) -> None:
        """Store a response."""
        assert self.store is not None
        await run_sync(self.store.put, self.owner, StoredResponse(response, input_items))

    async def _find(self, response_id: str) -> StoredResponse | None:
        return None if self.store is None else await run_sync(self.store.find, self.owner, response_id)


def _response_of(stored: StoredResponse) -> ResponseObject:
    return cast(ResponseObject, stored.response)  # the store contains only what `_StoredResponses.put` wrote


def _items_of(kept: Sequence[Mapping[str, Any]]) -> list[KeptItem]:
    return [cast(KeptItem, item) for item in kept]  # as above


def _missing(response_id: str) -> NotFound:
    return NotFound(f"the response {response_id[:80]!r} does not exist or is not stored", code="response_not_found")


def _owner_of(request: Request) -> bytes:
    """The owner of what the request stores: its API key; without keys, all requests have one owner."""
    if services_of(request).keys.is_open:
        return b""
    return digest_of(bearer_key(request) or "")


def _shelf_of(request: Request) -> _StoredResponses:
    return _StoredResponses(services_of(request).responses, _owner_of(request))


def _check_query(request: Request, *known: str) -> None:
    for name in request.query_params:
        field = name.partition("[")[0]
        if field in _UNSUPPORTED_QUERIES and (field, request.query_params[name]) != ("stream", "false"):
            raise InvalidRequest(f"{field}: not supported by this server", code="unsupported_parameter", param=field)
    refuse_unknown_query(request, "stream", *known)


async def _prepare(
    body: ResponseRequest, services: Services, shelf: _StoredResponses, caller: Caller
) -> ResponseInProgress:
    earlier = await shelf.conversation(body)
    plan = await plan_of(body, services, caller)
    dialogue = Dialogue(
        messages=await run_sync(_messages_of, body, earlier),
        use=body.use(),
        schema=body.answer_schema(),
        max_tokens=body.max_output_tokens,
        num_logprobs=body.num_logprobs,
        reasoning_effort=body.reasoning_effort,
        template_kwargs=body.chat_template_kwargs or {},
        names=_NAMES,
    )
    response_id = f"resp_{uuid.uuid4().hex}"
    replies = await replies_to([(dialogue, plan)], body, services, response_id, caller)

    async def keep(response: ResponseObject) -> None:
        if body.store:
            await shelf.put(response, [*earlier, *(item.as_item() for item in body.input)])

    return ResponseInProgress(
        response_id=response_id,
        model=body.model if body.model is not None else services.engine.info.model_id,
        body=body,
        plan=plan,
        sampling=sampling_of(body, services.engine.info),
        replies=replies,
        output=ResponseOutput(services.text.table, body.num_logprobs),
        keep=keep,
    )


def _messages_of(body: ResponseRequest, earlier: Sequence[KeptItem]) -> list[dict[str, Any]]:
    """The whole conversation as messages for chat templates, with this request's own instructions."""
    conversation = Conversation()
    if body.instructions is not None:
        conversation.instruct(body.instructions)
    for item in items_of(earlier):
        conversation.add(item, "previous_response_id")
    for index, item in enumerate(body.input):
        conversation.add(item, f"input.{index}")
    return conversation.messages
