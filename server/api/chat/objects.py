"""Objects of `POST /v1/chat/completions`."""

from __future__ import annotations

from typing import Literal, NotRequired

from typing_extensions import TypedDict

from server.api.generation.objects import AppliedSteering, ChatFinishReason, ChosenTokenLogprob, UnixSeconds, Usage
from server.api.http.objects import ErrorEnvelope


class ChatFunctionCall(TypedDict):
    """The function that is called; `arguments` is JSON text."""

    name: str
    arguments: str


class ChatToolCall(TypedDict):
    """A call that the model makes."""

    id: str
    type: Literal["function"]
    function: ChatFunctionCall


class ChatAnswerMessage(TypedDict):
    """The answer; its text is null where it is calls only."""

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
    """One of the `n` answers; `token_ids` with `return_token_ids`."""

    index: int
    message: ChatAnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinishReason
    token_ids: NotRequired[list[int]]


class ChatCompletion(TypedDict):
    """The whole answer to a chat, and the steering that was applied."""

    id: str
    object: Literal["chat.completion"]
    created: UnixSeconds
    model: str
    choices: list[ChatChoice]
    usage: Usage
    steering: list[AppliedSteering]
    prompt_token_ids: NotRequired[list[int]]


class ChatFunctionDelta(TypedDict):
    """More of a called function: its name comes once, its arguments bit by bit."""

    name: NotRequired[str]
    arguments: str


class ChatToolCallDelta(TypedDict):
    """More of the call `index`; id and type come once."""

    index: int
    id: NotRequired[str]
    type: NotRequired[Literal["function"]]
    function: ChatFunctionDelta


class ChatDelta(TypedDict):
    """What an answer adds."""

    role: NotRequired[Literal["assistant"]]
    content: NotRequired[str]
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[ChatToolCallDelta]]


class ChatChunkChoice(TypedDict):
    """Of which answer the delta is; the last delta of each is empty and has the reason of its finish."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinishReason | None
    token_ids: NotRequired[list[int]]


class ChatCompletionChunk(TypedDict):
    """One event of a stream. The first has the steering; the last the usage, if it was asked for, and no choices."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: UnixSeconds
    model: str
    choices: list[ChatChunkChoice]
    usage: NotRequired[Usage | None]
    steering: NotRequired[list[AppliedSteering]]
    prompt_token_ids: NotRequired[list[int]]


ChatEvent = ChatCompletionChunk | ErrorEnvelope
