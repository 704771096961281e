"""Figures of a report, against slow references written from the definitions."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from vectors.errors import MissingDependency
from vectors.training.statistics import (
    Accuracy,
    LetterShift,
    PairedTest,
    accuracy_of,
    holm,
    letter_shift,
    paired_test,
    seeds_test,
)

Z = 1.959963984540054  # 97.5 % of the normal distribution lies below


def wilson(num_right: float, num_items: int) -> tuple[float, float]:
    share = num_right / num_items
    middle = (share + Z**2 / (2 * num_items)) / (1 + Z**2 / num_items)
    half = Z / (1 + Z**2 / num_items) * math.sqrt(share * (1 - share) / num_items + Z**2 / (4 * num_items**2))
    return middle - half, middle + half


def at_least(rose: int, changed: int) -> float:
    """The chance of so many heads or more among fair coins."""
    ways: int = sum(math.comb(changed, heads) for heads in range(rose, changed + 1))
    return ways / float(2**changed)


def resampled_interval(values: np.ndarray[Any, Any], num_resamples: int = 4000) -> tuple[float, float]:
    """A plain bootstrap, an item at a time, with other chances than the module's."""
    chance = np.random.default_rng(99)
    means = sorted(float(values[chance.integers(0, len(values), len(values))].mean()) for _ in range(num_resamples))
    return means[int(0.025 * num_resamples)], means[int(0.975 * num_resamples)]


class TestAccuracy:
    @pytest.mark.parametrize(("right", "items"), [(0, 1), (1, 1), (0, 20), (20, 20), (7, 20), (613, 800), (1, 800)])
    def test_of_zeros_and_ones_is_wilsons(self, right: int, items: int) -> None:
        measured = accuracy_of([1.0] * right + [0.0] * (items - right))
        low, high = wilson(right, items)
        assert (measured.value, measured.num_items) == (right / items, items)
        assert (measured.low, measured.high) == pytest.approx((low, high), abs=1e-12)
        assert 0.0 <= measured.low <= measured.value <= measured.high <= 1.0

    def test_of_shares_agrees_with_a_plain_bootstrap(self) -> None:
        scores = np.random.default_rng(3).binomial(4, 0.7, 150) / 4
        measured = accuracy_of(scores)
        assert measured.value == pytest.approx(scores.mean())
        assert (measured.low, measured.high) == pytest.approx(resampled_interval(scores), abs=0.006)

    @pytest.mark.parametrize("items", [1, 2, 300])
    def test_of_equal_shares_is_no_narrower_than_chance_allows(self, items: int) -> None:
        measured = accuracy_of([0.25] * items)
        assert (measured.low, measured.high) == pytest.approx(wilson(0.25 * items, items))

    def test_of_shares_equal_but_for_rounding_is_that_of_equal_ones(self) -> None:
        assert accuracy_of([0.3, 0.1 + 0.2, 0.3]).low == pytest.approx(accuracy_of([0.3] * 3).low)

    def test_interval_of_two_different_shares_is_finite(self) -> None:
        measured = accuracy_of([0.25, 0.5])
        assert (measured.low, measured.value, measured.high) == (0.25, 0.375, 0.5)

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


class TestPairedTest:
    @pytest.mark.parametrize(("rose", "fell"), [(1, 0), (0, 1), (5, 0), (12, 4), (4, 12), (6, 6), (90, 60)])
    def test_of_zeros_and_ones_is_mcnemars(self, rose: int, fell: int) -> None:
        before = [0.0] * rose + [1.0] * fell + [1.0] * 7 + [0.0] * 9
        after = [1.0] * rose + [0.0] * fell + [1.0] * 7 + [0.0] * 9
        tested = paired_test(before, after)
        assert (tested.wrong_to_right, tested.right_to_wrong) == (rose, fell)
        assert tested.gain == pytest.approx((rose - fell) / len(before))
        assert tested.p == pytest.approx(at_least(rose, rose + fell), rel=1e-9)
        assert tested.low <= tested.gain <= tested.high

    def test_of_shares_counts_signs(self) -> None:
        before = [0.0, 0.25, 1 / 3, 0.5, 1.0, 0.75]
        after = [0.25, 0.5, 2 / 3, 1.0, 0.75, 0.75]
        tested = paired_test(before, after)
        assert (tested.wrong_to_right, tested.right_to_wrong) == (4, 1)
        assert tested.p == pytest.approx(at_least(4, 5)) == pytest.approx(6 / 32)

    def test_rounding_is_no_change(self) -> None:
        tested = paired_test([0.3, 0.6], [0.1 + 0.2, 0.6])
        assert (tested.wrong_to_right, tested.right_to_wrong, tested.p) == (0, 0, 1.0)

    def test_interval_agrees_with_a_plain_bootstrap_of_pairs(self) -> None:
        chance = np.random.default_rng(5)
        before = chance.binomial(4, 0.5, 200) / 4
        after = np.clip(before + chance.choice([-0.25, 0.0, 0.25, 0.5], 200), 0, 1)
        tested = paired_test(before, after)
        assert (tested.low, tested.high) == pytest.approx(resampled_interval(after - before), abs=0.006)

    def test_pairs_are_kept_together(self) -> None:
        before = np.tile([0.0, 0.75], 100)
        tested = paired_test(before, before + np.tile([0.25, 0.25, 0.25, 0.0], 50))
        assert tested.high - tested.low < 0.05  # resampled apart, it would be 0.14 wide

    def test_nothing_changed(self) -> None:
        scores = [0.0, 1.0, 0.5]
        assert paired_test(scores, scores) == PairedTest(0.0, 0.0, 0.0, 1.0, 0, 0)

    @pytest.mark.parametrize("items", [1, 2, 40])
    def test_all_change_alike(self, items: int) -> None:
        tested = paired_test([0.25] * items, [0.75] * items)
        assert (tested.gain, tested.low, tested.high) == (0.5, 0.5, 0.5)
        assert tested.p == pytest.approx(0.5**items)
        assert (tested.wrong_to_right, tested.right_to_wrong) == (items, 0)

    def test_interval_covers_the_truth_about_as_often_as_it_says(self) -> None:
        chance = np.random.default_rng(12)
        covered = 0
        for _ in range(200):
            before = chance.binomial(1, 0.5, 120).astype(np.float64)
            flipped = chance.random(120) < np.where(before == 1.0, 0.1, 0.3)
            tested = paired_test(before, np.where(flipped, 1 - before, before))
            covered += tested.low <= 0.1 <= tested.high
        assert 0.90 <= covered / 200 <= 0.985

    def test_p_is_seldom_small_where_nothing_helps(self) -> None:
        chance = np.random.default_rng(13)
        scores = chance.binomial(1, 0.5, (200, 2, 60))
        assert sum(paired_test(before, after).p < 0.05 for before, after in scores) <= 20

    def test_memory_is_bounded(self) -> None:
        items = 20_000
        chance = np.random.default_rng(1)
        before, after = chance.binomial(4, 0.5, (2, items)) / 4
        paired_test(before[:9], after[:9])  # imports
        tracemalloc.start()
        paired_test(before, after)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 64 * 2**20  # all resamples at once would take 640 MB

    def test_refuses_different_items(self) -> None:
        with pytest.raises(ValueError, match="same items before and after, got 2 and 1"):
            paired_test([0.0, 1.0], [1.0])


class TestSeedsTest:
    def test_known_numbers(self) -> None:
        # mean 0.03, standard deviation 0.0158114, so t = 0.03 ÷ (0.0158114 ÷ √5) = 3 √2; 4 degrees of freedom
        tested = seeds_test([0.01, 0.02, 0.03, 0.04, 0.05])
        assert tested is not None
        t = 3 * math.sqrt(2)
        assert tested.t == pytest.approx(t)
        # Student's distribution of 4 degrees of freedom in closed form
        x = t / math.sqrt(4 + t * t)
        assert tested.p == pytest.approx(0.5 - (3 * x - x**3) / 4)
        half = 2.7764451051977987 * 0.01 / math.sqrt(2)
        assert (tested.mean, tested.low, tested.high) == pytest.approx((0.03, 0.03 - half, 0.03 + half))
        assert tested.num_seeds == 5

    def test_two_seeds(self) -> None:
        tested = seeds_test([0.1, 0.3])  # t = 0.2 ÷ 0.1; Cauchy's distribution
        assert tested is not None
        assert tested.t == pytest.approx(2.0)
        assert tested.p == pytest.approx(0.5 - math.atan(2.0) / math.pi)

    def test_harm_is_no_evidence(self) -> None:
        tested = seeds_test([-0.1, -0.3])
        assert tested is not None
        assert tested.p == pytest.approx(0.5 + math.atan(2.0) / math.pi)

    @pytest.mark.parametrize(("difference", "p"), [(0.1, 0.0), (0.0, 1.0), (-0.1, 1.0)])
    def test_equal_differences(self, difference: float, p: float) -> None:
        tested = seeds_test([difference] * 15)
        assert tested is not None
        assert (tested.mean, tested.low, tested.high) == pytest.approx((difference,) * 3)
        assert (tested.t, tested.p, tested.num_seeds) == (None, p, 15)

    def test_equal_but_for_rounding(self) -> None:
        tested = seeds_test([0.3, 0.1 + 0.2])
        assert tested is not None
        assert (tested.t, tested.p) == (None, 0.0)

    def test_nearly_equal_does_not_warn(self) -> None:
        tested = seeds_test([1.0, 1.0, 1.0 - 2e-9])
        assert tested is not None
        assert 0.0 <= tested.p < 1e-9

    @pytest.mark.parametrize("differences", [[], [0.1]])
    def test_none_for_fewer_than_two(self, differences: list[float]) -> None:
        assert seeds_test(differences) is None

    @pytest.mark.parametrize("differences", [[0.1, math.nan], [5.0, 3.0]])
    def test_refuses_what_is_no_difference_of_accuracies(self, differences: list[float]) -> None:
        with pytest.raises(ValueError, match="differences"):
            seeds_test(differences)


class TestHolm:
    def test_by_hand(self) -> None:
        # sorted 0.005 × 4, 0.01 × 3, 0.03 × 2, 0.04 × 1; none below the one before it
        adjusted = holm({"d": 0.04, "b": 0.01, "c": 0.03, "a": 0.005})
        assert list(adjusted) == ["d", "b", "c", "a"]
        assert adjusted == pytest.approx({"a": 0.02, "b": 0.03, "c": 0.06, "d": 0.06})

    def test_against_the_definition(self) -> None:
        given = {str(index): float(p) for index, p in enumerate(np.random.default_rng(2).random(18) ** 3)}
        largest, expected = 0.0, {}
        for rank, name in enumerate(sorted(given, key=given.__getitem__)):
            largest = max(largest, min(1.0, (18 - rank) * given[name]))
            expected[name] = largest
        assert holm(given) == pytest.approx(expected)

    def test_few(self) -> None:
        assert holm({}) == {}
        assert holm({"one": 0.2}) == {"one": 0.2}
        assert holm({"one": 1.0, "two": 0.9}) == {"one": 1.0, "two": 1.0}
        assert holm({"one": 0.0, "two": 0.0}) == {"one": 0.0, "two": 0.0}

    @pytest.mark.parametrize("p", [math.nan, -0.1, 1.1])
    def test_refuses_what_is_no_p_value(self, p: float) -> None:
        with pytest.raises(ValueError, match="p_values"):
            holm({"one": p})


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


def test_results_are_the_same_each_time_and_can_be_json() -> None:
    chance = np.random.default_rng(8)
    before, after = chance.binomial(4, 0.5, (2, 500)) / 4

    def results() -> list[str]:
        made = (
            accuracy_of(before),
            paired_test(before, after),
            seeds_test([0.1, 0.1]),
            letter_shift(np.array([0, 1]), np.array([1, 1]), 2),
        )
        return [json.dumps(dataclasses.asdict(result), allow_nan=False) for result in made if result is not None]

    np.random.seed(1)
    first = results()
    np.random.seed(2)
    assert results() == first
    assert len(first) == 4
    assert json.loads(first[0]) == dataclasses.asdict(Accuracy(**json.loads(first[0])))


@pytest.mark.parametrize(
    ("absent", "call"),
    [
        ("scipy", lambda: paired_test([0.0], [1.0])),
        ("scipy", lambda: seeds_test([0.1, 0.2])),
        ("scipy", lambda: accuracy_of([0.5, 0.25])),
        ("statsmodels.stats.proportion", lambda: accuracy_of([1.0])),
        ("statsmodels.stats.multitest", lambda: holm({"one": 0.5})),
    ],
)
def test_says_how_to_get_what_is_absent(
    monkeypatch: pytest.MonkeyPatch, absent: str, call: Callable[[], object]
) -> None:
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(MissingDependency, match=r"tiller\[train\]"):
        call()
