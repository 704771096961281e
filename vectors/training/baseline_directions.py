"""Directions that a trained vector is compared with, each from the activations of the same two groups of texts.

    random     a Gaussian direction
    logistic   the weights of a ridge-regularised logistic regression between the two groups
    lda        the inverse of the shrunken within-group covariance, times the difference of the means
    pca        the first principal component of the differences of pairs

All have the length of the difference of the means, so a scale is the same dose for each. They are float64 arrays
`[hidden]`; groups are float64 `[texts, hidden]`, neither empty. SciPy comes with `tiller[train]`; without it, functions
that need it raise `MissingDependency`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vectors.training.statistics import Floats, missing

RIDGE = 1.0
"""Weight of half the squared length of the logistic regression's weights, beside the summed loss of all texts."""


def mean_difference(positive: Floats, negative: Floats) -> Floats:
    """The mean of one group minus that of the other: the direction whose length all have."""
    difference: Floats = positive.mean(axis=0) - negative.mean(axis=0)
    return difference


def random_direction(positive: Floats, negative: Floats, chance: np.random.Generator) -> Floats:
    """A direction drawn evenly from all, by normalising Gaussian numbers (Muller 1959, "A note on a method for
    generating points uniformly on n-dimensional spheres").
    """
    drawn: Floats = chance.standard_normal((positive.shape[1],))
    return _scaled(drawn, mean_difference(positive, negative))


def logistic_direction(positive: Floats, negative: Floats) -> Floats:
    """The weights `w` that minimise Σ log(1 + exp(-y (w·x + b))) + `RIDGE` ÷ 2 · ‖w‖², with y = 1 and -1.

    `x` are the activations minus their mean, divided by one number, the root mean square of all entries, so that the
    strength of the ridge does not depend on the model. Hoerl & Kennard 1970 for the ridge, le Cessie & van Houwelingen
    1992, "Ridge estimators in logistic regression". Zeros if the fit finds none. Raises `MissingDependency`.
    """
    try:
        from scipy.optimize import minimize
        from scipy.special import expit
    except ImportError as error:
        raise missing("SciPy") from error
    x = np.concatenate([positive, negative])
    x = x - x.mean(axis=0)
    size = float(np.sqrt(np.mean(x**2)))
    if size == 0.0:
        return np.zeros(x.shape[1])
    x = x / size
    labels = np.concatenate([np.ones(len(positive)), -np.ones(len(negative))])

    def loss(parameters: Floats) -> tuple[float, Floats]:
        weights, intercept = parameters[:-1], parameters[-1]
        margins = labels * (x @ weights + intercept)
        pull = -labels * expit(-margins)
        value = float(np.logaddexp(0.0, -margins).sum() + RIDGE / 2 * weights @ weights)
        return value, np.append(x.T @ pull + RIDGE * weights, pull.sum())

    found: Any = minimize(
        loss, np.zeros(x.shape[1] + 1), jac=True, method="L-BFGS-B", options={"maxiter": 1000, "gtol": 1e-7, "ftol": 0}
    )
    return _scaled(found.x[:-1], mean_difference(positive, negative))


def lda_direction(positive: Floats, negative: Floats) -> Floats:
    """Fisher's linear discriminant (Fisher 1936, "The use of multiple measurements in taxonomic problems").

    The within-group covariance is shrunk towards a multiple of the identity by the share of Ledoit & Wolf 2004, "A
    well-conditioned estimator for large-dimensional covariance matrices", without which it has no inverse where there
    are fewer texts than dimensions. Where the groups do not vary, it is the difference of the means.
    """
    difference = mean_difference(positive, negative)
    x = np.concatenate([positive - positive.mean(axis=0), negative - negative.mean(axis=0)])
    count, width = x.shape
    products = x @ x.T  # has the covariance's eigenvalues, times count, and is [texts, texts] however wide the model
    identity = float(np.trace(products)) / count / width
    if identity == 0.0:
        return difference
    squared = float((products**2).sum()) / count**2
    distance = squared - width * identity**2
    noise = (float((np.diag(products) ** 2).sum()) / count - squared) / count
    share = 1.0 if distance <= 0.0 else min(1.0, max(0.0, noise / distance))
    if share == 1.0:
        return difference
    # Woodbury: (a I + b XᵀX)⁻¹ d = (d - Xᵀ (a / b I + X Xᵀ)⁻¹ X d) / a
    a, b = max(share, 1e-6) * identity, (1.0 - share) / count
    solved = np.linalg.solve(products + a / b * np.eye(count), x @ difference)
    return _scaled(difference - x.T @ solved, difference)


def pca_direction(positive: Floats, negative: Floats) -> Floats:
    """The first principal component of positive minus negative, text by text, with the sign of the mean difference.

    Representation engineering (Zou et al. 2023, arXiv:2310.01405). The differences are not centred: the authors give
    pairs a random order, so their mean is zero, and centring without that would remove what the pairs have in common.
    Groups that are not of pairs are paired in order, up to the end of the smaller. Raises `MissingDependency`.
    """
    try:
        from scipy.linalg import eigh
    except ImportError as error:
        raise missing("SciPy") from error
    count = min(len(positive), len(negative))
    differences = positive[:count] - negative[:count]
    _, vectors = eigh(differences @ differences.T, subset_by_index=(count - 1, count - 1))
    component = differences.T @ vectors[:, 0]
    difference = mean_difference(positive, negative)
    return _scaled(component if component @ difference >= 0.0 else -component, difference)


def _scaled(direction: Floats, difference: Floats) -> Floats:
    """`direction` with the length of `difference`; zeros stay zeros."""
    norm = float(np.linalg.norm(direction))
    scaled: Floats = direction * (float(np.linalg.norm(difference)) / norm) if norm > 0.0 else np.zeros_like(direction)
    return scaled
