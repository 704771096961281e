"""Each direction is the one of a slow formula, and finds what is planted where it should."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vectors.training.baseline_directions import (
    RIDGE,
    lda_direction,
    logistic_direction,
    mean_difference,
    pca_direction,
    random_direction,
)

Floats = NDArray[np.float64]
Direction = Callable[[Floats, Floats], Floats]
FITTED: list[Direction] = [logistic_direction, lda_direction, pca_direction]


def drawn(positive: Floats, negative: Floats) -> Floats:
    return random_direction(positive, negative, np.random.default_rng(5))


def groups(count: int, width: int, *, shift: float = 1.0, mixed: bool = True) -> tuple[Floats, Floats, Floats]:
    """Two groups, of correlated activations if `mixed`, and the unit direction by which they are apart."""
    chance = np.random.default_rng(0)
    mixing = chance.standard_normal((width, width)) / np.sqrt(width) if mixed else np.eye(width)
    planted = chance.standard_normal(width)
    planted /= np.linalg.norm(planted)
    positive, negative = (chance.standard_normal((count + extra, width)) @ mixing for extra in (0, 3))
    return positive + shift * planted + 4.0, negative + 4.0, planted


def cosine(one: Floats, other: Floats) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


@pytest.mark.parametrize("direction", [*FITTED, drawn])
@pytest.mark.parametrize(("count", "width"), [(40, 6), (5, 30)])
def test_all_have_the_length_of_the_mean_difference(direction: Direction, count: int, width: int) -> None:
    positive, negative, _ = groups(count, width)
    expected = np.linalg.norm(positive.mean(0) - negative.mean(0))
    assert np.linalg.norm(direction(positive, negative)) == pytest.approx(expected)
    assert np.linalg.norm(mean_difference(positive, negative)) == pytest.approx(expected)


@pytest.mark.parametrize(("count", "width"), [(40, 6), (5, 30)])
def test_logistic_is_newtons_method(count: int, width: int) -> None:
    positive, negative, _ = groups(count, width)
    x = np.concatenate([positive, negative])
    x = (x - x.mean(0)) / np.sqrt(((x - x.mean(0)) ** 2).mean())
    x = np.column_stack([x, np.ones(len(x))])
    target = np.asarray([1.0] * len(positive) + [0.0] * len(negative))
    ridge = RIDGE * np.diag([1.0] * width + [0.0])
    weights = np.zeros(width + 1)
    for _ in range(50):
        share = 1 / (1 + np.exp(-x @ weights))
        gradient = x.T @ (share - target) + ridge @ weights
        weights -= np.linalg.solve((x.T * (share * (1 - share))) @ x + ridge, gradient)
    assert cosine(logistic_direction(positive, negative), weights[:-1]) == pytest.approx(1.0, abs=1e-8)


@pytest.mark.parametrize(("count", "width"), [(60, 6), (5, 30)])
def test_lda_is_the_shrunken_covariance_inverted(count: int, width: int) -> None:
    positive, negative, _ = groups(count, width)
    x = np.concatenate([positive - positive.mean(0), negative - negative.mean(0)])
    covariance = x.T @ x / len(x)
    mean = np.trace(covariance) / width
    noise = sum(((np.outer(row, row) - covariance) ** 2).sum() for row in x) / len(x) ** 2
    share = min(1.0, noise / ((covariance - mean * np.eye(width)) ** 2).sum())
    assert 0.0 < share < 1.0
    shrunken = (1 - share) * covariance + share * mean * np.eye(width)
    expected = np.linalg.inv(shrunken) @ (positive.mean(0) - negative.mean(0))
    assert cosine(lda_direction(positive, negative), expected) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize(("count", "width"), [(40, 6), (5, 30), (1, 4)])
def test_pca_is_the_first_component_of_pairs_in_random_order(count: int, width: int) -> None:
    positive, negative, _ = groups(count, width)
    differences = positive - negative[:count]
    both = np.concatenate([differences, -differences])  # every pair in both orders, so the mean is zero
    values, found = np.linalg.eigh(np.cov(both.T))
    expected = found[:, np.argmax(values)]
    expected = expected * np.sign(expected @ (positive.mean(0) - negative.mean(0)))
    assert cosine(pca_direction(positive, negative), expected) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("direction", FITTED)
def test_a_planted_direction_is_found(direction: Direction) -> None:
    positive, negative, planted = groups(400, 20, shift=6.0, mixed=False)
    assert cosine(direction(positive, negative), planted) > 0.8
    assert cosine(direction(negative, positive), -planted) > 0.8
    assert abs(cosine(drawn(positive, negative), planted)) < 0.5


def test_a_random_direction_is_that_of_its_seed() -> None:
    positive, negative, _ = groups(20, 400)
    assert np.array_equal(drawn(positive, negative), drawn(positive, negative))
    other = random_direction(positive, negative, np.random.default_rng(6))
    assert abs(cosine(drawn(positive, negative), other)) < 0.2


def test_lda_sees_through_what_varies_within_the_groups() -> None:
    chance: Any = np.random.default_rng(2)
    spread = np.asarray([10.0, 1.0])
    positive, negative = (chance.standard_normal((500, 2)) * spread for _ in range(2))
    positive += [2.0, 2.0]
    assert lda_direction(positive, negative)[1] > 5 * abs(lda_direction(positive, negative)[0])


@pytest.mark.parametrize("direction", [*FITTED, drawn])
def test_groups_that_are_the_same_have_no_direction(direction: Direction) -> None:
    same = np.ones((3, 4))
    assert not direction(same, same).any()
