"""What a probe said of each held-out text, and the figures of its test, which come from that alone.

Kept beside the report as `outcomes.jsonl`, one JSON object a line.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from vectors.errors import InvalidData
from vectors.training.outcomes import OUTCOMES
from vectors.training.probe_fitting import best_threshold
from vectors.training.probe_measures import auc_of, auc_test, auc_with_interval, bins_of, calibration_error

P_LIMIT = 0.01
"""A probe is recommended if p is below this: over 60 sets with random labels, less than one on average."""


@dataclass(frozen=True, slots=True)
class ProbeOutcome:
    """What the chosen probe said of a text: its score along the direction, and the probability.

    `part` is `validation` or `test`. Texts come in couples of a positive and a negative one.
    """

    part: str
    line: int
    group: str
    is_positive: bool
    score: float
    probability: float

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Self:
        """An outcome from its fields. Raises `ValueError`, `KeyError` and `TypeError`."""
        part, is_positive = found["part"], found["is_positive"]
        if part not in ("validation", "test") or not isinstance(is_positive, bool):
            raise ValueError("expected a part, validation or test, and whether the text is positive")
        score, probability = float(found["score"]), float(found["probability"])
        if not np.isfinite(score) or not 0.0 <= probability <= 1.0:
            raise ValueError("expected a finite score and a probability from 0 to 1")
        return cls(part, int(found["line"]), str(found["group"]), is_positive, score, probability)


def to_jsonl(outcomes: Sequence[ProbeOutcome]) -> bytes:
    """The outcomes as lines of a file."""
    return "".join(json.dumps(dataclasses.asdict(outcome)) + "\n" for outcome in outcomes).encode()


def from_jsonl(content: bytes) -> list[ProbeOutcome]:
    """The outcomes of a file. Raises `InvalidData` at the line that cannot be read."""
    found = []
    for number, line in enumerate(content.splitlines(), 1):
        try:
            found.append(ProbeOutcome.from_json(json.loads(line)))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InvalidData(f"is no outcome of a text ({error!r:.100})", OUTCOMES, number) from None
    return found


def figures_of(outcomes: Sequence[ProbeOutcome], controls: Mapping[str, float]) -> dict[str, Any]:
    """Every figure that follows from outcomes, in the report's own structure: `chosen`, `test`, `rules`.

    Raises `InvalidData` for outcomes that are not of a test, and `MissingDependency`.
    """
    own = [outcome for outcome in outcomes if outcome.part == "validation"]
    try:
        _, validation, labels = _arrays(own)
        threshold = best_threshold(validation, labels)
        chosen = {"validation": auc_of(np.array([one.score for one in own]), labels), "threshold": threshold}
        test = _test([outcome for outcome in outcomes if outcome.part == "test"], threshold)
    except ValueError as error:
        raise InvalidData(str(error), OUTCOMES) from None
    return {"chosen": chosen, "test": test, "rules": _rules(test, controls)}


def _arrays(outcomes: Sequence[ProbeOutcome]) -> tuple[Any, Any, Any]:
    scores = np.array([outcome.score for outcome in outcomes])
    probabilities = np.array([outcome.probability for outcome in outcomes])
    return scores, probabilities, np.array([outcome.is_positive for outcome in outcomes], dtype=bool)


def _test(outcomes: Sequence[ProbeOutcome], threshold: float) -> dict[str, Any]:
    scores, probabilities, labels = _arrays(outcomes)
    groups = [outcome.group for outcome in outcomes]
    area, tested = auc_with_interval(scores, labels, groups), auc_test(scores, labels, groups)
    above = probabilities >= threshold
    bins = bins_of(probabilities, labels)
    return {
        "auc": {"value": area.value, "low": area.low, "high": area.high},
        "p": tested.p,
        "p_method": tested.method,
        "positive_texts": int(labels.sum()),
        "negative_texts": int((~labels).sum()),
        "groups": tested.mean.num_groups,
        "accuracy": float((above == labels).mean()),
        "sensitivity": float(above[labels].mean()),
        "specificity": float((~above)[~labels].mean()),
        "brier": float(((probabilities - labels) ** 2).mean()),
        "calibration_error": calibration_error(bins),
        "bins": [{"texts": each.num_texts, "probability": each.probability, "share": each.share} for each in bins],
    }


def _rules(test: Mapping[str, Any], controls: Mapping[str, float]) -> list[dict[str, Any]]:
    """What a recommended probe passes: each rule's name, what it says, and whether it passes."""
    area = test["auc"]["value"]
    rules = (
        ("above_chance", f"AUC above one half, p < {P_LIMIT}", test["p"] < P_LIMIT),
        ("beats_length", "AUC above that of the texts' lengths", area > controls["length"]),
        ("beats_random", "AUC above that of random directions", area > controls["random"]),
    )
    return [{"name": name, "says": says, "passes": bool(passes)} for name, says, passes in rules]
