"""Objects of `POST /v1/completions`."""

from __future__ import annotations

from typing import Literal, NotRequired

from typing_extensions import TypedDict

from server.api.generation.objects import (
    AppliedSteering,
    CompletionFinishReason,
    GateCount,
    ProbeScores,
    ProbeScoresDelta,
    UnixSeconds,
    Usage,
)
from server.api.http.objects import ErrorEnvelope


class CompletionLogprobs(TypedDict):
    """Parallel lists with one entry per token. The first token of an echoed prompt has no log-probability."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(TypedDict):
    """A continuation, with its token ids and those of its prompt if `return_token_ids` is set.

    `steering` is here, and not beside the choices, if the request has variants.
    """

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: CompletionFinishReason
    probes: NotRequired[dict[str, ProbeScores]]
    gates: NotRequired[list[GateCount]]
    steering: NotRequired[list[AppliedSteering]]
    token_ids: NotRequired[list[int]]
    prompt_token_ids: NotRequired[list[int]]


class Completion(TypedDict):
    """The continuations of all prompts, and the steering that was applied."""

    id: str
    object: Literal["text_completion"]
    created: UnixSeconds
    model: str
    choices: list[CompletionChoice]
    usage: Usage
    steering: NotRequired[list[AppliedSteering]]


class CompletionChunkChoice(TypedDict):
    """A delta of one continuation. The first has the echoed prompt, the last has the finish reason.

    If the request has variants, the first one has the continuation's steering.
    """

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: CompletionFinishReason | None
    probes: NotRequired[dict[str, ProbeScoresDelta]]
    gates: NotRequired[list[GateCount]]
    steering: NotRequired[list[AppliedSteering]]
    token_ids: NotRequired[list[int]]
    prompt_token_ids: NotRequired[list[int]]


class CompletionChunk(TypedDict):
    """One event of a stream. The first has the steering; the last has the usage, if requested, and no choices."""

    id: str
    object: Literal["text_completion"]
    created: UnixSeconds
    model: str
    choices: list[CompletionChunkChoice]
    usage: NotRequired[Usage | None]
    steering: NotRequired[list[AppliedSteering]]


CompletionEvent = CompletionChunk | ErrorEnvelope
