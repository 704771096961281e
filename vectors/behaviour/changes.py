"""Changes: the mean of a measure unsteered and steered, and their paired difference, over prompts.

A prompt is the unit, since its answers are not independent: its value is the mean over its answers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vectors.behaviour.answers import SIDES, AnswerPair, Decoding
from vectors.training.significance import paired_test

SIGNIFICANCE = 0.05


@dataclass(frozen=True, slots=True)
class Change:
    """Means over `num_prompts` prompts, and their difference (steered minus unsteered) with its 95 % interval.

    `p`: one-sided, small when the measure rises. `rose`, `fell`: prompts whose value did. `num_left_out`: pairs of
    answers that are not counted, because one of the two has no value.
    """

    unsteered: float
    steered: float
    difference: float
    low: float
    high: float
    p: float
    rose: int
    fell: int
    num_prompts: int
    num_left_out: int

    def to_json(self) -> dict[str, Any]:
        """The change as shown in a report."""
        return {
            "unsteered": self.unsteered,
            "steered": self.steered,
            "difference": self.difference,
            "ci95": [self.low, self.high],
            "p": self.p,
            "rose": self.rose,
            "fell": self.fell,
            "prompts": self.num_prompts,
            "left_out": self.num_left_out,
        }


Values = Sequence[tuple[float | None, float | None]]
"""Unsteered and steered, for each pair of answers."""


def change_of(
    pairs: Sequence[AnswerPair],
    values: Values,
    bounds: tuple[float, float] | None = None,
    decoding: Decoding | None = None,
) -> Change | None:
    """The change of `values`, one for each of `pairs`, over all of them or those of one decoding.

    `bounds`: the least and the largest that a value can be, of which the interval makes use; without them, those of the
    values that there are. None if no pair has both values. Raises `MissingDependency`.
    """
    by_prompt: dict[int, list[tuple[float, float]]] = {}
    num_left_out = 0
    for pair, (before, after) in zip(pairs, values, strict=True):
        if decoding is not None and pair.decoding != decoding:
            continue
        if before is None or after is None:
            num_left_out += 1
        else:
            by_prompt.setdefault(pair.prompt, []).append((before, after))
    if not by_prompt:
        return None
    means = np.asarray([np.mean(each, axis=0) for each in by_prompt.values()], dtype=np.float64)
    return _change(means, bounds or (float(means.min()), float(means.max())), num_left_out)


def _change(means: NDArray[np.float64], bounds: tuple[float, float], num_left_out: int) -> Change:
    """The change of `[prompts, 2]` values: the paired test is of shares, so they are scaled and back."""
    low, high = bounds
    span = high - low or 1.0
    shares = np.clip((means - low) / span, 0.0, 1.0)
    tested = paired_test(shares[:, 0], shares[:, 1])
    unsteered, steered = (float(mean) for mean in means.mean(axis=0))
    return Change(
        unsteered,
        steered,
        steered - unsteered,
        tested.low * span,
        tested.high * span,
        tested.p,
        tested.wrong_to_right,
        tested.right_to_wrong,
        len(means),
        num_left_out,
    )


def as_perplexity(change: Change) -> dict[str, Any]:
    """The change of a mean negative log-probability (nats per token) as perplexities and their ratio."""
    shown = change.to_json() | {"unsteered": _exp(change.unsteered), "steered": _exp(change.steered)}
    shown["ratio"] = _exp(shown.pop("difference"))
    shown["ci95"] = [_exp(change.low), _exp(change.high)]
    return shown


def _exp(nats: float) -> float:
    return math.exp(min(700.0, nats))


def side_values(scores: Sequence[Any], criterion: str) -> Values:
    """One criterion of the scores of every pair."""
    return [(each[SIDES[0]][criterion], each[SIDES[1]][criterion]) for each in scores]
