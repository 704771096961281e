"""Objects of `POST /v1/decisions`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from typing_extensions import TypedDict

from server.api.generation.objects import AppliedSteering, InputUsage, Probability


class PredicateAnswer(TypedDict):
    """The probability that the statement is true."""

    type: Literal["predicate"]
    name: str | None
    probability: Probability


class OptionProbability(TypedDict):
    """The probability of an option."""

    value: str | bool
    probability: Probability


class ChoiceAnswer(TypedDict):
    """The likeliest option, and the probability of each."""

    type: Literal["choice"]
    name: str | None
    choice: str | bool
    confidence: Probability
    probabilities: list[OptionProbability]


class LevelProbability(TypedDict):
    """The probability of a level; `value` is its position, from 0."""

    label: str
    value: int
    probability: Probability


class ScoreAnswer(TypedDict):
    """The mean level, and the probability of the likeliest level and of each."""

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
