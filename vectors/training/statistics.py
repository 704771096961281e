"""Statistics: the figures of a report, from scores per item to intervals and p-values.

A score is the share of an item's prompts that were answered correctly: 0 or 1 if each item is asked once, multiples of
1 ÷ options if it is asked under every rotation of its options. The item is always the unit, since the prompts of one
item are not independent observations. The formulas are SciPy's and statsmodels', which come with `tiller[train]`. Equal
input gives equal figures: resampling is seeded. No figure is NaN or infinite, so `dataclasses.asdict` of a result can
be written as JSON. Invalid input raises `ValueError`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vectors.errors import MissingDependency

CONFIDENCE = 0.95
"""The confidence level of every interval; all are two-sided and symmetric in probability."""

NUM_RESAMPLES = 2000

_SEED = 20250922
_RESAMPLED_VALUES = 2_000_000  # per batch: 16 MB of indices and as much of scores
_SAME = 1e-9  # shares differ by far more than this, or only by rounding

_Scores = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Accuracy:
    """The mean score of `num_items` items with its 95 % interval; shares from 0 to 1."""

    value: float
    low: float
    high: float
    num_items: int


@dataclass(frozen=True, slots=True)
class PairedTest:
    """How the scores of the same items changed.

    `gain`: mean difference, after minus before, -1 to 1, with its 95 % interval. `p`: one-sided, small when items
    improved. `wrong_to_right`, `right_to_wrong`: how many items' scores rose and fell.
    """

    gain: float
    low: float
    high: float
    p: float
    wrong_to_right: int
    right_to_wrong: int


@dataclass(frozen=True, slots=True)
class SeedsTest:
    """The mean of differences between accuracies over seeds with its 95 % interval, t and one-sided p.

    `t` is None if all seeds have the same difference, where it is not finite.
    """

    mean: float
    low: float
    high: float
    t: float | None
    p: float
    num_seeds: int


@dataclass(frozen=True, slots=True)
class LetterShift:
    """The share of answers that each letter got before and after (in the letters' order, each sums to 1).

    `distance`: total variation between the two, 0 (the same shares) to 1 (no letter in common).
    """

    before: tuple[float, ...]
    after: tuple[float, ...]
    distance: float


def accuracy_of(scores: ArrayLike) -> Accuracy:
    """The accuracy of scores `[items]` in [0, 1], at least one.

    Scores of 0 and 1 get Wilson's interval (Wilson 1927, "Probable inference, the law of succession, and statistical
    inference"), others the percentile bootstrap's over items (Efron & Tibshirani 1993, chapter 13). Equal scores
    strictly between have nothing to resample and get Wilson's interval for their mean, which errs on the wide side: no
    score in [0, 1] varies more than one of 0 or 1 with the same mean. Raises `MissingDependency`.
    """
    checked = _scores("scores", scores)
    value = float(checked.mean())
    if bool(np.isin(checked, (0.0, 1.0)).all()) or _is_constant(checked):
        low, high = _wilson(float(checked.sum()), checked.size)
    else:
        low, high = _bootstrap(checked)
    return Accuracy(value, low, high, checked.size)


def paired_test(before: ArrayLike, after: ArrayLike) -> PairedTest:
    """Whether `after` is better than `before`: scores `[items]` in [0, 1] of the same items in the same order.

    The interval is the percentile bootstrap's over items, keeping each item's difference together; if all items change
    equally it has no width. p is the exact binomial probability of at least as many rises among the items that changed,
    if rises and falls were equally likely; 1 if nothing changed. With scores of 0 and 1 that is the one-sided exact
    McNemar test (McNemar 1947, "Note on the sampling error of the difference between correlated proportions"); with
    letter-balanced shares it is the sign test, which generalises it. Raises `MissingDependency`.
    """
    stats = _scipy_stats()
    first, second = _scores("before", before), _scores("after", after)
    if first.size != second.size:
        raise ValueError(f"expected scores of the same items before and after, got {first.size} and {second.size}")
    differences = second - first
    rose = int((differences > _SAME).sum())
    fell = int((differences < -_SAME).sum())
    gain = float(differences.mean())
    low, high = (gain, gain) if _is_constant(differences) else _bootstrap(differences)
    p = float(stats.binomtest(rose, rose + fell, 0.5, alternative="greater").pvalue) if rose + fell else 1.0
    return PairedTest(gain, low, high, p, rose, fell)


def seeds_test(differences: Sequence[float]) -> SeedsTest | None:
    """Student's one-sample t-test of whether the mean of `[seeds]` differences (accuracies, -1 to 1) is above 0.

    One-sided, as Cui & Chen 2025 (arXiv:2509.22739) report it; None for fewer than 2 seeds. If all seeds draw from one
    pool of items, their differences are not independent and p is too small: report `paired_test` as well. Equal
    differences give p 0 if they are above 0, otherwise 1. Raises `MissingDependency`.
    """
    checked = _finite("differences", differences, -1.0, 1.0)
    if checked.size < 2:
        return None
    mean = float(checked.mean())
    if _is_constant(checked):
        return SeedsTest(mean, mean, mean, None, 0.0 if mean > _SAME else 1.0, checked.size)
    stats = _scipy_stats()
    tested = stats.ttest_1samp(checked, 0.0, alternative="greater")
    interval = stats.ttest_1samp(checked, 0.0).confidence_interval(CONFIDENCE)
    return SeedsTest(
        mean, float(interval.low), float(interval.high), float(tested.statistic), float(tested.pvalue), checked.size
    )


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """The p-values with the same names and order, adjusted for multiple tests.

    Holm 1979, "A simple sequentially rejective multiple test procedure": the chance that any of those below a level α
    is false is at most α. Raises `MissingDependency`.
    """
    if not p_values:
        return {}
    checked = _finite("p_values", list(p_values.values()), 0.0, 1.0)
    try:
        from statsmodels.stats.multitest import multipletests
    except ImportError as error:
        raise _missing("statsmodels") from error
    adjusted = multipletests(checked, method="holm")[1]
    return {name: float(value) for name, value in zip(p_values, adjusted, strict=True)}


def letter_shift(chosen_before: ArrayLike, chosen_after: ArrayLike, num_letters: int) -> LetterShift:
    """How the choice of letters shifted. Both are `[prompts]` of 0-based letters below `num_letters`, at least one.

    `distance` is the total variation distance, half the L1 distance between the shares (Levin, Peres & Wilmer 2009,
    "Markov Chains and Mixing Times", proposition 4.2).
    """
    before = _letter_shares("chosen_before", chosen_before, num_letters)
    after = _letter_shares("chosen_after", chosen_after, num_letters)
    distance = math.fsum(abs(one - other) for one, other in zip(before, after, strict=True)) / 2
    return LetterShift(before, after, distance)


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
        raise _missing("statsmodels") from error
    low, high = proportion_confint(num_right, num_items, alpha=1.0 - CONFIDENCE, method="wilson")
    # rounding may push the ends slightly outside 0 and 1
    return max(0.0, float(low)), min(1.0, float(high))


def _bootstrap(values: _Scores) -> tuple[float, float]:
    """The percentile interval of the mean of `[items]` values that are not all equal."""
    interval = (
        _scipy_stats()
        .bootstrap(
            (values,),
            np.mean,
            n_resamples=NUM_RESAMPLES,
            batch=max(1, _RESAMPLED_VALUES // values.size),
            vectorized=True,
            confidence_level=CONFIDENCE,
            method="percentile",
            # every SciPy accepts a generator under this name, `rng` only from 1.15
            random_state=np.random.default_rng(_SEED),
        )
        .confidence_interval
    )
    return float(interval.low), float(interval.high)


def _is_constant(values: _Scores) -> bool:
    return float(np.ptp(values)) <= _SAME


def _scores(name: str, values: ArrayLike) -> _Scores:
    checked = _finite(name, values, 0.0, 1.0)
    if not checked.size:
        raise ValueError(f"{name}: expected at least one, got none")
    return checked


def _finite(name: str, values: ArrayLike, smallest: float, largest: float) -> _Scores:
    checked = np.asarray(values, dtype=np.float64)
    # written so that NaN fails too
    if checked.ndim != 1 or not bool(((checked >= smallest) & (checked <= largest)).all()):
        raise ValueError(f"{name}: expected a 1-D array of numbers from {smallest:g} to {largest:g}")
    return checked


def _scipy_stats() -> Any:
    try:
        from scipy import stats
    except ImportError as error:
        raise _missing("SciPy") from error
    return stats


def _missing(package: str) -> MissingDependency:
    return MissingDependency(f"the figures of a report need {package}: pip install 'tiller[train]'")
