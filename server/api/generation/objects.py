"""Objects that several resources share: the applied steering, usage, log-probabilities."""

from __future__ import annotations

from typing import Annotated, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from vectors.vocabulary import Operation, Part, Positions, Site

UnixSeconds = Annotated[int, Field(ge=0, description="Unix time in seconds.")]
Probability = Annotated[float, Field(ge=0, le=1)]
Revision = Annotated[str, Field(pattern="^[0-9a-f]{64}$", description="The SHA-256 of a vector's content.")]


class DoseFields(TypedDict):
    """How strong an applied vector is, as far as it is known."""

    relative_dose: NotRequired[float]
    warning: NotRequired[str]
    capped_from: NotRequired[float]


class AppliedSteering(DoseFields):
    """A vector as it was applied: the revision that the request was pinned to, where, and how strongly.

    `relative_dose` is the length of what is added relative to the model's typical activation, the largest over the
    layers. `warning` says that the scale asked for is above the vector's limit, and `capped_from` has that scale if it
    was lowered.
    """

    vector: str
    revision: Revision
    site: Site
    scale: float
    layers: list[int]
    positions: Positions
    parts: list[Part]
    operation: Operation
    preserve_norm: bool


class PromptTokensDetails(TypedDict):
    """Details of the prompt tokens: `cached_tokens` were found in the prefix cache."""

    cached_tokens: int


class CompletionTokensDetails(TypedDict):
    """Details of the generated tokens: `reasoning_tokens` came before the answer."""

    reasoning_tokens: int


class Usage(TypedDict):
    """The tokens of prompts and answers; each prompt counts once."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: NotRequired[CompletionTokensDetails]


class InputTokensDetails(TypedDict):
    """Details of the input tokens: those that the prefix cache had, and those that are new to it."""

    cached_tokens: int
    cache_write_tokens: int


class InputUsage(TypedDict):
    """The usage of decisions and responses."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: CompletionTokensDetails
    total_tokens: int


class TokenLogprob(TypedDict):
    """A likely token at its place, with its log-probability under the steered model."""

    token: str
    logprob: float
    bytes: list[int]


class ChosenTokenLogprob(TokenLogprob):
    """The chosen token, and the likeliest tokens at its place."""

    top_logprobs: list[TokenLogprob]


CompletionFinishReason = Literal["stop", "length"]
"""Why a text ended: `stop`, by the model or the request, or `length`, for lack of room."""

ChatFinishReason = Literal[CompletionFinishReason, "tool_calls"]
"""Why an answer ended; `tool_calls` if it ended with calls."""
