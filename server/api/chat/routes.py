"""`POST /v1/chat/completions`: answers a chat, whole or as a stream."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from server.answers.reply import Reply, ReplyDelta, ToolCallDelta
from server.api.chat.objects import (
    ChatAnswerMessage,
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatDelta,
    ChatEvent,
    ChatFunctionDelta,
    ChatLogprobs,
    ChatToolCallDelta,
)
from server.api.chat.wire import ChatMessage, ChatRequest, ChatVariant
from server.api.generation.answer_head import AnswerHead
from server.api.generation.choices import check_num_choices, usage_of
from server.api.generation.dialogue import Dialogue, Replies, ReplyPiece, replies_to
from server.api.generation.logprobs import shown_logprobs
from server.api.generation.objects import Usage
from server.api.generation.probes import shown_delta, shown_gates, shown_scores
from server.api.generation.running import Choice, TokenEntry
from server.api.generation.steering import applied_steering
from server.api.generation.variants import plans_of
from server.api.http.auth import require
from server.api.http.bodies import MAX_JSON_BYTES, read_model
from server.api.http.connection import while_connected
from server.api.http.description import EVENTS, GENERATION_ERRORS, JSON, Success, describe
from server.api.http.json_response import built_response
from server.api.http.limiting import Caller, caller_of
from server.api.http.parameters import RATE_LIMITS
from server.api.http.services import Services, services_of
from server.api.http.sse import EventStream
from server.detokenizer import TokenTable
from server.keys import Role

router = APIRouter(dependencies=[Depends(require(Role.USE))], tags=["Generation"])


@router.post("/v1/chat/completions")
@describe(
    Success(ChatCompletion, "The chat completion.", headers=RATE_LIMITS),
    Success(ChatEvent, "With `stream`: the chunks as server-sent events, then `[DONE]`.", media_type=EVENTS),
    bodies={JSON: ChatRequest},
    errors=GENERATION_ERRORS,
)
async def create_chat_completion(request: Request) -> Response:
    """Create a chat completion."""
    services = services_of(request)
    services.check_accepting()
    body = await read_model(request, ChatRequest, MAX_JSON_BYTES)
    caller = caller_of(request)
    answer = await while_connected(request.receive, _prepare(body, services, caller))
    generation = answer.replies.generation
    generation.submit(caller)
    if body.stream:
        close = services.streams.add(answer.head.response_id, caller.owner, generation)
        return EventStream(answer.chunks(), close=close)
    with generation:
        return await while_connected(request.receive, answer.whole())


async def _prepare(body: ChatRequest, services: Services, caller: Caller) -> _ChatAnswer:
    variants = body.variants or ()
    check_num_choices(body.num_choices * max(1, len(variants)), services, "variants" if variants else "n")
    plans = await plans_of(body, body.variants, services, caller)
    dialogue = Dialogue(
        messages=await run_sync(_for_template, body.messages),
        use=body.use(),
        schema=body.answer_schema(),
        max_tokens=body.asked_tokens,
        num_logprobs=body.num_logprobs,
        reasoning_effort=body.reasoning_effort,
        template_kwargs=body.chat_template_kwargs or {},
    )
    response_id = f"chatcmpl-{uuid.uuid4().hex}"
    dialogues = await run_sync(_dialogues_of, variants, dialogue) if variants else [dialogue]
    replies = await replies_to(list(zip(dialogues, plans, strict=True)), body, services, response_id, caller)
    return _ChatAnswer(body, replies, services.text.table, AnswerHead.of(body, response_id, services))


def _for_template(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    return [message.for_template() for message in messages]


def _dialogues_of(variants: Sequence[ChatVariant], dialogue: Dialogue) -> list[Dialogue]:
    return [_dialogue_of(variant, number, dialogue) for number, variant in enumerate(variants)]


def _dialogue_of(variant: ChatVariant, number: int, dialogue: Dialogue) -> Dialogue:
    """The dialogue of a variant: that of the request, unless it has messages of its own."""
    if variant.messages is None:
        return dialogue
    names = replace(dialogue.names, messages=f"variants.{number}.messages")
    return replace(dialogue, messages=_for_template(variant.messages), names=names)


@dataclass(frozen=True)
class _ChatAnswer:
    """The answer to one chat, as one object or as chunks."""

    body: ChatRequest
    replies: Replies
    table: TokenTable
    head: AnswerHead

    async def whole(self) -> Response:
        """The answer as one object."""
        whole = await self.replies.whole()
        num_tokens = sum(choice.text.num_tokens for choice in self._choices)
        num_numbers = 1 + (self.body.num_logprobs or 0) + len(self._choices[0].request.plan.probes)
        return await built_response(lambda: self._object(whole), num_tokens * num_numbers)

    def _object(self, whole: Sequence[tuple[Choice, Reply, ReplyPiece]]) -> ChatCompletion:
        choices: list[ChatChoice] = []
        for choice, reply, piece in whole:
            assert piece.finish_reason is not None, "the choice is over"
            shown: ChatChoice = {
                "index": choice.index,
                "message": _message_of(reply),
                "logprobs": self._logprobs(piece.entries),
                "finish_reason": piece.finish_reason,
            }
            plan = choice.request.plan
            if plan.probes:
                shown["probes"] = shown_scores(choice)
            if plan.gated:
                shown["gates"] = shown_gates(choice)
            if self.head.shows_token_ids:
                shown["token_ids"] = list(piece.token_ids)
            if self._has_variants:
                self._begin(shown, choice)
            choices.append(shown)
        answer: ChatCompletion = {
            "id": self.head.response_id,
            "object": "chat.completion",
            "created": self.head.created,
            "model": self.head.model,
            "choices": choices,
            "usage": self._usage(),
        }
        if not self._has_variants:
            self._begin(answer, self._choices[0])
        return answer

    async def chunks(self) -> AsyncIterator[ChatCompletionChunk]:
        """The answer as a stream: roles, deltas, finish reasons, and the usage if requested."""
        with self.replies.generation:
            for number, choice in enumerate(self._choices):
                chunk = self._chunk(choice, {"role": "assistant", "content": ""})
                if self._has_variants:
                    self._begin(chunk["choices"][0], choice)
                elif number == 0:
                    self._begin(chunk, choice)
                yield chunk
            async for choice, piece in self.replies.pieces():
                for chunk in self._chunks_of(choice, piece):
                    yield chunk
            if self.body.includes_usage:
                last = self._chunk_around([])
                last["usage"] = self._usage()
                yield last

    @property
    def _choices(self) -> Sequence[Choice]:
        return self.replies.generation.choices

    def _usage(self) -> Usage:
        return {
            **usage_of(self._choices),
            "completion_tokens_details": {"reasoning_tokens": self.replies.num_reasoning_tokens},
        }

    def _chunks_of(self, choice: Choice, piece: ReplyPiece) -> Iterator[ChatCompletionChunk]:
        """A chunk for each kind of delta in a piece, the first with the data of its tokens; then its finish reason."""
        deltas = _wire_deltas(piece.delta)
        if not deltas and piece.token_ids:
            deltas = [{"content": ""}]
        for number, delta in enumerate(deltas):
            yield self._chunk(choice, delta, piece if number == 0 else None)
        if piece.finish_reason is not None:
            chunk = self._chunk(choice, {})
            chunk["choices"][0]["finish_reason"] = piece.finish_reason
            if choice.request.plan.probes:
                chunk["choices"][0]["probes"] = shown_delta(choice, (), has_summary=True)
            if choice.request.plan.gated:
                chunk["choices"][0]["gates"] = shown_gates(choice)
            yield chunk

    @property
    def _has_variants(self) -> bool:
        return self.body.variants is not None

    def _begin(
        self, shown: ChatCompletion | ChatCompletionChunk | ChatChoice | ChatChunkChoice, choice: Choice
    ) -> None:
        """Add what is known when an answer begins: to the whole answer, or with variants to each choice."""
        shown["steering"] = applied_steering(choice.request.plan)
        if self.head.shows_token_ids:
            shown["prompt_token_ids"] = list(choice.request.prompt)

    def _chunk(self, choice: Choice, delta: ChatDelta, piece: ReplyPiece | None = None) -> ChatCompletionChunk:
        """The chunk of one delta, with the log-probabilities and ids of the tokens of `piece`."""
        shown: ChatChunkChoice = {"index": choice.index, "delta": delta, "logprobs": None, "finish_reason": None}
        if piece is not None:
            shown["logprobs"] = self._logprobs(piece.entries)
            if choice.request.plan.probes:
                shown["probes"] = shown_delta(choice, piece.readings)
            if self.head.shows_token_ids:
                shown["token_ids"] = list(piece.token_ids)
        return self._chunk_around([shown])

    def _chunk_around(self, choices: list[ChatChunkChoice]) -> ChatCompletionChunk:
        chunk: ChatCompletionChunk = {
            "id": self.head.response_id,
            "object": "chat.completion.chunk",
            "created": self.head.created,
            "model": self.head.model,
            "choices": choices,
        }
        if self.head.includes_usage:
            chunk["usage"] = self._usage() if self.body.counts_usage else None
        return chunk

    def _logprobs(self, entries: Sequence[TokenEntry]) -> ChatLogprobs | None:
        if self.body.num_logprobs is None:
            return None
        return {"content": shown_logprobs(entries, self.table), "refusal": None}


def _message_of(reply: Reply) -> ChatAnswerMessage:
    has_text = bool(reply.content) or not reply.tool_calls
    message: ChatAnswerMessage = {
        "role": "assistant",
        "content": reply.content if has_text else None,
        "refusal": None,
    }
    if reply.reasoning:
        message["reasoning_content"] = reply.reasoning
    if reply.tool_calls:
        message["tool_calls"] = [
            {"id": call.call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in reply.tool_calls
        ]
    return message


def _wire_deltas(delta: ReplyDelta) -> list[ChatDelta]:
    """A delta in wire form, one for each kind."""
    deltas: list[ChatDelta] = []
    if delta.reasoning:
        deltas.append({"reasoning_content": delta.reasoning})
    if delta.content:
        deltas.append({"content": delta.content})
    deltas += [{"tool_calls": [_call_delta_of(call)]} for call in delta.tool_calls]
    return deltas


def _call_delta_of(call: ToolCallDelta) -> ChatToolCallDelta:
    function: ChatFunctionDelta = {"arguments": call.arguments}
    if call.name is not None:
        function = {"name": call.name, "arguments": call.arguments}
    if call.call_id is None:
        return {"index": call.index, "function": function}
    return {"index": call.index, "id": call.call_id, "type": "function", "function": function}
