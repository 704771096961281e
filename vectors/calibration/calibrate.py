"""Calibration of a vector: the scales at which it moves the model by so much, and the range in which text is fluent.

Both are measured in both directions, on one set of prompts, greedily, so that the same input gives the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from vectors.applied import SteerableModel, resolve_vector
from vectors.calibration.measure import NUM_MOVED, NUM_WRITTEN, PERCENTILE, Fluency, Reference
from vectors.calibration.search import crossing, edge
from vectors.calibration.view import CalibratedModel
from vectors.errors import InvalidMethod
from vectors.operations import RULES
from vectors.positions import positions_json
from vectors.training.model_view import Steering
from vectors.training.progress import Progress, Report
from vectors.vector import SteeringVector

LEAST_DISTINCT = 0.75
"""Text repeats itself if its share of distinct pairs is below this share of the unsteered text's."""

_LIKELY_STEPS = 30


@dataclass(frozen=True, slots=True)
class Asked:
    """What a calibration asks: `kl` in nats, and how many times the perplexity of the text may grow.

    `prompts` are token ids; `name` and `sha256` are those of the file that they come from.
    """

    kl: float
    max_perplexity: float
    prompts: Sequence[tuple[int, ...]]
    name: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Calibrated:
    """The vector with its calibration, and the report: the calibration with everything that was tried."""

    vector: SteeringVector
    report: dict[str, Any]


def check_can_calibrate(vector: SteeringVector, model: SteerableModel) -> None:
    """Raise `InvalidMethod` for a vector whose scale is no dose, and `CannotSteer` for one that does not fit."""
    resolve_vector(vector, model)
    if not RULES[vector.operation].does_nothing_at_zero:
        raise InvalidMethod(
            f"vector: {vector.operation} changes activations at scale 0 too, so it has no dose to calibrate; expected "
            "a vector with operation add or ablate",
            "vector",
        )


def calibrate(view: CalibratedModel, vector: SteeringVector, asked: Asked, report: Report) -> Calibrated:
    """Calibrate `vector` as its defaults use it.

    `kl_scale` are the scales at which the 95th percentile of KL(steered ‖ unsteered) over the first 20 greedy tokens is
    `kl` (after steering-lite's iso-KL calibration), None where none tried is that strong. In `fluent_scale` what is
    written stays fluent: perplexity under the unsteered model at most `max_perplexity` times that of the unsteered
    text, and no more repetition. `safe_scale` is the range within both. Raises `InvalidMethod` if it is empty, what
    `check_can_calibrate` and what `view` raise.
    """
    check_can_calibrate(vector, view)
    progress = _Progress(report)
    start = abs(vector.default_scale) or 1.0
    reference = Reference(view, asked.prompts)
    norms = _norms(view, vector, reference)
    tried = _Tried(vector, reference, asked, progress)
    moved = [crossing(tried.divergence, sign * start, asked.kl) for sign in (-1.0, 1.0)]
    ends = [edge(tried.is_fluent, sign * start) for sign in (-1.0, 1.0)]
    fluent = [_rounded(end) for end, _ in ends]
    safe = [
        fluent_end if kl_end is None else min(fluent_end, _rounded(kl_end), key=abs)
        for fluent_end, kl_end in zip(fluent, moved, strict=True)
    ]
    if safe == [0.0, 0.0]:
        raise InvalidMethod("vector: no scale of either sign leaves the text fluent; nothing was calibrated", "vector")
    found: dict[str, Any] = {
        "safe_scale": safe,
        "kl_scale": moved,
        "fluent_scale": fluent,
        "is_fluent_beyond": [not is_end for _, is_end in ends],
        "kl": asked.kl,
        "percentile": PERCENTILE,
        "num_moved_tokens": NUM_MOVED,
        "max_perplexity": asked.max_perplexity,
        "least_distinct": LEAST_DISTINCT,
        "num_written_tokens": NUM_WRITTEN,
        "prompts": {"name": asked.name, "sha256": asked.sha256, "count": len(asked.prompts)},
        "operation": vector.operation,
        "positions": positions_json(vector.positions),
        "layers": list(vector.layers),
        "norms": norms,
        "model": view.model_id,
        "fingerprint": view.fingerprint,
        "dtype": view.dtype,
    }
    reported = {
        "calibration": found,
        "vector": {"site": vector.site, "default_scale": vector.default_scale, "revision": vector.revision},
        "unsteered": _shown(reference.fluency),
        "divergence": [{"scale": scale, "kl": kl} for scale, kl in sorted(tried.divergences.items())],
        "fluency": [
            {"scale": scale, "is_fluent": is_fluent, **({} if fluency is None else _shown(fluency))}
            for scale, (is_fluent, fluency) in sorted(tried.fluencies.items())
        ],
    }
    return Calibrated(replace(vector, calibration=found), reported)


class _Tried:
    """What was measured at each scale."""

    def __init__(
        self, vector: SteeringVector, reference: Reference, asked: Asked, advance: Callable[[str], None]
    ) -> None:
        self._vector = vector
        self._reference = reference
        self._asked = asked
        self._advance = advance
        self.divergences: dict[float, float | None] = {}
        self.fluencies: dict[float, tuple[bool, Fluency | None]] = {}

    def divergence(self, scale: float) -> float:
        self._advance("moving the distribution")
        found = self._reference.divergence(self._steering(scale))
        self.divergences[scale] = found if found < float("inf") else None
        return found

    def is_fluent(self, scale: float) -> bool:
        self._advance("writing")
        found, plain = self._reference.fluency_under(self._steering(scale)), self._reference.fluency
        is_fluent = (
            found is not None
            and found.perplexity <= self._asked.max_perplexity * plain.perplexity
            and found.distinct >= LEAST_DISTINCT * plain.distinct
        )
        self.fluencies[scale] = is_fluent, found
        return is_fluent

    def _steering(self, scale: float) -> tuple[Steering, ...]:
        return (Steering(self._vector, scale),)


class _Progress:
    """Says how many scales were tried; how many it will be is only guessed."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._num_done = 0

    def __call__(self, phase: str) -> None:
        self._report(Progress(phase, self._num_done, max(_LIKELY_STEPS, self._num_done + 1)))
        self._num_done += 1


def _norms(view: CalibratedModel, vector: SteeringVector, reference: Reference) -> dict[str, float]:
    """The mean ‖h‖ at each layer over the prompts and what the unsteered model writes, each but its first token."""
    texts = [prompt + text for prompt, text in zip(reference.prompts, reference.texts, strict=True)]
    found: dict[int, list[torch.Tensor]] = {layer: [] for layer in vector.layers}
    for _, activations in view.token_activations(texts, vector.site, vector.layers):
        for layer, rows in activations.items():
            found[layer].append(torch.linalg.vector_norm(rows[1:], dim=-1, dtype=torch.float64))
    return {str(layer): float(torch.cat(norms).mean()) for layer, norms in found.items()}


def _shown(fluency: Fluency) -> dict[str, float]:
    return {"perplexity": fluency.perplexity, "distinct": fluency.distinct}


def _rounded(scale: float) -> float:
    """To three digits, towards 0, so that it is still fluent where its bound was."""
    text = f"{scale:.3g}"
    rounded = float(text)
    return rounded if abs(rounded) <= abs(scale) else float(f"{scale * 0.9975:.3g}")
