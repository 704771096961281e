"""Fits linear probes: a direction to read along, and the logistic curve from what is read to a probability.

Activations are float64 `[texts, hidden]`, scores `[texts]`, labels bool `[texts]`. SciPy comes with `tiller[train]`;
without it, functions that need it raise `MissingDependency`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vectors.training.baseline_directions import logistic_direction, mean_difference
from vectors.training.options import Fit
from vectors.training.statistics import Floats, missing

Labels = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Curve:
    """`probability = 1 / (1 + exp(-(slope·score + offset)))`."""

    slope: float
    offset: float

    def of(self, scores: Floats) -> Floats:
        """The probabilities of scores of any shape."""
        probabilities: Floats = 1.0 / (1.0 + np.exp(-np.clip(self.slope * scores + self.offset, -700.0, 700.0)))
        return probabilities


def direction_of(fit: Fit, activations: Floats, labels: Labels) -> Floats:
    """The direction `[hidden]` along which the classes are told apart; zeros if there is none.

    `mean_difference`: the positive texts' mean less the others' (Marks & Tegmark 2023, arXiv:2310.06824). `logistic`:
    the weights of a ridge-regularised logistic regression, of that length (Alain & Bengio 2016, arXiv:1610.01644).
    Raises `MissingDependency`.
    """
    positive, negative = activations[labels], activations[~labels]
    return logistic_direction(positive, negative) if fit == "logistic" else mean_difference(positive, negative)


def fit_curve(scores: Floats, labels: Labels) -> Curve:
    """The curve that minimises the log loss against Platt's smoothed targets, so that separable scores have one too.

    Platt 1999, "Probabilistic outputs for support vector machines". Constant scores give the share of positives. Raises
    `MissingDependency`.
    """
    try:
        from scipy.optimize import minimize
    except ImportError as error:
        raise missing("SciPy") from error
    num_positive = int(labels.sum())
    num_negative = len(labels) - num_positive
    targets = np.where(labels, (num_positive + 1) / (num_positive + 2), 1 / (num_negative + 2))
    middle, size = float(scores.mean()), float(scores.std())
    share = (num_positive + 1) / (len(labels) + 2)
    if size == 0.0:
        return Curve(0.0, float(np.log(share / (1 - share))))
    x = (scores - middle) / size

    def loss(parameters: Floats) -> tuple[float, Floats]:
        margins = parameters[0] * x + parameters[1]
        pull = Curve(1.0, 0.0).of(margins) - targets
        value = float((np.logaddexp(0.0, margins) - targets * margins).sum())
        return value, np.array([pull @ x, pull.sum()])

    found: Any = minimize(loss, np.zeros(2), jac=True, method="BFGS", options={"gtol": 1e-9})
    slope, offset = (float(number) for number in found.x)
    return Curve(slope / size, offset - slope * middle / size)


def best_threshold(probabilities: Floats, labels: Labels) -> float:
    """The probability from which on texts count as positive: that with the highest mean of sensitivity and specificity
    (Youden 1950, "Index for rating diagnostic tests"), half-way between the two probabilities that it parts; of equals
    the one nearest to 0.5.
    """
    values = np.unique(probabilities)
    borders = np.concatenate([[0.0], (values[1:] + values[:-1]) / 2, [1.0]])
    above = probabilities[None, :] >= borders[:, None]
    youden = above[:, labels].mean(axis=1) - above[:, ~labels].mean(axis=1)
    best = borders[youden >= youden.max() - 1e-12]
    return float(best[np.abs(best - 0.5).argmin()])
