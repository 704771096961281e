"""Adaptive vectors: a direction whose strength depends on the input, as candidates for a search.

    cap     steers to a threshold: what the vector reads is brought up to it, and left alone where it is above
            (steering to a threshold, arXiv:2604.08169; the assistant axis, arXiv:2601.10387)
    gate    adds the direction times sigmoid(w·h + b), the probability that the unsteered model answers wrong
            (DSAS, arXiv:2512.03661; PSR, arXiv:2605.03907)

Both are one slot of a vector file (`vectors/operations.py`), at the place of the constant vector and in its direction.
Thresholds come from the validation items; the gate is a logistic regression on the training items, whose probability is
calibrated on the validation items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from vectors.training.baseline_directions import logistic_direction
from vectors.training.options import Adaptive
from vectors.training.probe_fitting import Labels, fit_curve
from vectors.training.search import Cell
from vectors.training.statistics import Floats
from vectors.vector import SteeringVector

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
"""Thresholds are these quantiles of what the vector reads of validation items answered right, unsteered and steered."""

OPENINGS = (0.1, 0.25, 0.5, 0.75, 0.9)
"""The probability of a wrong answer at which a gate is half open."""

SHARPNESSES = (1.0, 4.0)
"""How many times as steep as the calibrated probability a gate is."""

STRENGTHS = (1.0, 1.5)
"""A gate's scale, in units of the constant vector's."""

SCALE_STEPS = 24
"""The constant vector is tried at 1 to so many sixteenths of its scale, to find one that is right as often."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A vector to be tried, and the numbers that tell it from the others of its kind."""

    cell: Cell
    numbers: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Inputs:
    """Unsteered activations at the place of the constant vector, at the last token of each prompt, float64.

    `training` and `validation` `[items, hidden]`; `trained_wrong` and `asked_wrong`: which of them the unsteered model
    answers wrong; `steered_right`: which validation items the constant vector answers right.
    """

    training: Floats
    trained_wrong: Labels
    validation: Floats
    asked_wrong: Labels
    steered_right: Labels


class NotMade(Exception):
    """There is no such vector for these items; the message says why."""


def candidates_of(form: Adaptive, constant: Cell, direction: Floats, inputs: Inputs) -> list[Candidate]:
    """The vectors of `form` along `direction` `[hidden]`, at the place and the sign of `constant`.

    A cell's `dose` is the mean length of what is added on the validation items. Raises `NotMade` and
    `MissingDependency`.
    """
    if not (np.isfinite(inputs.training).all() and np.isfinite(inputs.validation).all()):
        raise NotMade("the unsteered model's activations are not finite there")
    return _caps(constant, direction, inputs) if form == "cap" else _gates(constant, direction, inputs)


def constants_of(constant: Cell) -> list[Candidate]:
    """The constant vector at smaller and larger scales."""
    made = []
    for step in range(1, SCALE_STEPS + 1):
        factor = step / 16
        scale, dose, relative = (factor * one for one in (constant.scale, constant.dose, constant.relative_dose))
        made.append(Candidate(_cell(constant, constant.vector, scale, dose, relative), {"scale": scale}))
    return made


def random_like(direction: Floats, seed: int) -> Floats:
    """A direction of the same length, drawn evenly from all."""
    drawn: Floats = np.random.default_rng([seed, 2]).standard_normal(direction.shape)
    return drawn * (np.linalg.norm(direction) / np.linalg.norm(drawn))


def _caps(constant: Cell, direction: Floats, inputs: Inputs) -> list[Candidate]:
    norm = float(np.linalg.norm(direction))
    sign = 1.0 if constant.scale > 0 else -1.0
    read = sign * (inputs.validation @ direction) / norm**2
    groups: Sequence[Floats] = (read[~inputs.asked_wrong], read[inputs.steered_right] + abs(constant.scale))
    thresholds = np.unique([np.quantile(group, share) for group in groups if group.size for share in QUANTILES])
    made = []
    for threshold in thresholds.tolist():
        dose = norm * float(np.maximum(threshold - read, 0.0).mean())
        if dose == 0.0:
            continue
        end = {"min": threshold} if sign > 0 else {"max": -threshold}
        vector = SteeringVector(
            {constant.layer: _float32(direction)},
            site=constant.site,
            operation="cap",
            **end,
        )
        made.append(Candidate(_cell(constant, vector, 1.0, dose, dose / _typical(inputs)), end))
    if not made:
        raise NotMade("no threshold was found: the model answers no validation item right, or none is below it")
    return made


def _gates(constant: Cell, direction: Floats, inputs: Inputs) -> list[Candidate]:
    wrong, asked = inputs.trained_wrong, inputs.asked_wrong
    if wrong.all() or not wrong.any() or asked.all() or not asked.any():
        raise NotMade("a gate tells items answered wrong from those answered right, and these are all of one kind")
    weights = logistic_direction(inputs.training[wrong], inputs.training[~wrong])
    curve = fit_curve(inputs.validation @ weights, asked)
    if not weights.any() or curve.slope <= 0.0:
        raise NotMade("the activations there do not tell which validation items the model answers wrong")
    norm = float(np.linalg.norm(direction))
    made = []
    for sharpness in SHARPNESSES:
        for opening in OPENINGS:
            read = sharpness * curve.slope * weights
            bias = sharpness * (curve.offset - float(np.log(opening / (1 - opening))))
            opened = float((1.0 / (1.0 + np.exp(-np.clip(inputs.validation @ read + bias, -700.0, 700.0)))).mean())
            vector = SteeringVector(
                {constant.layer: _float32(direction)},
                reads={constant.layer: _float32(read)},
                biases={constant.layer: torch.tensor([bias], dtype=torch.float32)},
                site=constant.site,
                operation="amplify",
                activation="sigmoid",
            )
            for strength in STRENGTHS:
                scale = strength * constant.scale
                dose = abs(scale) * norm * opened
                numbers = {"scale": scale, "half_open_at": opening, "sharpness": sharpness}
                made.append(Candidate(_cell(constant, vector, scale, dose, dose / _typical(inputs)), numbers))
    return made


def _cell(constant: Cell, vector: SteeringVector, scale: float, dose: float, relative: float) -> Cell:
    return Cell(constant.variant, constant.site, constant.layer, scale, scale, dose, relative, vector)


def _typical(inputs: Inputs) -> float:
    """The mean length of the validation items' activations."""
    return max(float(np.linalg.norm(inputs.validation, axis=1).mean()), 1e-12)


def _float32(direction: Floats) -> torch.Tensor:
    return torch.from_numpy(direction).float()
