"""Significance: whether the mean of something is above zero - over items, over groups of items, over seeds.

Over items the test is Fisher's randomisation test of the mean, with the signs of the differences drawn at random. If
every item is right or wrong it is McNemar's exact test, and with groups of items the signs of whole groups are drawn.
It never gives a p of 0: n items that all improve alike give 2 to the power of -n. Invalid input raises `ValueError`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike

from vectors.training.statistics import (
    CONFIDENCE,
    SAME,
    Floats,
    Groups,
    Mean,
    differences_of,
    group_sums,
    mean_of,
    missing,
    scipy_stats,
    scores_of,
)

NUM_DRAWS = 100_000
"""How many draws of the signs stand for all of them where these are too many to go through."""

_SEED = 20250922
_MAX_STEPS = 1e8  # of the exact distribution: items times distinct sums
_MAX_DENOMINATOR = 26 * 25  # a share of an item's options minus a share of ties among them


@dataclass(frozen=True, slots=True)
class MeanTest:
    """Whether a mean is above zero: `mean` as in `statistics.mean_of`, and the one-sided `p` of the named `method`."""

    mean: Mean
    p: float
    method: str


@dataclass(frozen=True, slots=True)
class PairedTest:
    """How the scores of the same items changed.

    `gain`: mean difference, after minus before, -1 to 1, with its 95 % interval and standard error. `p`: one-sided,
    small when items improved, of the test that `method` names. `wrong_to_right`, `right_to_wrong`: how many items'
    scores rose and fell; `sign_p`: the one-sided exact binomial p of these two counts alone.
    """

    gain: float
    low: float
    high: float
    standard_error: float
    p: float
    method: str
    wrong_to_right: int
    right_to_wrong: int
    sign_p: float


@dataclass(frozen=True, slots=True)
class SeedsTest:
    """The mean of differences between accuracies over seeds with its 95 % interval, t and one-sided p.

    The last four are None where the differences do not vary, which leaves nothing to compare the mean with.
    """

    mean: float
    low: float | None
    high: float | None
    t: float | None
    p: float | None
    num_seeds: int


def mean_test(values: ArrayLike, groups: Groups | None = None) -> MeanTest:
    """Whether the mean of values `[items]` in [-1, 1] is above zero.

    p is the share of all ways to give the values (the sums of groups, where there are groups) a sign in which their sum
    is at least what it is: exact if values are shares of an item's options, otherwise or if the ways are too many from
    `NUM_DRAWS` seeded draws (Phipson & Smyth 2010, "Permutation p-values should never be zero"). Sources: Fisher 1935,
    "The design of experiments", section 21; for groups Canay, Romano & Shaikh 2017, "Randomization tests under an
    approximate symmetry assumption". Raises `MissingDependency`.
    """
    checked = differences_of("values", values)
    found = mean_of(checked, -1.0, 1.0, groups)
    p, is_exact = _sign_flip(checked, groups)
    over = f" over {found.num_groups} groups" if found.num_groups < found.num_items else ""
    exact = "exact " if is_exact else ""
    drawn = "" if is_exact else f", {NUM_DRAWS} draws"
    return MeanTest(found, p, f"one-sided {exact}sign-flip test of the mean{over}{drawn}")


def paired_test(before: ArrayLike, after: ArrayLike, groups: Groups | None = None) -> PairedTest:
    """Whether `after` is better than `before`: scores `[items]` in [0, 1] of the same items in the same order.

    `mean_test` of the differences; with scores of 0 and 1 and no groups that is the one-sided exact McNemar test
    (McNemar 1947, "Note on the sampling error of the difference between correlated proportions"), and is called so.
    Raises `MissingDependency`.
    """
    first, second = scores_of("before", before), scores_of("after", after)
    if first.size != second.size:
        raise ValueError(f"expected scores of the same items before and after, got {first.size} and {second.size}")
    differences = second - first
    rose = int((differences > SAME).sum())
    fell = int((differences < -SAME).sum())
    tested = mean_test(differences, groups)
    mean, method = tested.mean, tested.method
    are_right_or_wrong = bool(np.isin(np.concatenate([first, second]), (0.0, 1.0)).all())
    if are_right_or_wrong and mean.num_groups == mean.num_items:
        method = "one-sided exact McNemar test"
    return PairedTest(
        gain=mean.value,
        low=mean.low,
        high=mean.high,
        standard_error=mean.standard_error,
        p=tested.p,
        method=method,
        wrong_to_right=rose,
        right_to_wrong=fell,
        sign_p=_binomial(rose, rose + fell),
    )


def seeds_test(differences: Sequence[float]) -> SeedsTest | None:
    """Student's one-sample t-test of whether the mean of `[seeds]` differences (accuracies, -1 to 1) is above 0.

    One-sided, as Cui & Chen 2025 (arXiv:2509.22739) report it; None for fewer than 2 seeds. If all seeds draw from one
    pool of items, their differences are not independent and p is too small: see `corrected_seeds_test`. Raises
    `MissingDependency`.
    """
    checked = differences_of("differences", differences)
    if checked.size < 2:
        return None
    if float(np.ptp(checked)) <= SAME:
        return SeedsTest(float(checked.mean()), None, None, None, None, checked.size)
    return _student(checked, float(checked.var(ddof=1)) / checked.size)


def corrected_seeds_test(
    differences: Sequence[float], standard_errors: Sequence[float], test_ratio: float
) -> SeedsTest | None:
    """The corrected resampled t-test of whether the mean of `[seeds]` differences is above 0, one-sided.

    Splits of one pool share items, so the variance of the mean is (1 ÷ seeds + `test_ratio`) times that of one split,
    with `test_ratio` the number of test items for each item trained on (Nadeau & Bengio 2003, "Inference for the
    generalization error"). A split varies at least as much as the sampling of its test items makes it: the mean square
    of their `standard_errors` is the least variance, so splits that happen to agree give no p of 0. None for fewer than
    2 seeds. Raises `MissingDependency`.
    """
    checked = differences_of("differences", differences)
    errors = np.asarray(standard_errors, dtype=np.float64)
    if errors.shape != checked.shape or not bool((errors >= 0).all()) or not test_ratio > 0:
        raise ValueError("expected a standard error for each difference, and a ratio above 0")
    if checked.size < 2:
        return None
    return _student(checked, resampled_error(checked, test_ratio, least=float((errors**2).mean())) ** 2)


def resampled_error(values: ArrayLike, test_ratio: float, *, least: float = 0.0) -> float:
    """The standard error of the mean of `[seeds]` values, at least two, each of one split of a pool of items.

    The variance of the mean is (1 ÷ seeds + `test_ratio`) times that of one split, as in `corrected_seeds_test`;
    `least` is the smallest variance of one split.
    """
    checked = differences_of("values", values)
    if checked.size < 2:
        raise ValueError("values: expected two or more")
    return math.sqrt((1 / checked.size + test_ratio) * max(float(checked.var(ddof=1)), least))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """The p-values with the same names and order, adjusted for multiple tests.

    Holm 1979, "A simple sequentially rejective multiple test procedure": the chance that any of those below a level α
    is false is at most α. Raises `MissingDependency`.
    """
    if not p_values:
        return {}
    checked = np.asarray(list(p_values.values()), dtype=np.float64)
    if not bool(((checked >= 0.0) & (checked <= 1.0)).all()):
        raise ValueError("p_values: expected numbers from 0 to 1")
    try:
        from statsmodels.stats.multitest import multipletests
    except ImportError as error:
        raise missing("statsmodels") from error
    adjusted = multipletests(checked, method="holm")[1]
    return {name: float(value) for name, value in zip(p_values, adjusted, strict=True)}


def _student(differences: Floats, variance: float) -> SeedsTest:
    """Student's test and interval of the mean, whose variance is `variance`."""
    stats = scipy_stats()
    mean, error, freedom = float(differences.mean()), math.sqrt(variance), differences.size - 1
    if error == 0.0:
        return SeedsTest(mean, None, None, None, None, differences.size)
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * error
    t = mean / error
    p = max(float(stats.t.sf(t, freedom)), sys.float_info.min)
    return SeedsTest(mean, mean - reach, mean + reach, t, p, differences.size)


def _sign_flip(values: Floats, groups: Groups | None) -> tuple[float, bool]:
    """The one-sided p of the sum of `values` under random signs of groups, and whether it is exact."""
    whole = _whole_numbers(values)
    sums = group_sums(values if whole is None else whole, groups)[0]
    magnitudes = np.abs(sums)
    changed = magnitudes > (SAME if whole is None else 0)
    sums, magnitudes = sums[changed], magnitudes[changed]
    if not sums.size:
        return 1.0, True
    if float(np.ptp(magnitudes)) <= SAME:
        return _binomial(int((sums > 0).sum()), sums.size), True
    if whole is not None:
        divisor = math.gcd(*(int(value) for value in magnitudes))
        steps = [int(value) // divisor for value in magnitudes]
        if sum(steps) * len(steps) <= _MAX_STEPS:
            return _exact(steps, int(sums[sums > 0].sum()) // divisor), True
    kinds, counts = np.unique(np.round(magnitudes, 9), return_counts=True)
    chance = np.random.default_rng(_SEED)
    positive = chance.binomial(counts, 0.5, (NUM_DRAWS, counts.size)) @ kinds
    reached = int((positive >= float(sums[sums > 0].sum()) - SAME * sums.size).sum())
    return (reached + 1) / (NUM_DRAWS + 1), False


def _whole_numbers(values: Floats) -> Floats | None:
    """`values` times their least common denominator; None if they are not simple fractions."""
    kinds, owner = np.unique(values, return_inverse=True)
    fractions = [Fraction(float(value)).limit_denominator(_MAX_DENOMINATOR) for value in kinds]
    if any(abs(float(value) - float(fraction)) > SAME for value, fraction in zip(kinds, fractions, strict=True)):
        return None
    common = math.lcm(*(fraction.denominator for fraction in fractions))
    if common > _MAX_STEPS:
        return None
    scaled = [float(fraction * common) for fraction in fractions]
    return np.asarray(scaled, dtype=np.float64)[owner]


def _exact(magnitudes: Sequence[int], observed: int) -> float:
    """The chance that those of `magnitudes` that a fair coin picks sum to at least `observed`."""
    chances = np.zeros(sum(magnitudes) + 1)
    chances[0] = 1.0
    reach = 0
    for magnitude in sorted(magnitudes):
        picked = chances[: reach + 1].copy()
        reach += magnitude
        chances[: reach - magnitude + 1] *= 0.5
        chances[magnitude : reach + 1] += 0.5 * picked
    return _above_zero(float(chances[observed:].sum()))


def _binomial(rose: int, changed: int) -> float:
    """The exact chance of at least `rose` heads among `changed` fair coins; 1 if nothing changed."""
    if not changed:
        return 1.0
    return _above_zero(float(scipy_stats().binomtest(rose, changed, 0.5, alternative="greater").pvalue))


def _above_zero(p: float) -> float:
    """`p`, at least the smallest number above 0: the chance is never 0."""
    return min(1.0, max(p, sys.float_info.min))
