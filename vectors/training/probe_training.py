"""Training of probes: labelled texts -> a vector that reads the probability of the positive class, and a report.

    split -> read activations -> fit at every place -> choose by validation AUC -> calibrate -> test once

Each text is read at its last token, unsteered. The validation texts choose the place and the fit, and calibrate the
probability; only texts that took no part in any of this decide whether the probe is recommended.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from vectors.data.items import DataSet, Item
from vectors.data.split import Parts
from vectors.errors import InvalidData
from vectors.training.examiner import Examiner
from vectors.training.method import Method
from vectors.training.model_view import ModelView
from vectors.training.options import Fit
from vectors.training.probe_fitting import Curve, Labels, direction_of, fit_curve
from vectors.training.probe_measures import auc_of
from vectors.training.probe_outcomes import ProbeOutcome, figures_of
from vectors.training.probe_texts import LabelledText, labelled_texts
from vectors.training.progress import WorkPlan
from vectors.training.statistics import Floats
from vectors.vector import SteeringVector
from vectors.vocabulary import Place

NUM_RANDOM = 100
"""Random directions that the chosen one is compared with."""

Activations = Mapping[Place, npt.NDArray[np.float32]]
"""`[texts, hidden]` by place."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """A direction at one place, float64 `[hidden]`, and its AUC on the validation texts."""

    fit: Fit
    place: Place
    direction: Floats
    validation: float


@dataclass(frozen=True, slots=True)
class TrainedProbe:
    """`vector` is None if nothing is to be published; every figure of the report's test comes from `outcomes`."""

    vector: SteeringVector | None
    report: dict[str, Any]
    outcomes: tuple[ProbeOutcome, ...]
    num_tokens: int


def train_probe(
    view: ModelView,
    data: DataSet,
    parts: Parts[Item],
    method: Method,
    fits: Sequence[Fit],
    *,
    seed: int,
    plan: WorkPlan,
) -> TrainedProbe:
    """Train on `parts` of `data` at every layer and site of `method`, and test.

    Raises `InvalidData` if the classes have the same activations everywhere, and what `view` raises.
    """
    examiner = Examiner(view, method)
    texts = {name: labelled_texts(getattr(parts, name)) for name in ("train", "validation", "test")}
    places = [(site, layer) for site in method.sites for layer in sorted(method.layers_for(view.num_layers))]
    whole = [text for part in texts.values() for text in part]
    prompts = [examiner.tokens_of(text.text) for text in whole]
    plan.begin("reading activations", len(prompts))
    activations = _read(view, prompts, places, plan.advance)
    labels = np.array([text.is_positive for text in whole])
    rows = _rows_of(texts)
    plan.begin("fitting", len(places) * len(fits))
    fitted = _fit(activations, labels, rows["train"], rows["validation"], fits, plan.advance)
    if not fitted:
        raise InvalidData("the two classes have the same activations everywhere", data.name)
    chosen = max(fitted, key=lambda found: found.validation)  # the first of equals: the earlier place
    plan.best = chosen.validation
    scores = activations[chosen.place].astype(np.float64) @ chosen.direction
    curve = fit_curve(scores[rows["validation"]], labels[rows["validation"]])
    probabilities = curve.of(scores)
    plan.begin("testing", 1)
    outcomes = tuple(
        ProbeOutcome(part, text.line, text.group, text.is_positive, float(scores[row]), float(probabilities[row]))
        for part in ("validation", "test")
        for text, row in zip(texts[part], rows[part], strict=True)
    )
    controls = _controls(activations[chosen.place], prompts, labels, rows, seed)
    figures = figures_of(outcomes, controls)
    plan.end()
    reason = _reason(figures["test"], figures["rules"])
    is_recommended = all(rule["passes"] for rule in figures["rules"])
    report: dict[str, Any] = {
        "task": "probe",
        "method": {name: method.to_json()[name] for name in ("site", "layers", "split", "prompt", "max_items")}
        | {"fit": list(fits)},
        "data": {
            "name": data.name,
            "sha256": data.sha256,
            "items": len(data.items),
            "split": {name: len(getattr(parts, name)) for name in texts},
        },
        "seed": seed,
        "chosen": {"fit": chosen.fit, "site": chosen.place[0], "layer": chosen.place[1], "selected_from": len(fitted)}
        | figures["chosen"],
        "places": [
            {"fit": each.fit, "site": each.place[0], "layer": each.place[1], "validation": each.validation}
            for each in fitted
        ],
        "test": figures["test"],
        "controls": controls,
        "rules": figures["rules"],
        "recommended": is_recommended,
        "reason": reason,
        "notes": [],
        "seconds": {phase: round(value, 3) for phase, value in plan.seconds.items()},
    }
    publishes = is_recommended or method.allow_no_gain
    train = activations[chosen.place][rows["train"]].astype(np.float64)
    vector = _vector(view, chosen, curve, train, labels[rows["train"]], report) if publishes else None
    return TrainedProbe(vector, report, outcomes, sum(map(len, prompts)))


def _reason(test: Mapping[str, Any], rules: Sequence[Mapping[str, Any]]) -> str:
    area = test["auc"]
    found = f"AUC {area['value']:.3f} ({area['low']:.3f} to {area['high']:.3f}) on held-out texts, p = {test['p']:.2g}"
    failed = [rule["says"] for rule in rules if not rule["passes"]]
    return f"{found}; expected {' and '.join(failed)}" if failed else found


def _read(
    view: ModelView, prompts: Sequence[tuple[int, ...]], places: Sequence[Place], advance: Callable[[int], None]
) -> Activations:
    sites = tuple(dict.fromkeys(site for site, _ in places))
    found = {place: np.empty((len(prompts), view.hidden_size), dtype=np.float32) for place in places}
    for num_done, (index, activation) in enumerate(view.activations(prompts, sites), 1):
        for (site, layer), rows in found.items():
            rows[index] = activation[site][layer].numpy()
        advance(num_done)
    return found


def _rows_of(texts: Mapping[str, Sequence[LabelledText]]) -> dict[str, npt.NDArray[np.int64]]:
    """Where each part's texts are among all of them."""
    ends = np.cumsum([len(part) for part in texts.values()])
    return {name: np.arange(end - len(texts[name]), end) for name, end in zip(texts, ends, strict=True)}


def _fit(
    activations: Activations,
    labels: Labels,
    train: npt.NDArray[np.int64],
    validation: npt.NDArray[np.int64],
    fits: Sequence[Fit],
    advance: Callable[[int], None],
) -> list[Fitted]:
    found = []
    num_done = 0
    for place, rows in activations.items():
        own = rows.astype(np.float64)
        for fit in fits:
            direction = direction_of(fit, own[train], labels[train])
            if direction.any():
                scores = own[validation] @ direction
                found.append(Fitted(fit, place, direction, auc_of(scores, labels[validation])))
            num_done += 1
            advance(num_done)
    return found


def _controls(
    activations: npt.NDArray[np.float32],
    prompts: Sequence[tuple[int, ...]],
    labels: Labels,
    rows: Mapping[str, npt.NDArray[np.int64]],
    seed: int,
) -> dict[str, float]:
    """What is reached on the test texts without a probe: the AUC of their lengths, and the mean one of `NUM_RANDOM`
    random directions at the same place, each with the sign that is right on the training texts.
    """
    train, test = rows["train"], rows["test"]
    lengths = np.array([len(prompt) for prompt in prompts], dtype=np.float64)
    drawn = np.random.default_rng(seed).standard_normal((activations.shape[1], NUM_RANDOM))
    along = activations.astype(np.float64) @ drawn

    def signed(scores: Floats) -> float:
        sign = 1.0 if auc_of(scores[train], labels[train]) >= 0.5 else -1.0
        return auc_of(sign * scores[test], labels[test])

    return {"length": signed(lengths), "random": float(np.mean([signed(scores) for scores in along.T]))}


def _vector(
    view: ModelView, chosen: Fitted, curve: Curve, train: Floats, labels: Labels, report: Mapping[str, Any]
) -> SteeringVector:
    """The probe: it reads the probability, and its own direction is the difference of the classes' means."""
    site, layer = chosen.place
    names = ("method", "data", "chosen", "test", "controls", "recommended", "reason")
    return SteeringVector(
        directions={layer: torch.from_numpy(direction_of("mean_difference", train, labels)).float()},
        reads={layer: torch.from_numpy(curve.slope * chosen.direction).float()},
        biases={layer: torch.tensor([curve.offset], dtype=torch.float32)},
        activation="sigmoid",
        threshold=report["chosen"]["threshold"],
        site=site,
        model=view.model_id,
        description=f"probe ({chosen.fit}) at {site} {layer}: {report['reason']}"[:500],
        training={"task": "probe"} | {name: report[name] for name in names},
    )
