"""Objects that several resources share: the applied steering, usage, log-probabilities."""

from __future__ import annotations

from typing import Annotated, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from vectors.positions import PositionsJson
from vectors.vocabulary import Latch, Operation, Part, Site

UnixSeconds = Annotated[int, Field(ge=0, description="Unix time in seconds.")]
Probability = Annotated[float, Field(ge=0, le=1)]
Revision = Annotated[str, Field(pattern="^[0-9a-f]{64}$", description="The SHA-256 of a vector's content.")]


class AppliedGate(TypedDict):
    """On which tokens an entry acts: the probe's pinned revision, where it reads, and what it must read."""

    probe: str
    revision: Revision
    site: Site
    layer: int
    above: NotRequired[float]
    below: NotRequired[float]
    sharpness: float | None
    latch: Latch


class GateCount(TypedDict):
    """How many tokens the gate of a steering entry has let through, `open`, `of` those in its positions and parts.

    `entry` counts the entries of the answer's `steering` from 0. A gate with a sharpness lets through where it is more
    than half open.
    """

    entry: int
    vector: str | None
    open: int
    of: int


class AppliedSteering(TypedDict):
    """A vector as it was applied: the revision that the request was pinned to, where, and how strongly.

    `vector` is null if the request brought its directions; the revision is then their hash.

    `min` and `max` are the interval of `cap`, null at an open end; only `cap` has them. `when` is present if it has a
    gate. `relative_dose` is the length of what is added relative to the model's typical activation, the largest over
    the layers. `warning` says that the scale asked for is above the vector's limit, and `capped_from` has that scale if
    it was lowered.
    """

    vector: str | None
    revision: Revision
    site: Site
    scale: float
    layers: list[int]
    positions: PositionsJson
    parts: list[Part]
    operation: Operation
    preserve_norm: bool
    relative_dose: NotRequired[float]
    warning: NotRequired[str]
    capped_from: NotRequired[float]
    min: NotRequired[float | None]
    max: NotRequired[float | None]
    when: NotRequired[AppliedGate]


class ProbeScores(TypedDict):
    """What a probe read at `layer`, in its vector's own unit.

    `scores` has one for each generated token, as log-probabilities do: of the position that chose it. It is empty if
    the probe reads only the prompt. `prompt_scores` has one for each token of the prompt, if the probe reads it. A
    token outside of the probe's window has null. `mean` and `max` are over all scores, and `above` counts those above
    `threshold`.
    """

    layer: int
    scores: list[float | None]
    prompt_scores: NotRequired[list[float | None]]
    threshold: float
    mean: float | None
    max: float | None
    above: int


class ProbeScoresDelta(TypedDict):
    """The scores of the tokens of one event, the first with those of the prompt, the last with the summary."""

    layer: int
    scores: list[float | None]
    prompt_scores: NotRequired[list[float | None]]
    threshold: NotRequired[float]
    mean: NotRequired[float | None]
    max: NotRequired[float | None]
    above: NotRequired[int]


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


CompletionFinishReason = Literal["stop", "length", "abort"]
"""Why a text ended: `stop`, by the model or the request, `length`, for lack of room, or `abort`, cancelled."""

ChatFinishReason = Literal[CompletionFinishReason, "tool_calls"]
"""Why an answer ended; `tool_calls` if it ended with calls."""
