"""Tests of means, against slow references written from the definitions."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import sys
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from vectors.errors import MissingDependency
from vectors.training.significance import (
    corrected_seeds_test,
    holm,
    mean_test,
    paired_test,
    seeds_test,
)


def at_least(rose: int, changed: int) -> float:
    """The chance of so many heads or more among fair coins."""
    ways: int = sum(math.comb(changed, heads) for heads in range(rose, changed + 1))
    return ways / float(2**changed)


def sign_flips(values: Sequence[float]) -> float:
    """The share of all signs of `values` whose sum is at least that of `values`."""
    sums = [math.fsum(sign * value for sign, value in zip(signs, values, strict=True)) for signs in all_signs(values)]
    return sum(found >= math.fsum(values) - 1e-9 for found in sums) / len(sums)


def all_signs(values: Sequence[float]) -> list[tuple[int, ...]]:
    return list(itertools.product((1, -1), repeat=len(values)))


class TestMeanTest:
    @pytest.mark.parametrize("seed", range(6))
    def test_goes_through_all_signs(self, seed: int) -> None:
        chance = np.random.default_rng(seed)
        options = chance.integers(2, 6, 11)
        values = chance.integers(-1, options + 1) / options - 1 / options * (seed % 2)
        tested = mean_test(np.clip(values, -1, 1))
        assert tested.p == pytest.approx(sign_flips(np.clip(values, -1, 1).tolist()), rel=1e-9)
        assert tested.method == "one-sided exact sign-flip test of the mean"

    def test_groups_change_sign_together(self) -> None:
        values, groups = [0.5, 0.5, 1.0, -0.25, 0.75, 0.75], ["a", "a", "b", None, "c", "c"]
        tested = mean_test(values, groups)
        assert tested.p == pytest.approx(sign_flips([1.0, 1.0, -0.25, 1.5]))
        assert tested.method == "one-sided exact sign-flip test of the mean over 4 groups"

    def test_too_many_ways_are_drawn(self) -> None:
        chance = np.random.default_rng(4)
        values = chance.normal(0.02, 0.2, 400).clip(-1, 1)
        tested = mean_test(values)
        assert tested.method.endswith("100000 draws")
        z = values.sum() / math.sqrt((values**2).sum())
        assert tested.p == pytest.approx(math.erfc(z / math.sqrt(2)) / 2, abs=0.004)
        assert mean_test(values) == tested

    def test_a_mean_well_above_a_bar_passes_though_few_items_are_above_it(self) -> None:
        """45 % right of three options: most items are below one in three, their mean is not."""
        scores = np.asarray([1.0] * 90 + [0.0] * 110)
        assert mean_test(scores - 1 / 3).p < 0.001

    def test_items_that_mostly_rise_a_little_are_no_gain(self) -> None:
        """Of five options one letter for everything raises four of five items by a fifth, and drops the others."""
        assert mean_test(np.asarray([0.2] * 80 + [-0.8] * 20)).p > 0.4


class TestPairedTest:
    @pytest.mark.parametrize(("rose", "fell"), [(1, 0), (0, 1), (5, 0), (12, 4), (4, 12), (6, 6), (90, 60)])
    def test_of_zeros_and_ones_is_mcnemars_and_says_so(self, rose: int, fell: int) -> None:
        before = [0.0] * rose + [1.0] * fell + [1.0] * 7 + [0.0] * 9
        after = [1.0] * rose + [0.0] * fell + [1.0] * 7 + [0.0] * 9
        tested = paired_test(before, after)
        assert (tested.wrong_to_right, tested.right_to_wrong) == (rose, fell)
        assert tested.gain == pytest.approx((rose - fell) / len(before))
        assert tested.p == tested.sign_p == pytest.approx(at_least(rose, rose + fell), rel=1e-9)
        assert tested.method == "one-sided exact McNemar test"
        assert tested.low <= tested.gain <= tested.high

    def test_of_zeros_and_ones_has_the_interval_of_bonett_and_price(self) -> None:
        rose, fell, items = 30, 10, 200
        before = [0.0] * rose + [1.0] * (items - rose)
        after = [1.0] * rose + [0.0] * fell + [1.0] * (items - rose - fell)
        tested = paired_test(before, after)
        up, down = (rose + 1) / (items + 2), (fell + 1) / (items + 2)
        # theirs divides by the items and has the normal distribution, ours by one item less and has Student's
        error = math.sqrt((up + down - (up - down) ** 2) / (items + 1))
        assert tested.standard_error == pytest.approx(error)
        assert (tested.low, tested.high) == pytest.approx(
            (up - down - 1.9719565 * error, up - down + 1.9719565 * error), abs=1e-7
        )

    def test_of_shares_tests_the_mean_and_is_not_called_mcnemars(self) -> None:
        before = [0.0, 0.25, 1 / 3, 0.5, 1.0, 0.75]
        after = [0.25, 0.5, 2 / 3, 1.0, 0.75, 0.75]
        tested = paired_test(before, after)
        assert (tested.wrong_to_right, tested.right_to_wrong) == (4, 1)
        assert tested.sign_p == pytest.approx(at_least(4, 5)) == pytest.approx(6 / 32)
        assert tested.p == pytest.approx(sign_flips([0.25, 0.25, 1 / 3, 0.5, -0.25]))
        assert "McNemar" not in tested.method

    def test_of_zeros_and_ones_in_groups_is_not_mcnemars(self) -> None:
        assert "2 groups" in paired_test([0.0, 0.0, 1.0], [1.0, 1.0, 1.0], ["a", "a", "b"]).method

    def test_rounding_is_no_change(self) -> None:
        tested = paired_test([0.3, 0.6], [0.1 + 0.2, 0.6])
        assert (tested.wrong_to_right, tested.right_to_wrong, tested.p) == (0, 0, 1.0)

    @pytest.mark.parametrize("items", [1, 2, 40, 3000])
    def test_all_change_alike(self, items: int) -> None:
        tested = paired_test([0.25] * items, [0.75] * items)
        assert tested.p == pytest.approx(max(0.5**items, sys.float_info.min))
        assert tested.p > 0
        assert tested.low < tested.gain == 0.5 < tested.high
        assert (tested.wrong_to_right, tested.right_to_wrong) == (items, 0)

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

    @pytest.mark.parametrize("differences", [[0.1] * 15, [0.0] * 2, [0.3, 0.1 + 0.2]])
    def test_equal_differences_leave_nothing_to_compare_with(self, differences: list[float]) -> None:
        tested = seeds_test(differences)
        assert tested is not None
        assert tested.mean == pytest.approx(differences[0])
        assert (tested.low, tested.high, tested.t, tested.p) == (None, None, None, None)

    def test_nearly_equal_does_not_warn(self) -> None:
        tested = seeds_test([1.0, 1.0, 1.0 - 2e-9])
        assert tested is not None
        assert tested.p is not None
        assert 0.0 < tested.p < 1e-9

    @pytest.mark.parametrize("differences", [[], [0.1]])
    def test_none_for_fewer_than_two(self, differences: list[float]) -> None:
        assert seeds_test(differences) is None

    @pytest.mark.parametrize("differences", [[0.1, math.nan], [5.0, 3.0]])
    def test_refuses_what_is_no_difference_of_accuracies(self, differences: list[float]) -> None:
        with pytest.raises(ValueError, match="differences"):
            seeds_test(differences)


class TestCorrectedSeedsTest:
    def test_known_numbers(self) -> None:
        # as for Student's test above, with (1/5 + 1/3) in place of 1/5
        tested = corrected_seeds_test([0.01, 0.02, 0.03, 0.04, 0.05], [0.0] * 5, 1 / 3)
        assert tested is not None
        error = 0.0158113883 * math.sqrt(1 / 5 + 1 / 3)
        assert tested.t == pytest.approx(0.03 / error)
        assert (tested.low, tested.high) == pytest.approx((0.03 - 2.7764451 * error, 0.03 + 2.7764451 * error))

    def test_equal_differences_have_the_error_of_their_items(self) -> None:
        tested = corrected_seeds_test([0.1, 0.1], [0.03, 0.04], 1 / 3)  # t = 0.1 ÷ error; Cauchy's distribution
        assert tested is not None
        t = 0.1 / math.sqrt((1 / 2 + 1 / 3) * (0.03**2 + 0.04**2) / 2)
        assert tested.t == pytest.approx(t)
        assert tested.p == pytest.approx(0.5 - math.atan(t) / math.pi)

    def test_one_seed_has_no_test(self) -> None:
        assert corrected_seeds_test([0.1], [0.1], 1 / 3) is None

    def test_refuses_other_errors_than_differences(self) -> None:
        with pytest.raises(ValueError, match="a standard error for each"):
            corrected_seeds_test([0.1, 0.2], [0.1], 1 / 3)


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


def test_results_are_the_same_each_time_and_can_be_json() -> None:
    chance = np.random.default_rng(8)
    before, after = chance.binomial(4, 0.5, (2, 500)) / 4

    def results() -> list[str]:
        made = (paired_test(before, after), mean_test(chance.normal(size=5) * 0 + 0.1), seeds_test([0.1, 0.1]))
        return [json.dumps(dataclasses.asdict(result), allow_nan=False) for result in made if result is not None]

    np.random.seed(1)
    first = results()
    np.random.seed(2)
    assert results() == first


@pytest.mark.parametrize(
    ("absent", "call"),
    [
        ("scipy", lambda: paired_test([0.0], [1.0])),
        ("scipy", lambda: seeds_test([0.1, 0.2])),
        ("statsmodels.stats.multitest", lambda: holm({"one": 0.5})),
    ],
)
def test_says_how_to_get_what_is_absent(
    monkeypatch: pytest.MonkeyPatch, absent: str, call: Callable[[], object]
) -> None:
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(MissingDependency, match=r"tiller\[train\]"):
        call()
