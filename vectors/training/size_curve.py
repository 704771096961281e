"""The curve of a sweep: held-out accuracy by the number of training items, its standard errors, and its slope.

With one split, a standard error is over the test items; with several, it is over splits, corrected for items that they
share. The slope is that of accuracy over the logarithm of the number of items to base 2: what a doubling adds.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vectors.training.held_out import HeldOutResult, held_out_report, interval_report
from vectors.training.outcomes import groups_of, scores
from vectors.training.significance import corrected_seeds_test, resampled_error
from vectors.training.statistics import CONFIDENCE, Floats, accuracy_of, mean_of, missing, scipy_stats


@dataclass(frozen=True, slots=True)
class CurveAccuracy:
    """An accuracy with its standard error and 95 % interval; all but `value` None if splits are missing."""

    value: float
    standard_error: float | None
    low: float | None
    high: float | None
    num_seeds: int


@dataclass(frozen=True, slots=True)
class Slope:
    """What a doubling of the training items adds to the accuracy, -1 to 1, and the `intercept` at one item.

    `standard_error`, `low` and `high` are those of the line through the sizes; `over_seeds` has those of the mean of
    the seeds' own slopes, which is the same slope, None for a single seed. The interval is None for two sizes.
    """

    per_doubling: float
    intercept: float
    standard_error: float
    low: float | None
    high: float | None
    num_sizes: int
    over_seeds: dict[str, Any] | None


Tests = Mapping[int, Mapping[int, HeldOutResult]]
"""For each number of training items, the test of each seed that has a result."""


def curve_report(tests: Tests, num_seeds: int, splits: Sequence[Mapping[str, int]]) -> dict[str, Any]:
    """The points that have a result, the unsteered baseline over all seeds, and the slope.

    `splits`: the numbers of items of each seed's split, of which a size takes part of the training items. A size counts
    for the slope if all of `num_seeds` have a result; the slope is None for fewer than two such sizes.
    """
    ratio = sum(split["test"] for split in splits) / sum(split["train"] for split in splits)
    points = [_point(size, list(found.values()), num_seeds, ratio) for size, found in tests.items() if found]
    whole = {size: list(found.values()) for size, found in tests.items() if len(found) == num_seeds}
    slope = slope_of(whole, ratio) if len(whole) > 1 else None
    seen = {seed: test for found in tests.values() for seed, test in found.items()}
    baseline = accuracy_over(
        [scores(test.outcomes)[0] for test in seen.values()], list(seen.values()), num_seeds, ratio
    )
    return {
        "points": points,
        "baseline": dataclasses.asdict(baseline),
        "slope": None if slope is None else dataclasses.asdict(slope),
    }


def _point(size: int, tests: Sequence[HeldOutResult], num_seeds: int, ratio: float) -> dict[str, Any]:
    first = tests[0]
    gain = corrected_seeds_test(
        [test.paired.gain for test in tests], [test.paired.standard_error for test in tests], ratio
    )
    accuracy = accuracy_over([scores(test.outcomes)[1] for test in tests], tests, num_seeds, ratio)
    return {
        "num_items": size,
        "accuracy": dataclasses.asdict(accuracy),
        "gain": None if gain is None else dataclasses.asdict(gain),
        "baseline": interval_report(first.baseline),
        "test": held_out_report(first),
    }


def accuracy_over(
    values: Sequence[Floats], tests: Sequence[HeldOutResult], num_seeds: int, test_ratio: float
) -> CurveAccuracy:
    """The mean accuracy over seeds of the scores `[items]` of each, whose groups are those of `tests`.

    For one seed the standard error is that of `statistics.mean_of`, the interval that of `statistics.accuracy_of`. For
    several they are those of the mean over splits of one pool with `test_ratio` (`significance.resampled_error`), where
    one split varies at least as its items do; None if only one of them has a result.
    """
    means = [mean_of(given, 0.0, 1.0, groups_of(test.outcomes)) for given, test in zip(values, tests, strict=True)]
    value = float(np.mean([mean.value for mean in means]))
    if num_seeds == 1:
        alone = accuracy_of(values[0], groups_of(tests[0].outcomes))
        return CurveAccuracy(value, means[0].standard_error, alone.low, alone.high, 1)
    if len(means) < 2:
        return CurveAccuracy(value, None, None, None, len(means))
    least = float(np.mean([mean.standard_error**2 for mean in means]))
    error = resampled_error([mean.value for mean in means], test_ratio, least=least)
    reach = _student(len(means) - 1) * error
    return CurveAccuracy(value, error, max(0.0, value - reach), min(1.0, value + reach), len(means))


def slope_of(tests: Mapping[int, Sequence[HeldOutResult]], test_ratio: float) -> Slope:
    """The slope through two or more sizes, each with the test of every seed, by weighted least squares.

    A size weighs the inverse square of its standard error. The error of the slope follows from these standard errors,
    and is larger where the accuracies scatter more about the line than they explain (a scale factor of at least 1);
    the interval is Student's with two degrees of freedom less than there are sizes. Raises `MissingDependency`.
    """
    try:
        from statsmodels.api import WLS, add_constant
    except ImportError as cause:
        raise missing("statsmodels") from cause
    num_seeds = len(next(iter(tests.values())))
    accuracies = [
        accuracy_over([scores(test.outcomes)[1] for test in found], found, num_seeds, test_ratio)
        for found in tests.values()
    ]
    doublings = add_constant(np.log2(np.asarray(list(tests), np.float64)))
    errors = np.asarray([accuracy.standard_error for accuracy in accuracies], np.float64)

    def fitted(values: Sequence[float]) -> Any:
        return WLS(np.asarray(values, np.float64), doublings, weights=errors**-2.0).fit()

    line = fitted([accuracy.value for accuracy in accuracies])
    freedom = len(accuracies) - 2
    scale = max(1.0, float(line.scale)) if freedom else 1.0
    slope, error = float(line.params[1]), math.sqrt(scale * float(line.normalized_cov_params[1, 1]))
    reach = _student(freedom) * error if freedom else None
    each = [
        float(fitted([test.steered.value for test in found]).params[1]) for found in zip(*tests.values(), strict=True)
    ]
    return Slope(
        per_doubling=slope,
        intercept=float(line.params[0]),
        standard_error=error,
        low=None if reach is None else slope - reach,
        high=None if reach is None else slope + reach,
        num_sizes=len(accuracies),
        over_seeds=_over_seeds(each, test_ratio) if num_seeds > 1 else None,
    )


def _over_seeds(slopes: Sequence[float], test_ratio: float) -> dict[str, Any]:
    mean, error = float(np.mean(slopes)), resampled_error(slopes, test_ratio)
    reach = _student(len(slopes) - 1) * error
    return {"each": list(slopes), "standard_error": error, "low": mean - reach, "high": mean + reach}


def _student(freedom: int) -> float:
    return float(scipy_stats().t.ppf((1 + CONFIDENCE) / 2, freedom))
