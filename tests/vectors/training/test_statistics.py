"""Figures of a report, against slow references written from the definitions."""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from vectors.errors import MissingDependency
from vectors.training.statistics import LetterShift, accuracy_of, letter_shift, mean_of

Z = 1.959963984540054  # 97.5 % of the normal distribution lies below


def wilson(num_right: float, num_items: int) -> tuple[float, float]:
    share = num_right / num_items
    middle = (share + Z**2 / (2 * num_items)) / (1 + Z**2 / num_items)
    half = Z / (1 + Z**2 / num_items) * math.sqrt(share * (1 - share) / num_items + Z**2 / (4 * num_items**2))
    return middle - half, middle + half


class TestAccuracy:
    @pytest.mark.parametrize(("right", "items"), [(0, 1), (1, 1), (0, 20), (20, 20), (7, 20), (613, 800), (1, 800)])
    def test_of_zeros_and_ones_is_wilsons(self, right: int, items: int) -> None:
        measured = accuracy_of([1.0] * right + [0.0] * (items - right))
        low, high = wilson(right, items)
        assert (measured.value, measured.num_items) == (right / items, items)
        assert (measured.low, measured.high) == pytest.approx((low, high), abs=1e-12)
        assert 0.0 <= measured.low <= measured.value <= measured.high <= 1.0

    def test_of_shares_is_students_with_a_score_of_0_and_of_1_added(self) -> None:
        scores = np.random.default_rng(3).binomial(4, 0.7, 150) / 4
        measured = accuracy_of(scores)
        added = [*scores, 0.0, 1.0]
        middle, error = statistics.mean(added), statistics.stdev(added) / math.sqrt(len(added))
        reach = 1.9760131 * error  # 97.5 % of Student's distribution with 149 degrees of freedom
        assert measured.value == pytest.approx(scores.mean())
        assert (measured.low, measured.high) == pytest.approx((middle - reach, middle + reach), abs=1e-6)

    @pytest.mark.parametrize("items", [1, 2, 8])
    def test_of_few_equal_shares_has_a_width(self, items: int) -> None:
        measured = accuracy_of([0.25] * items)
        assert measured.high - measured.low > 0.3

    def test_of_groups_counts_groups_and_not_items(self) -> None:
        scores = np.random.default_rng(3).binomial(1, 0.5, 20).astype(float)
        alone = accuracy_of(scores)
        repeated = accuracy_of(np.repeat(scores, 5), [str(number) for number in np.repeat(np.arange(20), 5)])
        assert repeated.value == alone.value
        assert repeated.high - repeated.low == pytest.approx(alone.high - alone.low, rel=0.15)

    def test_interval_covers_the_truth_about_as_often_as_it_says(self) -> None:
        chance = np.random.default_rng(11)
        covered = 0
        for _ in range(200):
            scores = chance.binomial(4, chance.beta(2, 1, 60)) / 4
            measured = accuracy_of(scores)
            covered += measured.low <= 2 / 3 <= measured.high
        assert 0.90 <= covered / 200 <= 0.985

    @pytest.mark.parametrize("scores", [[], [[0.5]], [math.nan], [1.1], [-0.1], [math.inf], 0.5])
    def test_refuses_what_is_no_score(self, scores: Any) -> None:
        with pytest.raises(ValueError, match="scores"):
            accuracy_of(scores)


class TestLetterShift:
    def test_shares_and_distance(self) -> None:
        shift = letter_shift([0, 0, 1, 2], [0, 1, 1, 1], 4)
        assert shift == LetterShift((0.5, 0.25, 0.25, 0.0), (0.25, 0.75, 0.0, 0.0), 0.5)

    def test_extremes(self) -> None:
        assert letter_shift([0, 1], [1, 0], 2).distance == 0.0
        assert letter_shift(np.zeros(9, dtype=np.int64), [1], 2).distance == 1.0

    @pytest.mark.parametrize("chosen", [[], [2], [-1], [0.5], [[0]]])
    def test_refuses_what_is_no_letter(self, chosen: Any) -> None:
        with pytest.raises(ValueError, match="chosen_after"):
            letter_shift([0], chosen, 2)


class TestMean:
    def test_the_error_is_robust_to_groups(self) -> None:
        """Against the definition: residuals are summed in each group, and the two groups at the ends are added."""
        values, groups = [1.0, 1.0, -1.0, 0.0, 0.5, 0.5], ["a", "a", "b", None, "b", "a"]
        found = mean_of(values, -1.0, 1.0, groups)
        members = [[1.0, 1.0, 0.5], [-1.0, 0.5], [0.0]]  # and one of 2 items at each end of the range
        middle = (sum(values) + 2 - 2) / 10
        squares = [sum(value - middle for value in group) ** 2 for group in members]
        squares += [(2 * (end - middle)) ** 2 for end in (-1.0, 1.0)]
        assert found.standard_error == pytest.approx(math.sqrt(5 / 4 * sum(squares)) / 10)
        assert found.value == pytest.approx(2 / 6)
        assert (found.num_items, found.num_groups) == (6, 3)

    def test_one_group_says_nothing(self) -> None:
        found = mean_of([0.5, 0.75], -1.0, 1.0, ["a", "a"])
        assert (found.low, found.high) == (-1.0, 1.0)

    @pytest.mark.parametrize("groups", [["a"], ["a"] * 3])
    def test_refuses_other_groups_than_items(self, groups: list[str | None]) -> None:
        with pytest.raises(ValueError, match="one for each of 2 items"):
            mean_of([0.0, 1.0], -1.0, 1.0, groups)


@pytest.mark.parametrize(
    ("absent", "call"),
    [
        ("scipy", lambda: accuracy_of([0.5, 0.25])),
        ("statsmodels.stats.proportion", lambda: accuracy_of([1.0])),
    ],
)
def test_says_how_to_get_what_is_absent(
    monkeypatch: pytest.MonkeyPatch, absent: str, call: Callable[[], object]
) -> None:
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(MissingDependency, match=r"tiller\[train\]"):
        call()
