"""Objects of `POST /v1/decisions`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from typing_extensions import TypedDict

from server.api.generation.objects import AppliedSteering, InputUsage, Probability


class PredicateAnswer(TypedDict):
    """How likely the statement is."""

    type: Literal["predicate"]
    name: str | None
    probability: Probability


class OptionProbability(TypedDict):
    """How likely an option is."""

    value: str | bool
    probability: Probability


class ChoiceAnswer(TypedDict):
    """The likeliest option, and how likely each is."""

    type: Literal["choice"]
    name: str | None
    choice: str | bool
    confidence: Probability
    probabilities: list[OptionProbability]


class LevelProbability(TypedDict):
    """How likely a level is; `value` is its place, from 0."""

    label: str
    value: int
    probability: Probability


class ScoreAnswer(TypedDict):
    """The mean level, the likelihood of the likeliest, and of each."""

    type: Literal["score"]
    name: str | None
    score: Annotated[float, Field(ge=0)]
    confidence: Probability
    probabilities: list[LevelProbability]


class Decision(TypedDict):
    """The answers, in the order of the questions, and the steering that was applied."""

    model: str
    answers: list[Annotated[PredicateAnswer | ChoiceAnswer | ScoreAnswer, Field(discriminator="type")]]
    usage: InputUsage
    steering: list[AppliedSteering]
