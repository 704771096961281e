"""Objects of `/v1/responses`: the response and its items."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from server.api.generation.objects import (
    AppliedSteering,
    ChosenTokenLogprob,
    GateCount,
    InputUsage,
    ProbeScores,
    UnixSeconds,
)
from server.api.http.objects import PageFields

ItemStatus = Literal["in_progress", "completed", "incomplete"]
ResponseStatus = Literal["in_progress", "completed", "incomplete", "failed"]


class InputTextPart(TypedDict):
    """Text of a user or developer, or of a call's output."""

    type: Literal["input_text"]
    text: str


class AnswerTextPart(TypedDict):
    """Text of an answer."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[ChosenTokenLogprob]


class ReasoningTextPart(TypedDict):
    """Reasoning text."""

    type: Literal["reasoning_text"]
    text: str


class InputMessage(TypedDict):
    """A message of a user or developer."""

    id: str
    type: Literal["message"]
    status: ItemStatus
    role: Literal["user", "system", "developer"]
    content: list[InputTextPart]


class OutputMessage(TypedDict):
    """A message of the assistant."""

    id: str
    type: Literal["message"]
    status: ItemStatus
    role: Literal["assistant"]
    content: list[AnswerTextPart]


class ReasoningItem(TypedDict):
    """The model's reasoning before an answer or a call."""

    id: str
    type: Literal["reasoning"]
    status: ItemStatus
    summary: list[Any]
    content: list[ReasoningTextPart]


class FunctionCallItem(TypedDict):
    """A function call of the model; `arguments` is JSON text."""

    id: str
    type: Literal["function_call"]
    status: ItemStatus
    call_id: str
    name: str
    arguments: str


class FunctionCallOutputItem(TypedDict):
    """The output of a function call."""

    id: str
    type: Literal["function_call_output"]
    status: ItemStatus
    call_id: str
    output: str
    name: NotRequired[str]


OutputItem = Annotated[OutputMessage | ReasoningItem | FunctionCallItem, Field(discriminator="type")]
KeptItem = InputMessage | OutputMessage | ReasoningItem | FunctionCallItem | FunctionCallOutputItem


class ResponseFailure(TypedDict):
    """Why a response failed."""

    code: Literal["server_error", "invalid_prompt"]
    message: str
    param: str | None
    type: str


class IncompleteDetails(TypedDict):
    """Why a response ended early."""

    reason: Literal["max_output_tokens"]


class ReasoningEcho(TypedDict):
    """The requested reasoning effort."""

    effort: str | None
    summary: None


class TextFormatEcho(TypedDict):
    """The format of plain text, or of any JSON object."""

    type: Literal["text", "json_object"]


class SchemaFormatEcho(TypedDict):
    """The format of JSON under a schema."""

    type: Literal["json_schema"]
    name: str
    description: str | None
    schema: dict[str, Any]
    strict: bool | None


class TextEcho(TypedDict):
    """The requested format of the answer's text."""

    format: TextFormatEcho | SchemaFormatEcho
    verbosity: Literal["medium"]


class FunctionChoiceEcho(TypedDict):
    """The function that had to be called."""

    type: Literal["function"]
    name: str


class AllowedFunctionsEcho(TypedDict):
    """The functions that were allowed."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[FunctionChoiceEcho]


class FunctionToolEcho(TypedDict):
    """A function that the model could call."""

    type: Literal["function"]
    name: str
    description: str | None
    parameters: dict[str, Any] | None
    strict: bool


class RequestEcho(TypedDict):
    """The fields of the request that its response repeats."""

    background: Literal[False]
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    prompt_cache_retention: str | None
    reasoning: ReasoningEcho
    safety_identifier: str | None
    service_tier: Literal["default"]
    text: TextEcho
    tool_choice: Literal["none", "auto", "required"] | FunctionChoiceEcho | AllowedFunctionsEcho
    tools: list[FunctionToolEcho]
    top_logprobs: int
    truncation: Literal["disabled"]
    user: str | None


class ResponseObject(RequestEcho):
    """A response, with fields of its request, the steering that was applied, and what its probes read.

    `probes` has the scores of all generated tokens, reasoning and calls included. `gates`: what they let through so
    far.
    """

    id: str
    object: Literal["response"]
    created_at: UnixSeconds
    completed_at: UnixSeconds | None
    status: ResponseStatus
    error: ResponseFailure | None
    incomplete_details: IncompleteDetails | None
    model: str
    output: list[OutputItem]
    temperature: float
    top_p: float
    usage: InputUsage | None
    steering: list[AppliedSteering]
    probes: NotRequired[dict[str, ProbeScores]]
    gates: NotRequired[list[GateCount]]


class DeletedResponse(TypedDict):
    """The response is deleted."""

    id: str
    object: Literal["response"]
    deleted: Literal[True]


class InputItemList(PageFields):
    """A page of the input items of a response."""

    data: list[KeptItem]
