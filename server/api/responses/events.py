"""The events of a streamed response."""

from __future__ import annotations

from typing import Annotated, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from server.api.generation.objects import ProbeScoresDelta
from server.api.responses.objects import AnswerTextPart, OutputItem, ReasoningTextPart, ResponseObject

ResponseEventType = Literal[
    "response.created",
    "response.in_progress",
    "response.completed",
    "response.incomplete",
    "response.failed",
]
ItemEventType = Literal["response.output_item.added", "response.output_item.done"]
PartEventType = Literal["response.content_part.added", "response.content_part.done"]

TextPart = Annotated[AnswerTextPart | ReasoningTextPart, Field(discriminator="type")]


class _Event(TypedDict):
    sequence_number: int


class ResponseEvent(_Event):
    """The state of the response, at its start and at its end."""

    type: ResponseEventType
    response: ResponseObject


class ItemEvent(_Event):
    """An item has begun or is complete."""

    type: ItemEventType
    output_index: int
    item: OutputItem


class _ItemPartEvent(_Event):
    item_id: str
    output_index: int


class _ContentEvent(_ItemPartEvent):
    content_index: int


class PartEvent(_ContentEvent):
    """A part of an item has begun or is complete."""

    type: PartEventType
    part: TextPart


class EventTokenLogprob(TypedDict):
    """A likely token at its place."""

    token: str
    logprob: float


class EventChosenLogprob(EventTokenLogprob):
    """The chosen token, and the likeliest tokens at its place."""

    top_logprobs: list[EventTokenLogprob]


class _Read(TypedDict):
    probes: NotRequired[dict[str, ProbeScoresDelta]]


class TextDeltaEvent(_ContentEvent, _Read):
    """The next piece of the answer's text, with the probe scores of its tokens if there are probes."""

    type: Literal["response.output_text.delta"]
    delta: str
    logprobs: list[EventChosenLogprob]


class TextDoneEvent(_ContentEvent):
    """The whole text of the answer."""

    type: Literal["response.output_text.done"]
    text: str
    logprobs: list[EventChosenLogprob]


class ReasoningDeltaEvent(_ContentEvent, _Read):
    """The next piece of the reasoning, with the probe scores of its tokens if there are probes."""

    type: Literal["response.reasoning_text.delta"]
    delta: str


class ReasoningDoneEvent(_ContentEvent):
    """The whole reasoning."""

    type: Literal["response.reasoning_text.done"]
    text: str


class ArgumentsDeltaEvent(_ItemPartEvent, _Read):
    """The next piece of a call's arguments, with the probe scores of its tokens if there are probes."""

    type: Literal["response.function_call_arguments.delta"]
    delta: str


class ArgumentsDoneEvent(_ItemPartEvent):
    """The whole arguments of a call."""

    type: Literal["response.function_call_arguments.done"]
    arguments: str


OutputEvent = (
    ItemEvent
    | PartEvent
    | TextDeltaEvent
    | TextDoneEvent
    | ReasoningDeltaEvent
    | ReasoningDoneEvent
    | ArgumentsDeltaEvent
    | ArgumentsDoneEvent
)
"""The events of a growing output."""

ResponseStreamEvent = Annotated[ResponseEvent | OutputEvent, Field(discriminator="type")]
