"""`POST /v1/completions`: continues prompts given as text or token ids, whole or as a stream."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from server.api.completions.objects import (
    Completion,
    CompletionChoice,
    CompletionChunk,
    CompletionChunkChoice,
    CompletionEvent,
    CompletionLogprobs,
)
from server.api.completions.wire import CompletionRequest
from server.api.generation.answer_head import AnswerHead
from server.api.generation.choices import (
    check_num_choices,
    check_num_logprobs,
    check_num_scores,
    choices_of,
    clip_logprob,
    tokens_to_generate,
    usage_of,
)
from server.api.generation.probes import shown_delta, shown_gates, shown_scores
from server.api.generation.running import Choice, Generation, Piece, TokenEntry
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
from server.detokenizer import ChoiceText, TokenTable
from server.engine.protocol import ModelInfo
from server.engine.request import Force, TokenLogprobs
from server.errors import InvalidRequest
from server.keys import Role
from server.text import TextProcessor

router = APIRouter(dependencies=[Depends(require(Role.USE))], tags=["Generation"])

DEFAULT_MAX_TOKENS = 16


@router.post("/v1/completions")
@describe(
    Success(Completion, "The continuations of all prompts.", headers=RATE_LIMITS),
    Success(CompletionEvent, "With `stream`: the chunks as server-sent events, then `[DONE]`.", media_type=EVENTS),
    bodies={JSON: CompletionRequest},
    errors=GENERATION_ERRORS,
)
async def create_completion(request: Request) -> Response:
    """Create a completion."""
    services = services_of(request)
    services.check_accepting()
    body = await read_model(request, CompletionRequest, MAX_JSON_BYTES)
    caller = caller_of(request)
    answer = await _prepare(body, services, caller)
    if body.echo and body.logprobs is not None:
        await while_connected(request.receive, answer.read_prompts(services, caller))
    answer.generation.submit(caller)
    if body.stream:
        close = services.streams.add(answer.head.response_id, caller.owner, answer.generation)
        return EventStream(answer.chunks(), close=close)
    with answer.generation:
        return await while_connected(request.receive, answer.whole())


@dataclass(frozen=True, slots=True)
class _Prompt:
    """A prompt as tokens, and as the text that `echo` returns."""

    token_ids: tuple[int, ...]
    text: str
    begins_text: bool


def _encode(
    prompts: Sequence[str | list[int]], text: TextProcessor, info: ModelInfo, add_special_tokens: bool
) -> list[_Prompt]:
    encoded = []
    for index, prompt in enumerate(prompts):
        param = "prompt" if len(prompts) == 1 else f"prompt.{index}"
        if isinstance(prompt, str):
            limit = info.max_model_len
            token_ids = text.encode_within(prompt, limit, param=param, add_special_tokens=add_special_tokens)
        else:
            token_ids = prompt
        if not token_ids:
            raise InvalidRequest(
                f"{param}: expected at least one token, got an empty prompt", code="empty_prompt", param=param
            )
        if min(token_ids) < 0 or max(token_ids) >= info.vocab_size:
            raise InvalidRequest(
                f"{param}: expected token ids from 0 to {info.vocab_size - 1} (the model's vocabulary)",
                code="invalid_token",
                param=param,
            )
        shown = prompt if isinstance(prompt, str) else text.decode(token_ids)
        encoded.append(_Prompt(tuple(token_ids), shown, begins_text=not text.has_text(token_ids)))
    return encoded


async def _prepare(body: CompletionRequest, services: Services, caller: Caller) -> _CompletionAnswer:
    num_variants = 1 if body.variants is None else len(body.variants)
    num_choices = len(body.prompt) * num_variants * body.num_candidates
    check_num_choices(num_choices, services, "n" if body.variants is None else "variants")
    plans = await plans_of(body, body.variants, services, caller)
    info = services.engine.info
    prompts = await run_sync(_encode, body.prompt, services.text, info, body.add_special_tokens is not False)
    response_id = f"cmpl-{uuid.uuid4().hex}"
    choices: list[Choice] = []
    num_shown = num_variants * sum(len(prompt.token_ids) for prompt in prompts) if body.echo else 0
    for index, prompt in enumerate(prompts):
        max_tokens = tokens_to_generate(
            len(prompt.token_ids),
            body.max_tokens,
            default=DEFAULT_MAX_TOKENS,
            max_model_len=info.max_model_len,
            param="prompt" if len(prompts) == 1 else f"prompt.{index}",
        )
        for plan in plans:
            num_shown += max_tokens * body.num_candidates
            choices += choices_of(
                body,
                services,
                plan,
                prompt.token_ids,
                response_id=response_id,
                max_tokens=max_tokens,
                num_logprobs=0 if body.logprobs is None and body.chooses_best else body.logprobs,
                begins_text=prompt.begins_text,
                first_index=len(choices),
            )
    check_num_logprobs(num_shown, body.logprobs, services, "logprobs")
    check_num_scores(sum(len(choice.request.prompt) for choice in choices) + num_shown, plans[0], services)
    generation = Generation(services.engine, choices, services.metrics)
    head = AnswerHead.of(body, response_id, services)
    echoes = [prompt.text if body.echo else "" for prompt in prompts for _ in plans]
    return _CompletionAnswer(body, generation, services.text.table, echoes, head)


@dataclass(frozen=True)
class _CompletionAnswer:
    """The answer to all prompts of a request, as one object or as chunks.

    `echoes` has the text to put before the candidates of each prompt, or with variants of each prompt and variant;
    `prompt_logprobs` is in the same order.
    """

    body: CompletionRequest
    generation: Generation
    table: TokenTable
    echoes: Sequence[str]
    head: AnswerHead
    prompt_logprobs: list[Sequence[TokenLogprobs | None]] = field(default_factory=list)

    async def read_prompts(self, services: Services, caller: Caller) -> None:
        """Have the engine compute the prompts' own log-probabilities, before anything is generated."""
        readers = [
            Choice(
                index=choice.index,
                request=replace(
                    choice.request,
                    request_id=f"{choice.request.request_id}-echo",
                    plan=choice.request.plan.without_probes,
                    work=Force(num_logprobs=self.body.logprobs or 0),
                ),
                text=ChoiceText(self.table, begins_text=True),
            )
            for choice in self.generation.choices[:: self.body.num_candidates]
        ]
        with Generation(services.engine, readers) as reading:
            reading.submit(caller)
            await reading.whole()
        self.prompt_logprobs.extend(reader.known_logprobs for reader in readers)

    async def whole(self) -> Response:
        """The answer as one object."""
        whole = self._select_answers(await self.generation.whole())
        num_tokens = sum(len(piece.token_ids) for _, piece in whole) + sum(map(len, self.prompt_logprobs))
        num_numbers = 1 + (self.body.logprobs or 0) + len(self.generation.choices[0].request.plan.probes)
        return await built_response(lambda: self._object(whole), num_tokens * num_numbers)

    def _object(self, whole: Sequence[tuple[Choice, Piece]]) -> Completion:
        choices: list[CompletionChoice] = []
        for index, (choice, piece) in enumerate(whole):
            assert piece.finish_reason is not None, "the choice is over"
            shown: CompletionChoice = {
                "index": index,
                "text": self._echo(choice) + piece.text,
                "logprobs": _join(self._echoed_logprobs(choice), self._logprobs(choice, piece.entries)),
                "finish_reason": piece.finish_reason,
            }
            plan = choice.request.plan
            if plan.probes:
                shown["probes"] = shown_scores(choice)
            if plan.gated:
                shown["gates"] = shown_gates(choice)
            if self.body.variants is not None:
                shown["steering"] = applied_steering(plan)
            if self.head.shows_token_ids:
                shown["token_ids"] = list(piece.token_ids)
                shown["prompt_token_ids"] = list(choice.request.prompt)
            choices.append(shown)
        answer: Completion = {
            "id": self.head.response_id,
            "object": "text_completion",
            "created": self.head.created,
            "model": self.head.model,
            "choices": choices,
            "usage": usage_of(self.generation.choices),
        }
        if self.body.variants is None:
            answer["steering"] = applied_steering(self.generation.choices[0].request.plan)
        return answer

    async def chunks(self) -> AsyncIterator[CompletionChunk]:
        """The answer as a stream: first the plan, with the prompt if it is echoed, then text as it arrives."""
        with self.generation:
            for number, choice in enumerate(self.generation.choices):
                chunk = self._prompt_chunk(choice)
                steering = applied_steering(choice.request.plan)
                if self.body.variants is not None:
                    chunk["choices"][0]["steering"] = steering
                elif number == 0:
                    chunk["steering"] = steering
                yield chunk
            async for choice, piece in self.generation.pieces():
                yield self._text_chunk(choice, piece)
            if self.body.includes_usage:
                last = self._chunk_around([])
                last["usage"] = usage_of(self.generation.choices)
                yield last

    def _select_answers(self, whole: Sequence[tuple[Choice, Piece]]) -> list[tuple[Choice, Piece]]:
        """The `n` likeliest candidates of each prompt, best first; all of them in order if only `n` were generated."""
        if not self.body.chooses_best:
            return list(whole)
        selected: list[tuple[Choice, Piece]] = []
        for first in range(0, len(whole), self.body.num_candidates):
            candidates = whole[first : first + self.body.num_candidates]
            candidates = sorted(candidates, key=lambda candidate: _mean_logprob(candidate[1]), reverse=True)
            selected += candidates[: self.body.num_choices]
        return selected

    def _prompt_chunk(self, choice: Choice) -> CompletionChunk:
        """The first chunk of a choice, with the prompt if it is echoed."""
        shown: CompletionChunkChoice = {
            "index": choice.index,
            "text": self._echo(choice),
            "logprobs": self._echoed_logprobs(choice),
            "finish_reason": None,
        }
        if self.head.shows_token_ids:
            shown["prompt_token_ids"] = list(choice.request.prompt)
        return self._chunk_around([shown])

    def _text_chunk(self, choice: Choice, piece: Piece) -> CompletionChunk:
        shown: CompletionChunkChoice = {
            "index": choice.index,
            "text": piece.text,
            "logprobs": self._logprobs(choice, piece.entries),
            "finish_reason": piece.finish_reason,
        }
        plan = choice.request.plan
        if plan.probes:
            shown["probes"] = shown_delta(choice, piece.readings, has_summary=piece.finish_reason is not None)
        if plan.gated and piece.finish_reason is not None:
            shown["gates"] = shown_gates(choice)
        if self.head.shows_token_ids:
            shown["token_ids"] = list(piece.token_ids)
        return self._chunk_around([shown])

    def _chunk_around(self, choices: list[CompletionChunkChoice]) -> CompletionChunk:
        chunk: CompletionChunk = {
            "id": self.head.response_id,
            "object": "text_completion",
            "created": self.head.created,
            "model": self.head.model,
            "choices": choices,
        }
        if self.head.includes_usage:
            chunk["usage"] = usage_of(self.generation.choices) if self.body.counts_usage else None
        return chunk

    def _place(self, choice: Choice) -> int:
        """Where the choice's prompt and variant are in `echoes` and `prompt_logprobs`."""
        return choice.index // self.body.num_candidates

    def _echo(self, choice: Choice) -> str:
        return self.echoes[self._place(choice)]

    def _logprobs(self, choice: Choice, entries: Sequence[TokenEntry]) -> CompletionLogprobs | None:
        """The log-probabilities of generated tokens, whose text offsets continue those of the echoed prompt."""
        if self.body.logprobs is None:
            return None
        start = len(self._echo(choice))
        known: list[TokenLogprobs | None] = [entry.logprobs for entry in entries]
        offsets = [start + entry.offset for entry in entries]
        return self._table_of([entry.logprobs.token_id for entry in entries], known, offsets)

    def _echoed_logprobs(self, choice: Choice) -> CompletionLogprobs | None:
        """The log-probabilities of the echoed prompt's tokens; the first has none."""
        if not self.prompt_logprobs:
            return None
        text = ChoiceText(self.table, begins_text=True)
        offsets = []
        for token_id in choice.request.prompt:
            offsets.append(text.num_characters)
            text.push(token_id)
        return self._table_of(choice.request.prompt, self.prompt_logprobs[self._place(choice)], offsets)

    def _table_of(
        self, token_ids: Sequence[int], known: Sequence[TokenLogprobs | None], offsets: Sequence[int]
    ) -> CompletionLogprobs:
        tops: list[dict[str, float] | None] = []
        for logprobs in known:
            if logprobs is None:
                tops.append(None)
                continue
            top = {self.table.name_of(token_id): clip_logprob(logprob) for token_id, logprob in logprobs.top}
            tops.append(top | {self.table.name_of(logprobs.token_id): clip_logprob(logprobs.logprob)})
        return {
            "tokens": [self.table.name_of(token_id) for token_id in token_ids],
            "token_logprobs": [None if logprobs is None else clip_logprob(logprobs.logprob) for logprobs in known],
            "top_logprobs": tops,
            "text_offset": list(offsets),
        }


def _join(first: CompletionLogprobs | None, second: CompletionLogprobs | None) -> CompletionLogprobs | None:
    if first is None or second is None:
        return second if first is None else first
    return {
        "tokens": first["tokens"] + second["tokens"],
        "token_logprobs": first["token_logprobs"] + second["token_logprobs"],
        "top_logprobs": first["top_logprobs"] + second["top_logprobs"],
        "text_offset": first["text_offset"] + second["text_offset"],
    }


def _mean_logprob(piece: Piece) -> float:
    """The mean log-probability of a choice's tokens, the one that ended it included."""
    logprobs = [entry.logprobs.logprob for entry in piece.entries]
    return sum(logprobs) / len(logprobs) if logprobs else 0.0
