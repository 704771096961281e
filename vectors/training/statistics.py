"""Statistics: accuracies, means and their intervals, from scores per item.

A score is the share of an item's prompts that were answered correctly: 0 or 1 if each item is asked once, multiples of
1 ÷ options if it is asked under every rotation of its options. The item is always the unit, since the prompts of one
item are not independent observations. If items come in groups (several questions about one text), the group is. The
formulas are SciPy's and statsmodels', which come with `tiller[train]`. Equal input gives equal figures. No figure is
NaN or infinite, so `dataclasses.asdict` of a result can be written as JSON. Invalid input raises `ValueError`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vectors.errors import MissingDependency

CONFIDENCE = 0.95
"""The confidence level of every interval; all are two-sided and symmetric in probability."""

SAME = 1e-9
"""Shares differ by far more than this, or only by rounding."""

Groups = Sequence[str | None]
"""The group of each item; an item of None is a group of its own."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Accuracy:
    """The mean score of `num_items` items with its 95 % interval; shares from 0 to 1."""

    value: float
    low: float
    high: float
    num_items: int


@dataclass(frozen=True, slots=True)
class Mean:
    """The mean of `num_items` values in `num_groups` groups, with its standard error and 95 % interval."""

    value: float
    low: float
    high: float
    standard_error: float
    num_items: int
    num_groups: int


@dataclass(frozen=True, slots=True)
class LetterShift:
    """The share of answers that each letter got before and after (in the letters' order, each sums to 1).

    `distance`: total variation between the two, 0 (the same shares) to 1 (no letter in common).
    """

    before: tuple[float, ...]
    after: tuple[float, ...]
    distance: float


def accuracy_of(scores: ArrayLike, groups: Groups | None = None) -> Accuracy:
    """The accuracy of scores `[items]` in [0, 1], at least one.

    Scores of 0 and 1 without groups get Wilson's interval (Wilson 1927, "Probable inference, the law of succession, and
    statistical inference"), others that of `mean_of`. Raises `MissingDependency`.
    """
    checked = scores_of("scores", scores)
    if not _has_groups(groups) and bool(np.isin(checked, (0.0, 1.0)).all()):
        low, high = _wilson(float(checked.sum()), checked.size)
        return Accuracy(float(checked.mean()), low, high, checked.size)
    found = mean_of(checked, 0.0, 1.0, groups)
    return Accuracy(found.value, found.low, found.high, found.num_items)


def mean_of(values: ArrayLike, smallest: float, largest: float, groups: Groups | None = None) -> Mean:
    """The mean of values `[items]` that lie between `smallest` and `largest`, at least one.

    The interval and standard error are those of the mean after adding one group of average size at each end of the
    range, and the interval is Student's with one degree of freedom less than there are groups. For differences of 0 and
    1 that is the adjusted interval of Bonett & Price 2012, "Adjusted Wald confidence interval for a difference of
    binomial proportions based on paired data". The error is cluster-robust (Liang & Zeger 1986, "Longitudinal data
    analysis using generalized linear models"). Without the two groups, few items that all change alike would have an
    interval of no width. A single group has the whole range. Raises `MissingDependency`.
    """
    checked = _finite("values", values, smallest, largest)
    if not checked.size:
        raise ValueError("values: expected at least one, got none")
    sums, sizes = group_sums(checked, groups)
    size = checked.size / sums.size
    adjusted, error = ratio_of(
        np.concatenate([sums, [smallest * size, largest * size]]), np.concatenate([sizes, [size, size]])
    )
    low, high = smallest, largest
    if sums.size > 1:
        reach = float(scipy_stats().t.ppf((1 + CONFIDENCE) / 2, sums.size - 1)) * error
        low, high = max(smallest, adjusted - reach), min(largest, adjusted + reach)
    value = float(checked.mean())
    # adding a group at each end moves the middle: the interval contains the mean all the same
    return Mean(value, min(low, value), max(high, value), error, checked.size, sums.size)


def ratio_of(sums: Floats, sizes: Floats) -> tuple[float, float]:
    """The mean Σ sums ÷ Σ sizes over two or more groups, and its standard error, robust to what groups share."""
    mean = float(sums.sum() / sizes.sum())
    residuals = sums - mean * sizes
    variance = sums.size / (sums.size - 1) * float((residuals**2).sum()) / float(sizes.sum()) ** 2
    return mean, math.sqrt(variance)


def group_sums(values: Floats, groups: Groups | None) -> tuple[Floats, Floats]:
    """The sum of `values` and the number of items in each group, in the order of their first items."""
    if groups is None:
        return values, np.ones(values.size)
    if len(groups) != values.size:
        raise ValueError(f"groups: expected one for each of {values.size} items, got {len(groups)}")
    numbers: dict[object, int] = {}
    owner = [numbers.setdefault(index if group is None else group, len(numbers)) for index, group in enumerate(groups)]
    sums = np.bincount(owner, weights=values).astype(np.float64)
    return sums, np.bincount(owner).astype(np.float64)


def letter_shift(chosen_before: ArrayLike, chosen_after: ArrayLike, num_letters: int) -> LetterShift:
    """How the choice of letters shifted. Both are `[prompts]` of 0-based letters below `num_letters`, at least one.

    `distance` is the total variation distance, half the L1 distance between the shares (Levin, Peres & Wilmer 2009,
    "Markov Chains and Mixing Times", proposition 4.2).
    """
    before = _letter_shares("chosen_before", chosen_before, num_letters)
    after = _letter_shares("chosen_after", chosen_after, num_letters)
    distance = math.fsum(abs(one - other) for one, other in zip(before, after, strict=True)) / 2
    return LetterShift(before, after, distance)


def scores_of(name: str, values: ArrayLike) -> Floats:
    """Scores `[items]` in [0, 1], at least one, checked; `name` is for messages."""
    checked = _finite(name, values, 0.0, 1.0)
    if not checked.size:
        raise ValueError(f"{name}: expected at least one, got none")
    return checked


def differences_of(name: str, values: ArrayLike) -> Floats:
    """Differences of shares `[items]`, in [-1, 1], checked; `name` is for messages."""
    return _finite(name, values, -1.0, 1.0)


def scipy_stats() -> Any:
    """`scipy.stats`. Raises `MissingDependency`."""
    try:
        from scipy import stats
    except ImportError as error:
        raise missing("SciPy") from error
    return stats


def missing(package: str) -> MissingDependency:
    """The error for a package that a report needs."""
    return MissingDependency(f"the figures of a report need {package}: pip install 'tiller[train]'")


def _has_groups(groups: Groups | None) -> bool:
    return groups is not None and any(group is not None for group in groups)


def _letter_shares(name: str, chosen: ArrayLike, num_letters: int) -> tuple[float, ...]:
    letters = np.asarray(chosen)
    if letters.ndim != 1 or not letters.size or letters.dtype.kind not in "iu":
        raise ValueError(f"{name}: expected one or more letters as whole numbers")
    if int(letters.min()) < 0 or int(letters.max()) >= num_letters:
        raise ValueError(f"{name}: expected letters from 0 to {num_letters - 1}")
    counts = np.bincount(letters, minlength=num_letters)
    return tuple(float(count) / letters.size for count in counts)


def _wilson(num_right: float, num_items: int) -> tuple[float, float]:
    try:
        from statsmodels.stats.proportion import proportion_confint
    except ImportError as error:
        raise missing("statsmodels") from error
    low, high = proportion_confint(num_right, num_items, alpha=1.0 - CONFIDENCE, method="wilson")
    # rounding may push the ends slightly outside 0 and 1
    return max(0.0, float(low)), min(1.0, float(high))


def _finite(name: str, values: ArrayLike, smallest: float, largest: float) -> Floats:
    checked = np.asarray(values, dtype=np.float64)
    # written so that NaN fails too
    if checked.ndim != 1 or not bool(((checked >= smallest) & (checked <= largest)).all()):
        raise ValueError(f"{name}: expected a 1-D array of numbers from {smallest:g} to {largest:g}")
    return checked
