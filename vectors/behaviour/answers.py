"""Answers of a model to the same prompts, unsteered and steered, and how a judgement of them is kept."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from vectors.vocabulary import MAX_SEED

Side = Literal["unsteered", "steered"]
SIDES: tuple[Side, Side] = ("unsteered", "steered")

Decoding = Literal["greedy", "sampled"]
DECODINGS: tuple[Decoding, Decoding] = ("greedy", "sampled")

Scores = Mapping[str, float | None]
"""What one answer got, by criterion; None where no score was given."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer: its text, its tokens, and why it ended.

    `logprobs` are the log-probabilities of `token_ids` after the prompt under the unsteered model, whoever wrote them.
    `is_cut`: it was still going on when it reached the limit of tokens.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    is_cut: bool


@dataclass(frozen=True, slots=True)
class AnswerPair:
    """The unsteered and the steered answer to prompt number `prompt`, decoded alike and with the same seed."""

    prompt: int
    decoding: Decoding
    seed: int | None
    unsteered: Answer
    steered: Answer

    def of(self, side: Side) -> Answer:
        """The answer of one side."""
        return self.unsteered if side == "unsteered" else self.steered


@dataclass(frozen=True, slots=True)
class Assessment:
    """What one kind of evidence says about every pair.

    `by` names it in a sentence ("by a rule: …"); `about` is what else a report says of it. `scores` has a mapping for
    each side of each pair, with the same criteria everywhere, each from `lowest` to `highest`. `headline` is the
    criterion that decides. `worthless` says why it is no evidence at all, None if it is.
    """

    kind: Literal["rule", "classifier", "judge"]
    by: str
    headline: str
    lowest: float
    highest: float
    scores: Sequence[Mapping[Side, Scores]]
    about: Mapping[str, Any] = field(default_factory=dict)
    worthless: str | None = None
    replies: Sequence[Mapping[Side, Mapping[str, str]]] | None = None
    """The judge's own words by criterion, for each side of each pair."""


def seed_of_sample(seed: int, prompt: int, sample: int) -> int:
    """The seed of a sampled answer: the same for both sides, and different for every prompt and sample.

    One seed for all prompts would make their noise alike, and the prompts are counted as independent.
    """
    return random.Random(f"{seed}/{prompt}/{sample}").randint(0, MAX_SEED)
