"""Turns a validated request and its prompt into choices that the engine can run, for chats and completions alike."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Sequence
from dataclasses import replace

from server.answers.parts import AnswerParts
from server.api.generation.objects import Usage
from server.api.generation.running import Choice
from server.api.generation.wire import MAX_TOP_LOGPROBS, GenerationFields
from server.api.http.services import Services
from server.detokenizer import ChoiceText
from server.engine.grammar import Grammar
from server.engine.protocol import ModelInfo
from server.engine.request import EngineRequest, Generate, SamplingParams
from server.errors import ContextLengthExceeded, InvalidRequest
from server.marks import NO_MARKS, Marks
from server.steering.parts import PartReader
from server.steering.plan import SteeringPlan

MAX_LOGPROBS = 1 << 18
"""The most log-probabilities in one answer, unless a single choice that fills the context has more."""


def sampling_of(request: GenerationFields, model: ModelInfo, end_token_ids: Collection[int] = ()) -> SamplingParams:
    """The sampling of a request without its seed: the request's own values, else the model's defaults.

    Tokens that the model's generation config suppresses stay out, whatever their bias. `end_token_ids` end an answer
    beside the model's own, unless the request ignores these.
    """
    defaults = model.sampling_defaults

    def chosen(name: str, neutral: float) -> float:
        asked = getattr(request, name)
        return float(defaults.get(name, neutral) if asked is None else asked)

    return SamplingParams(
        temperature=chosen("temperature", 1.0),
        top_p=chosen("top_p", 1.0),
        top_k=max(0, int(chosen("top_k", 0))),
        min_p=chosen("min_p", 0.0),
        repetition_penalty=chosen("repetition_penalty", 1.0),
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        logit_bias={**request.logit_bias, **dict.fromkeys(model.suppressed_token_ids, -math.inf)},
        stop_token_ids=frozenset(request.stop_token_ids or ()).union(() if request.ignore_eos else end_token_ids),
        ignore_eos=bool(request.ignore_eos),
        min_tokens=int(chosen("min_tokens", 0)),
    )


def seed_of_choice(seed: int | None, index: int) -> int | None:
    """The seed of choice `index` of a request: the request's own for the first, derived ones for the others."""
    if seed is None or index == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed}/{index}".encode()).digest()[:16], "little")


def tokens_to_generate(
    num_prompt_tokens: int, asked: int | None, *, default: int | None, max_model_len: int, param: str
) -> int:
    """The number asked for, else `default`, else the rest of the context, which is always the limit.

    Raises `ContextLengthExceeded`, naming `param`, when the prompt leaves no room or less than was asked for.
    """
    room = max_model_len - num_prompt_tokens
    if room < (1 if asked is None else asked):
        if asked is None:
            need = f"the prompt already has {num_prompt_tokens}"
        else:
            total = num_prompt_tokens + asked
            need = f"the request needs {total}: {num_prompt_tokens} in the prompt and {asked} to generate"
        raise ContextLengthExceeded(f"this model's context is {max_model_len} tokens, but {need}", param=param)
    if asked is not None:
        return asked
    return room if default is None else min(default, room)


def check_num_choices(number: int, services: Services, param: str = "n") -> None:
    """Raise `InvalidRequest`, naming `param`, for more answers than the server can run at a time."""
    most = services.engine.max_requests
    if number > most:
        raise InvalidRequest(
            f"{param}: expected at most {most} (the answers that this server can run at a time), got {number}",
            code="invalid_value",
            param=param,
        )


def check_num_logprobs(num_tokens: int, num_top: int | None, services: Services, param: str) -> None:
    """Raise `InvalidRequest`, naming `param`, for more log-probabilities than one answer may have.

    `num_tokens` of all choices have one each, and `num_top` of the likeliest tokens. One choice may always fill the
    model's context.
    """
    if num_top is None:
        return
    most = max(MAX_LOGPROBS, services.engine.info.max_model_len * (1 + MAX_TOP_LOGPROBS))
    number = num_tokens * (1 + num_top)
    if number > most:
        raise InvalidRequest(
            f"{param}: expected at most {most} log-probabilities in one answer, got up to {number}: {1 + num_top} for "
            f"each of {num_tokens} tokens; ask for fewer choices, tokens or likeliest tokens",
            code="invalid_value",
            param=param,
        )


def check_num_scores(num_tokens: int, plan: SteeringPlan, services: Services) -> None:
    """Raise `InvalidRequest` for more scores of probes, one for each of `num_tokens`, than one answer may have."""
    most = max(MAX_LOGPROBS, services.engine.info.max_model_len)
    number = num_tokens * len(plan.probes)
    if number > most:
        raise InvalidRequest(
            f"probes: expected at most {most} scores in one answer, got up to {number}: {len(plan.probes)} for each of "
            f"{num_tokens} tokens; ask for fewer choices, tokens or layers",
            code="invalid_value",
            param="probes",
        )


def check_tokens(request: GenerationFields, max_tokens: int, vocab_size: int) -> None:
    """Raise `InvalidRequest` for token ids that the model does not have and for a `min_tokens` above `max_tokens`."""
    for name, token_ids in (("logit_bias", request.logit_bias), ("stop_token_ids", request.stop_token_ids or ())):
        for token_id in token_ids:
            if not 0 <= token_id < vocab_size:
                raise InvalidRequest(
                    f"{name}: expected token ids from 0 to {vocab_size - 1} (the model's vocabulary), got {token_id}",
                    code="invalid_token",
                    param=name,
                )
    if request.min_tokens is not None and request.min_tokens > max_tokens:
        raise InvalidRequest(
            f"min_tokens: expected at most {max_tokens} (the tokens to generate), got {request.min_tokens}",
            code="invalid_value",
            param="min_tokens",
        )


def choices_of(
    request: GenerationFields,
    services: Services,
    plan: SteeringPlan,
    prompt: Sequence[int],
    *,
    response_id: str,
    max_tokens: int,
    num_logprobs: int | None,
    begins_text: bool,
    first_index: int = 0,
    marks: Marks = NO_MARKS,
    thoughts: AnswerParts | None = None,
    grammar: Grammar | None = None,
    parts: PartReader | None = None,
) -> list[Choice]:
    """The choices that answer `prompt`, one per candidate, numbered from `first_index`.

    `marks` as in `ChoiceText`, `grammar` and `parts` as in `Generate`. `thoughts` tells where the model is thinking.
    """
    check_tokens(request, max_tokens, services.engine.info.vocab_size)
    sampling = sampling_of(request, services.engine.info, services.text.end_token_ids)
    token_ids = tuple(prompt)
    return [
        Choice(
            index=first_index + index,
            request=EngineRequest(
                request_id=f"{response_id}-{first_index + index}",
                prompt=token_ids,
                work=Generate(
                    max_tokens=max_tokens,
                    sampling=replace(sampling, seed=seed_of_choice(request.seed, index)),
                    num_logprobs=num_logprobs,
                    grammar=grammar,
                    parts=parts,
                ),
                plan=plan,
            ),
            text=ChoiceText(
                services.text.table,
                begins_text=begins_text,
                stops=request.stop,
                min_tokens=sampling.min_tokens,
                marks=marks,
                thought=None if thoughts is None else thoughts.start(),
            ),
        )
        for index in range(request.num_candidates)
    ]


def usage_of(choices: Sequence[Choice]) -> Usage:
    """OpenAI's usage: each prompt counts once, with the tokens that its first choice found in the prefix cache."""
    firsts = {id(choice.request.prompt): choice for choice in reversed(choices)}.values()
    num_prompt = sum(len(choice.request.prompt) for choice in firsts)
    num_completion = sum(choice.text.num_tokens for choice in choices)
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_completion,
        "total_tokens": num_prompt + num_completion,
        "prompt_tokens_details": {"cached_tokens": sum(choice.num_cached_tokens for choice in firsts)},
    }


def clip_logprob(logprob: float) -> float:
    """Clip to OpenAI's value for an impossible token, because JSON has no infinity."""
    return max(logprob, -9999.0)
