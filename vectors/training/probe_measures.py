"""How well a probe tells two classes apart on texts that took no part in its making.

Scores and probabilities are float64 `[texts]`, labels bool `[texts]`, groups one name a text. Texts of a group are not
independent. Invalid input raises `ValueError`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vectors.training.probe_fitting import Labels
from vectors.training.significance import MeanTest, mean_test
from vectors.training.statistics import Floats

NUM_BINS = 10
_NORMAL = 1.959963984540054  # of 95 %
_TAIL = 0.025


@dataclass(frozen=True, slots=True)
class Auc:
    """The area under the ROC curve with its 95 % interval: the chance that a positive text scores above another."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Bin:
    """Texts of similar probability: how many, their mean probability, and the share of positives among them."""

    num_texts: int
    probability: float
    share: float


def auc_of(scores: Floats, labels: Labels) -> float:
    """The share of pairs of a positive and a negative text in which the positive one scores higher; ties count half."""
    ranks = _ranks(scores)
    num_positive = int(labels.sum())
    num_pairs = num_positive * (len(labels) - num_positive)
    if num_pairs == 0:
        raise ValueError("expected texts of both classes, got one class")
    return float(ranks[labels].sum() - num_positive * (num_positive + 1) / 2) / num_pairs


def auc_with_interval(scores: Floats, labels: Labels, groups: Sequence[str]) -> Auc:
    """The area and its interval over groups of texts, on the logit scale.

    Obuchowski 1997, "Nonparametric analysis of clustered ROC curve data", which without groups is DeLong's. Where all
    groups agree, the variance is 0, and the bound is that of a proportion of groups which are all alike.
    """
    value = auc_of(scores, labels)
    names, member = np.unique(np.asarray(groups), return_inverse=True)
    above = _share_below(scores[~labels], scores[labels]) - value
    below = 1.0 - _share_below(scores[labels], scores[~labels]) - value
    count = len(names)
    own = np.bincount(member[labels], weights=above, minlength=count) / labels.sum()
    own += np.bincount(member[~labels], weights=below, minlength=count) / (~labels).sum()
    variance = float((own**2).sum()) * count / max(1, count - 1)
    if variance == 0.0 or not 0.0 < value < 1.0:
        edge = _TAIL ** (1 / count)
        return Auc(value, min(value, edge), max(value, 1 - edge))
    logit, error = math.log(value / (1 - value)), math.sqrt(variance) / (value * (1 - value))
    low, high = (1 / (1 + math.exp(-(logit + sign * _NORMAL * error))) for sign in (-1, 1))
    return Auc(value, low, high)


def auc_test(scores: Floats, labels: Labels, groups: Sequence[str]) -> MeanTest:
    """Whether the area is above one half, one-sided; texts come in couples of a positive and a negative one.

    The sum of ranks of the positive texts, as in Wilcoxon's and Mann & Whitney's test, under every way to exchange the
    labels within all couples of a group at once: exact also where couples or groups are not independent. The mean is
    the area less one half. Raises `MissingDependency`.
    """
    if not (len(labels) % 2 == 0 and bool((labels[0::2] & ~labels[1::2]).all())):
        raise ValueError("expected couples of a positive and a negative text, the positive one first")
    ranks = _ranks(scores)
    return mean_test((ranks[0::2] - ranks[1::2]) / len(ranks), list(groups[0::2]))


def bins_of(probabilities: Floats, labels: Labels) -> list[Bin]:
    """At most `NUM_BINS` bins of as equal size as possible, from the lowest probabilities to the highest."""
    order = np.argsort(probabilities, kind="stable")
    parts = [part for part in np.array_split(order, NUM_BINS) if len(part)]
    return [Bin(len(part), float(probabilities[part].mean()), float(labels[part].mean())) for part in parts]


def calibration_error(bins: Sequence[Bin]) -> float:
    """The mean distance of probability and share, weighted by texts (Naeini et al. 2015, equal-mass bins)."""
    total = sum(each.num_texts for each in bins)
    return sum(each.num_texts * abs(each.probability - each.share) for each in bins) / total


def _share_below(others: Floats, scores: Floats) -> Floats:
    """For each score the share of `others` below it; equal ones count half."""
    known = np.sort(others)
    counts = np.searchsorted(known, scores, "left") + np.searchsorted(known, scores, "right")
    share: Floats = counts / (2.0 * len(known))
    return share


def _ranks(scores: Floats) -> Floats:
    """Ranks from 1; equal scores share their mean rank."""
    known = np.sort(scores)
    ranks: Floats = (np.searchsorted(known, scores, "left") + np.searchsorted(known, scores, "right") + 1) / 2.0
    return ranks
