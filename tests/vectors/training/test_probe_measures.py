"""The figures of a probe, against slow loops and SciPy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from vectors.training.probe_fitting import Curve, best_threshold, direction_of, fit_curve
from vectors.training.probe_measures import auc_of, auc_test, auc_with_interval, bins_of, calibration_error
from vectors.training.statistics import Floats


def couples(num_couples: int, shift: float, seed: int, ties: bool = False) -> tuple[Floats, np.ndarray]:
    """Scores of couples, the positive text first, whose mean is `shift` higher."""
    chance = np.random.default_rng(seed)
    labels = np.tile([True, False], num_couples)
    scores = chance.standard_normal(2 * num_couples) + shift * labels
    return np.round(scores) if ties else scores, labels


def names(num_couples: int, of_group: int = 1) -> list[str]:
    return [f"g{number // (2 * of_group)}" for number in range(2 * num_couples)]


@pytest.mark.parametrize("ties", [False, True])
def test_the_area_is_the_share_of_pairs_in_order(ties: bool) -> None:
    scores, labels = couples(30, 0.7, 1, ties)
    pairs = [(p > n) + 0.5 * (p == n) for p, n in itertools.product(scores[labels], scores[~labels])]
    assert auc_of(scores, labels) == pytest.approx(sum(pairs) / len(pairs))
    u = stats.mannwhitneyu(scores[labels], scores[~labels]).statistic
    assert auc_of(scores, labels) == pytest.approx(u / 900)


@pytest.mark.parametrize(("of_group", "ties"), [(1, False), (1, True), (3, False)])
def test_the_test_counts_every_exchange_of_labels(of_group: int, ties: bool) -> None:
    num_couples = 9
    scores, labels = couples(num_couples, 0.4, 2, ties)
    tested = auc_test(scores, labels, names(num_couples, of_group))
    assert tested.mean.value == pytest.approx(auc_of(scores, labels) - 0.5)
    areas = []
    for flips in itertools.product([False, True], repeat=num_couples // of_group):
        flipped = labels ^ np.repeat(flips, 2 * of_group)
        areas.append(auc_of(scores, flipped))
    expected = np.mean([area >= auc_of(scores, labels) - 1e-9 for area in areas])
    assert tested.p == pytest.approx(expected, rel=0.05)


def test_couples_come_in_order() -> None:
    with pytest.raises(ValueError, match="the positive one first"):
        auc_test(np.arange(4.0), np.array([True, True, False, False]), ["a"] * 4)
    with pytest.raises(ValueError, match="both classes"):
        auc_of(np.arange(2.0), np.array([True, True]))


def delong(scores: Floats, labels: np.ndarray) -> float:
    """The standard error of the area by DeLong's formula, in loops."""
    positive, negative = scores[labels], scores[~labels]
    above = [np.mean([(p > n) + 0.5 * (p == n) for n in negative]) for p in positive]
    below = [np.mean([(p > n) + 0.5 * (p == n) for p in positive]) for n in negative]
    return float(np.sqrt(np.var(above, ddof=1) / len(positive) + np.var(below, ddof=1) / len(negative)))


def test_the_interval_is_delongs_where_texts_are_independent() -> None:
    scores, labels = couples(200, 0.8, 3)
    area = auc_with_interval(scores, labels, [str(number) for number in range(400)])
    error = delong(scores, labels) / (area.value * (1 - area.value))
    logit = np.log(area.value / (1 - area.value))
    expected = 1 / (1 + np.exp(-(logit + np.array([-1.96, 1.96]) * error)))
    assert (area.low, area.high) == pytest.approx(expected, abs=2e-3)


def test_the_interval_covers_the_truth_also_where_texts_come_in_groups() -> None:
    truth = float(stats.norm.cdf(1.0 / np.sqrt(2) / np.sqrt(1.5)))
    chance = np.random.default_rng(4)
    hits = []
    for _ in range(400):  # 20 groups of 3 couples that share a part of their score, apart for each class
        labels = np.tile([True, False], 60)
        shared = np.repeat(chance.standard_normal((20, 1, 2)), 3, axis=1).reshape(-1) * np.sqrt(0.5)
        scores = chance.standard_normal(120) + shared + labels
        area = auc_with_interval(scores, labels, names(60, 3))
        hits.append(area.low <= truth <= area.high)
    assert np.mean(hits) >= 0.93


def test_an_interval_is_never_without_width() -> None:
    labels = np.tile([True, False], 8)
    perfect = auc_with_interval(labels.astype(float), labels, names(8))
    assert (perfect.value, perfect.high) == (1.0, 1.0)
    assert perfect.low == pytest.approx(0.025 ** (1 / 8))
    inverted = auc_with_interval(-labels.astype(float), labels, names(8))
    assert (inverted.value, inverted.low, inverted.high) == (0.0, 0.0, 1 - perfect.low)


def test_the_curve_is_the_likeliest_and_exists_for_separable_scores() -> None:
    scores, labels = couples(40, 1.5, 5)
    for given in (scores, np.where(labels, 5.0, -5.0), 1e6 + 1e3 * scores):
        curve = fit_curve(given, labels)
        targets = np.where(labels, 41 / 42, 1 / 42)

        def loss(slope: float, offset: float, given: Floats = given, targets: Floats = targets) -> float:
            probability = Curve(slope, offset).of(given)
            return float(-(targets * np.log(probability) + (1 - targets) * np.log1p(-probability)).sum())

        best = loss(curve.slope, curve.offset)
        for by in (0.99, 1.01):
            middle = float(given.mean())
            assert best <= loss(curve.slope * by, curve.offset + curve.slope * middle * (1 - by)) + 1e-9
        assert best <= min(loss(curve.slope, curve.offset + step) for step in (-0.01, 0.01)) + 1e-9
    constant = fit_curve(np.ones(80), labels)
    assert constant.of(np.ones(1))[0] == pytest.approx(0.5)


def test_the_threshold_parts_best_and_is_half_way() -> None:
    labels = np.array([True, True, False, False])
    assert best_threshold(np.array([0.9, 0.7, 0.3, 0.1]), labels) == pytest.approx(0.5)
    assert best_threshold(np.array([0.9, 0.2, 0.3, 0.1]), labels) == pytest.approx(0.6)
    chance = np.random.default_rng(6)
    for _ in range(20):
        probabilities, labels = np.round(chance.random(30), 1), chance.random(30) < 0.5
        found = best_threshold(probabilities, labels)

        def youden(border: float, p: Floats = probabilities, y: np.ndarray = labels) -> float:
            return float((p[y] >= border).mean() + (p[~y] < border).mean())

        assert youden(found) == pytest.approx(max(youden(border) for border in np.linspace(0, 1, 101)))


def test_calibration_is_measured_in_bins_of_equal_size() -> None:
    probabilities = np.repeat(np.arange(10) / 10, 10)
    labels = np.concatenate([np.arange(10) < number for number in range(10)])
    bins = bins_of(probabilities, labels)
    assert [(each.num_texts, each.share) for each in bins] == [(10, number / 10) for number in range(10)]
    assert calibration_error(bins) == pytest.approx(0.0)
    assert calibration_error(bins_of(probabilities, ~labels)) == pytest.approx(np.mean(abs(1 - np.arange(10) / 5)))
    assert calibration_error(bins_of(np.zeros(4), np.ones(4, dtype=bool))) == 1.0


def test_directions_part_the_classes() -> None:
    chance = np.random.default_rng(7)
    labels = np.tile([True, False], 50)
    activations = chance.standard_normal((100, 8))
    activations[:, 0] += 3.0 * labels
    activations[:, 1] *= 20.0  # noise in which the means differ by chance
    difference = direction_of("mean_difference", activations, labels)
    np.testing.assert_allclose(difference, activations[labels].mean(0) - activations[~labels].mean(0))
    fresh = chance.standard_normal((1000, 8))
    new_labels = chance.random(1000) < 0.5
    fresh[:, 0] += 3.0 * new_labels
    fresh[:, 1] *= 20.0
    logistic = direction_of("logistic", activations, labels)
    assert auc_of(fresh @ logistic, new_labels) > 0.95 > auc_of(fresh @ difference, new_labels)
    assert np.linalg.norm(logistic) == pytest.approx(np.linalg.norm(difference))
