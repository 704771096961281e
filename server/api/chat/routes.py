"""`POST /v1/chat/completions`: a chat in, messages out, whole or streamed.

It knows OpenAI's shapes for chats; running and steering are elsewhere.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import JSONResponse, Response

from server.answers.reply import Reply, ReplyDelta
from server.api.chat.objects import ChatCompletion, ChatEvent
from server.api.chat.wire import ChatRequest
from server.api.generation.choices import check_num_choices, usage_of
from server.api.generation.dialogue import Dialogue, Replies, ReplyPiece, replies_to
from server.api.generation.envelope import Envelope
from server.api.generation.logprobs import shown_logprobs
from server.api.generation.running import Choice, TokenEntry
from server.api.generation.steering import plan_of
from server.api.http.auth import require
from server.api.http.bodies import MAX_JSON_BYTES, read_model
from server.api.http.connection import while_connected
from server.api.http.description import EVENTS, GENERATION_ERRORS, JSON, Success, describe
from server.api.http.parameters import RATE_LIMITS
from server.api.http.services import Services, services_of
from server.api.http.sse import EventStream
from server.detokenizer import TokenTable
from server.keys import Role
from server.steering.plan import SteeringPlan

router = APIRouter(dependencies=[Depends(require(Role.USE))], tags=["Generation"])

_CHUNK = "chat.completion.chunk"


@router.post("/v1/chat/completions")
@describe(
    Success(ChatCompletion, "The answers.", headers=RATE_LIMITS),
    Success(ChatEvent, "With `stream`: chunks as server-sent events, then `[DONE]`.", media_type=EVENTS),
    bodies={JSON: ChatRequest},
    errors=GENERATION_ERRORS,
)
async def create_chat_completion(request: Request) -> Response:
    """Success a chat."""
    services = services_of(request)
    services.check_ready()
    body = await read_model(request, ChatRequest, MAX_JSON_BYTES)
    answer = await _prepare(body, services)
    generation = answer.replies.generation
    generation.submit()
    if body.stream:
        return EventStream(answer.chunks(), close=generation.close)
    with generation:
        return JSONResponse(await while_connected(request.receive, answer.whole()))


async def _prepare(body: ChatRequest, services: Services) -> _ChatAnswer:
    check_num_choices(body.num_choices, services)
    plan = await plan_of(body, services)
    dialogue = Dialogue(
        messages=[message.for_template(f"messages.{index}") for index, message in enumerate(body.messages)],
        use=body.use(),
        schema=body.answer_schema(),
        max_tokens=body.asked_tokens,
        num_logprobs=body.num_logprobs,
        reasoning_effort=body.reasoning_effort,
        template_kwargs=body.chat_template_kwargs or {},
    )
    response_id = f"chatcmpl-{uuid.uuid4().hex}"
    replies = await replies_to(dialogue, body, services, plan, response_id)
    return _ChatAnswer(body, replies, services.text.table, plan, Envelope.of(body, response_id, services))


@dataclass(frozen=True)
class _ChatAnswer:
    """One chat's answer, as one object or as chunks."""

    body: ChatRequest
    replies: Replies
    table: TokenTable
    plan: SteeringPlan
    envelope: Envelope

    async def whole(self) -> dict[str, Any]:
        """The `chat.completion` object."""
        answers = []
        for choice, reply, piece in await self.replies.whole():
            answer = {
                "index": choice.index,
                "message": _message_of(reply),
                "logprobs": self._logprobs(piece.entries),
                "finish_reason": piece.finish_reason,
            }
            answers.append(answer | self.envelope.ids("token_ids", piece.token_ids))
        prompt = self.envelope.ids("prompt_token_ids", self._choices[0].request.prompt)
        return self.envelope.around(
            "chat.completion", answers, usage=self._usage(), steering=self.plan.echo(), **prompt
        )

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """`chat.completion.chunk` objects: roles, what the answers add, finishes, and the usage if it was asked for."""
        with self.replies.generation:
            first: dict[str, Any] = {"steering": self.plan.echo()}
            first |= self.envelope.ids("prompt_token_ids", self._choices[0].request.prompt)
            for choice in self._choices:
                yield self._chunk(choice, {"role": "assistant", "content": ""}) | first
                first = {}
            async for choice, piece in self.replies.pieces():
                for delta in self._deltas(piece):
                    yield self._chunk(choice, *delta)
                if piece.finish_reason is not None:
                    yield self._chunk(choice, {}, {"finish_reason": piece.finish_reason})
            if self.body.includes_usage:
                yield self.envelope.around(_CHUNK, [], usage=self._usage())

    @property
    def _choices(self) -> Sequence[Choice]:
        return self.replies.generation.choices

    def _usage(self) -> dict[str, Any]:
        usage = usage_of(self._choices, self.body.num_choices)
        return usage | {"completion_tokens_details": {"reasoning_tokens": self.replies.num_reasoning_tokens}}

    def _deltas(self, piece: ReplyPiece) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """A piece as deltas, one a kind; the first has the log-probabilities and ids of its tokens."""
        deltas = _wire_deltas(piece.delta)
        if not deltas and piece.token_ids:
            deltas = [{"content": ""}]
        extras = {"logprobs": self._logprobs(piece.entries)} | self.envelope.ids("token_ids", piece.token_ids)
        return [(delta, extras if index == 0 else {}) for index, delta in enumerate(deltas)]

    def _chunk(self, choice: Choice, delta: dict[str, Any], extras: dict[str, Any] | None = None) -> dict[str, Any]:
        return self.envelope.chunk(_CHUNK, {"index": choice.index, "delta": delta} | (extras or {}))

    def _logprobs(self, entries: Sequence[TokenEntry]) -> dict[str, Any] | None:
        if self.body.num_logprobs is None:
            return None
        return {"content": shown_logprobs(entries, self.table), "refusal": None}


def _message_of(reply: Reply) -> dict[str, Any]:
    has_text = bool(reply.content) or not reply.tool_calls
    message: dict[str, Any] = {"role": "assistant", "content": reply.content if has_text else None, "refusal": None}
    if reply.reasoning:
        message["reasoning_content"] = reply.reasoning
    if reply.tool_calls:
        message["tool_calls"] = [
            {"id": call.call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in reply.tool_calls
        ]
    return message


def _wire_deltas(delta: ReplyDelta) -> list[dict[str, Any]]:
    deltas: list[dict[str, Any]] = []
    if delta.reasoning:
        deltas.append({"reasoning_content": delta.reasoning})
    if delta.content:
        deltas.append({"content": delta.content})
    for call in delta.tool_calls:
        shown: dict[str, Any] = {"index": call.index}
        if call.call_id is not None:
            shown |= {"id": call.call_id, "type": "function"}
        name = {} if call.name is None else {"name": call.name}
        function = name | {"arguments": call.arguments}
        deltas.append({"tool_calls": [shown | {"function": function}]})
    return deltas
