"""Figures of a study: how accuracy differs between two ways to answer the same test items, over tasks and seeds.

Two readings of the same tests stand together. `presented` figures are for each prompt in the one order that the method
shows it in, with Student's t-test over seeds: with `paper` letters that is the protocol of Cui & Chen 2025
(arXiv:2509.22739). The others are letter-balanced: an item counts by the share of its rotations answered correctly.
They come with the corrected resampled t-test over seeds, which allows for splits of one pool sharing items, and with
the exact paired test over the items of the first seed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vectors.errors import InvalidData
from vectors.study.definition import ModelCase, StudyCell
from vectors.training.significance import SeedsTest, corrected_seeds_test, holm, paired_test, seeds_test
from vectors.training.statistics import Floats, Mean, mean_of

Record = Mapping[str, Any]
"""A cell's file."""

Records = Mapping[ModelCase, Mapping[StudyCell, Record]]
"""The cells of each model."""

Row = dict[str, Any]

P_VALUES = ("p", "presented_p", "exact_p")


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """How the test items of a cell were answered: without its vector, or with it.

    `scores`: float64 `[items]`, the share of each item's rotations answered right; `presented`: 1 where the item was
    answered right as the method shows it, else 0. `sha256` says which items they are, and in which order they and their
    options were asked. `num_train`: how many items the cell trained on.
    """

    sha256: str
    scores: Floats
    presented: Floats
    groups: tuple[str | None, ...]
    num_train: int

    @classmethod
    def of(cls, record: Record, *, is_steered: bool) -> Answers:
        """Those of a cell with a result."""
        items, when = record["items"], "after" if is_steered else "before"
        right, asked = np.asarray(items[f"right_{when}"], np.float64), np.asarray(items["prompts"], np.float64)
        presented = np.asarray(items[f"presented_{when}"], np.float64)
        return cls(items["sha256"], right / asked, presented, tuple(items["group"]), record["split"]["train"])


class Paired:
    """The same items of one task and seed, answered in two ways."""

    def __init__(self, before: Answers, after: Answers) -> None:
        """Raises `InvalidData` unless both are answers to the same items, asked in the same way."""
        if before.sha256 != after.sha256:
            raise InvalidData("the two were tested on different items, so they cannot be compared")
        self.before, self.after = before, after

    @functools.cached_property
    def gain(self) -> Mean:
        """The difference in letter-balanced accuracy, with its standard error over items."""
        return mean_of(self.after.scores - self.before.scores, -1.0, 1.0, self.before.groups)

    @property
    def presented_gain(self) -> float:
        """The difference in accuracy as presented."""
        return float(self.after.presented.mean()) - float(self.before.presented.mean())

    @property
    def test_ratio(self) -> float:
        """Test items for each item trained on, where the two differ the larger ratio, which claims less."""
        return len(self.before.scores) / min(self.before.num_train, self.after.num_train)


Seeds = Sequence[Sequence[Paired]]
"""For each seed, what was found on each of some tasks."""


def figures_of(seeds: Seeds, before: str, after: str) -> Row:
    """Means over seeds of means over a seed's tasks, in both readings, with the tests over seeds.

    `before` and `after` name the two accuracies. With a single task and seed the interval is that of its items, without
    t and p. `exact_p` and the counts are for the items of the first seed, all tasks together; None where no seed has a
    result.
    """
    gains = [[paired.gain for paired in seed] for seed in seeds]
    readings = {
        "": (
            [mean([float(paired.before.scores.mean()) for paired in seed]) for seed in seeds],
            [mean([gain.value for gain in seed]) for seed in gains],
            _corrected(seeds),
        ),
        "presented_": (
            [mean([float(paired.before.presented.mean()) for paired in seed]) for seed in seeds],
            [mean([paired.presented_gain for paired in seed]) for seed in seeds],
            seeds_test([sum(paired.presented_gain for paired in seed) / len(seed) for seed in seeds]),
        ),
    }
    row: Row = {}
    for prefix, (accuracies, differences, tested) in readings.items():
        first, effect = mean(accuracies), mean(differences)
        row |= {
            f"{prefix}{before}": first,
            f"{prefix}{after}": None if first is None or effect is None else first + effect,
            f"{prefix}effect": effect,
            **{f"{prefix}{name}": value for name, value in _test_row(tested).items()},
        }
    if [len(seed) for seed in seeds] == [1]:
        row["low"], row["high"] = gains[0][0].low, gains[0][0].high
    row["letter_bias"] = None if row["effect"] is None else row["presented_effect"] - row["effect"]
    return row


def first_seed_figures(firsts: Sequence[Paired]) -> Row:
    """The counts and the paired test over the items of some tasks together, one seed of each; groups are a task's own.

    All None without a task.
    """
    if not firsts:
        return dict.fromkeys(("items", "wrong_to_right", "right_to_wrong", "exact_p"))
    groups = [
        None if group is None else f"{number} {group}"
        for number, paired in enumerate(firsts)
        for group in paired.before.groups
    ]
    before, after = (
        np.concatenate([side.scores for side in sides])
        for sides in ([paired.before for paired in firsts], [paired.after for paired in firsts])
    )
    tested = paired_test(before, after, groups)
    return {
        "items": len(groups),
        "wrong_to_right": tested.wrong_to_right,
        "right_to_wrong": tested.right_to_wrong,
        "exact_p": tested.p,
    }


def common_seeds(tasks: Sequence[Mapping[int, Paired]]) -> dict[int, list[Paired]]:
    """By seed what was found on every task; only seeds that have all of the tasks."""
    seeds = [seed for seed in next(iter(tasks), {}) if all(seed in found for found in tasks)]
    return {seed: [found[seed] for found in tasks] for seed in seeds}


def adjust(family: Sequence[Row]) -> None:
    """Add `…_holm` for each of `P_VALUES`, adjusted for all rows of the family that have it."""
    for name in P_VALUES:
        adjusted = holm({str(number): row[name] for number, row in enumerate(family) if row[name] is not None})
        for number, row in enumerate(family):
            row[f"{name}_holm"] = adjusted.get(str(number))


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of those that are known; None where none is."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _corrected(seeds: Seeds) -> SeedsTest | None:
    """The corrected test of the seeds' mean gains, each the mean of independent results."""
    if not seeds:
        return None
    num_test = sum(len(paired.before.scores) for seed in seeds for paired in seed)
    num_train = sum(len(paired.before.scores) / paired.test_ratio for seed in seeds for paired in seed)
    return corrected_seeds_test(
        [sum(paired.gain.value for paired in seed) / len(seed) for seed in seeds],
        [math.hypot(*(paired.gain.standard_error for paired in seed)) / len(seed) for seed in seeds],
        num_test / num_train,
    )


def _test_row(tested: SeedsTest | None) -> Row:
    if tested is None:
        return {"low": None, "high": None, "t": None, "p": None}
    return {"low": tested.low, "high": tested.high, "t": tested.t, "p": tested.p}
