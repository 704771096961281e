"""Objects of `POST /v1/chat/completions`."""

from __future__ import annotations

from typing import Literal, NotRequired

from typing_extensions import TypedDict

from server.api.generation.objects import (
    AppliedSteering,
    ChatFinishReason,
    ChosenTokenLogprob,
    GateCount,
    ProbeScores,
    ProbeScoresDelta,
    UnixSeconds,
    Usage,
)
from server.api.http.objects import ErrorEnvelope


class ChatFunctionCall(TypedDict):
    """The called function; `arguments` is JSON text."""

    name: str
    arguments: str


class ChatToolCall(TypedDict):
    """A tool call of the model."""

    id: str
    type: Literal["function"]
    function: ChatFunctionCall


class ChatAnswerMessage(TypedDict):
    """The answer; its text is null if it consists only of tool calls."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[ChatToolCall]]


class ChatLogprobs(TypedDict):
    """Log-probabilities of the answer's tokens."""

    content: list[ChosenTokenLogprob]
    refusal: None


class ChatChoice(TypedDict):
    """One of the answers. `probes` is present if the request has probes, `token_ids` with `return_token_ids`.

    `steering` and `prompt_token_ids` are here, and not beside the choices, if the request has variants.
    """

    index: int
    message: ChatAnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinishReason
    probes: NotRequired[dict[str, ProbeScores]]
    gates: NotRequired[list[GateCount]]
    token_ids: NotRequired[list[int]]
    steering: NotRequired[list[AppliedSteering]]
    prompt_token_ids: NotRequired[list[int]]


class ChatCompletion(TypedDict):
    """A chat completion, and the steering that was applied."""

    id: str
    object: Literal["chat.completion"]
    created: UnixSeconds
    model: str
    choices: list[ChatChoice]
    usage: Usage
    steering: NotRequired[list[AppliedSteering]]
    prompt_token_ids: NotRequired[list[int]]


class ChatFunctionDelta(TypedDict):
    """A delta of a called function: the name comes once, the arguments in pieces."""

    name: NotRequired[str]
    arguments: str


class ChatToolCallDelta(TypedDict):
    """A delta of tool call `index`; its id and type come once."""

    index: int
    id: NotRequired[str]
    type: NotRequired[Literal["function"]]
    function: ChatFunctionDelta


class ChatDelta(TypedDict):
    """A delta of the answer."""

    role: NotRequired[Literal["assistant"]]
    content: NotRequired[str]
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[ChatToolCallDelta]]


class ChatChunkChoice(TypedDict):
    """The delta of one answer. The last one is empty, and has the finish reason and the summary of its probes.

    If the request has variants, the first one has the answer's steering.
    """

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinishReason | None
    probes: NotRequired[dict[str, ProbeScoresDelta]]
    gates: NotRequired[list[GateCount]]
    token_ids: NotRequired[list[int]]
    steering: NotRequired[list[AppliedSteering]]
    prompt_token_ids: NotRequired[list[int]]


class ChatCompletionChunk(TypedDict):
    """One event of a stream. The first has the steering; the last has the usage, if requested, and no choices."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: UnixSeconds
    model: str
    choices: list[ChatChunkChoice]
    usage: NotRequired[Usage | None]
    steering: NotRequired[list[AppliedSteering]]
    prompt_token_ids: NotRequired[list[int]]


ChatEvent = ChatCompletionChunk | ErrorEnvelope
