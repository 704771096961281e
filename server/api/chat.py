"""`POST /v1/chat/completions`: a chat in, messages out, whole or streamed.

It knows OpenAI's shapes for chats; running and steering are elsewhere.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Request
from starlette.responses import JSONResponse, Response

from server.api.auth import require
from server.api.bodies import MAX_JSON_BYTES, read_model
from server.api.choices import check_num_choices, choices_of, finite, tokens_to_generate, usage_of
from server.api.connection import while_connected
from server.api.generation import Choice, Generation, TokenEntry
from server.api.protocol import ChatRequest
from server.api.services import Services, services_of
from server.api.sse import EventStream
from server.api.steering import plan_of
from server.detokenizer import TokenTable
from server.engine.plan import SteeringPlan
from server.keys import Role

router = APIRouter(dependencies=[Depends(require(Role.USE))])


@router.post("/v1/chat/completions")
async def create_chat_completion(request: Request) -> Response:
    """Answer a chat."""
    services = services_of(request)
    services.check_ready()
    body = await read_model(request, ChatRequest, MAX_JSON_BYTES)
    answer = await _prepare(body, services)
    answer.generation.submit()
    if body.stream:
        return EventStream(answer.chunks(), close=answer.generation.close)
    with answer.generation:
        return JSONResponse(await while_connected(request.receive, answer.whole()))


async def _prepare(body: ChatRequest, services: Services) -> _ChatAnswer:
    check_num_choices(body.num_choices, services)
    plan = await plan_of(body, services)
    messages = [message.for_template() for message in body.messages]
    prompt = await run_sync(services.text.encode_chat, messages, body.chat_template_kwargs)
    response_id = f"chatcmpl-{uuid.uuid4().hex}"
    max_tokens = tokens_to_generate(
        len(prompt),
        body.asked_tokens,
        default=None,
        max_model_len=services.engine.info.max_model_len,
        param="messages",
    )
    choices = choices_of(
        body,
        services,
        plan,
        prompt,
        response_id=response_id,
        max_tokens=max_tokens,
        num_logprobs=body.num_logprobs,
        begins_text=True,
    )
    generation = Generation(services.engine, choices, services.metrics)
    model = body.model if body.model is not None else services.engine.info.model_id
    return _ChatAnswer(body, generation, services.text.table, plan, response_id, model, int(time.time()))


@dataclass(frozen=True)
class _ChatAnswer:
    """One chat's answer, as one object or as chunks."""

    body: ChatRequest
    generation: Generation
    table: TokenTable
    plan: SteeringPlan
    response_id: str
    model: str
    created: int

    async def whole(self) -> dict[str, Any]:
        """The `chat.completion` object."""
        answers = []
        for choice, piece in await self.generation.whole():
            message = {"role": "assistant", "content": piece.text, "refusal": None}
            answer = {
                "index": choice.index,
                "message": message,
                "logprobs": self._logprobs(piece.entries),
                "finish_reason": piece.finish_reason,
            }
            answers.append(answer | self._ids("token_ids", piece.token_ids))
        return {
            **self._head("chat.completion"),
            "choices": answers,
            "usage": usage_of(self.generation.choices, self.body.num_choices),
            "steering": self.plan.echo(),
            **self._ids("prompt_token_ids", self.generation.choices[0].request.prompt),
        }

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """`chat.completion.chunk` objects: roles, text, finishes, and the usage if it was asked for."""
        with self.generation:
            first: dict[str, Any] = {"steering": self.plan.echo()}
            first |= self._ids("prompt_token_ids", self.generation.choices[0].request.prompt)
            for choice in self.generation.choices:
                yield self._chunk(choice, {"role": "assistant", "content": ""}) | first
                first = {}
            async for choice, piece in self.generation.pieces():
                if piece.text or piece.token_ids:
                    extras = {"logprobs": self._logprobs(piece.entries)} | self._ids("token_ids", piece.token_ids)
                    yield self._chunk(choice, {"content": piece.text}, extras)
                if piece.finish_reason is not None:
                    yield self._chunk(choice, {}, {"finish_reason": piece.finish_reason})
            if self.body.includes_usage:
                usage = usage_of(self.generation.choices, self.body.num_choices)
                yield {**self._head("chat.completion.chunk"), "choices": [], "usage": usage}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.response_id, "object": kind, "created": self.created, "model": self.model}

    def _ids(self, name: str, token_ids: Sequence[int]) -> dict[str, Any]:
        return {name: list(token_ids)} if self.body.return_token_ids else {}

    def _chunk(self, choice: Choice, delta: dict[str, Any], extras: dict[str, Any] | None = None) -> dict[str, Any]:
        shown = {"index": choice.index, "delta": delta, "logprobs": None, "finish_reason": None} | (extras or {})
        chunk = {**self._head("chat.completion.chunk"), "choices": [shown]}
        return chunk | {"usage": None} if self.body.includes_usage else chunk

    def _logprobs(self, entries: Sequence[TokenEntry]) -> dict[str, Any] | None:
        if self.body.num_logprobs is None:
            return None
        content = [
            self._token(entry.logprobs.token_id, entry.logprobs.logprob)
            | {"top_logprobs": [self._token(token_id, logprob) for token_id, logprob in entry.logprobs.top]}
            for entry in entries
        ]
        return {"content": content, "refusal": None}

    def _token(self, token_id: int, logprob: float) -> dict[str, Any]:
        return {
            "token": self.table.name_of(token_id),
            "logprob": finite(logprob),
            "bytes": list(self.table.bytes_of(token_id)),
        }
