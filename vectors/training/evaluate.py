"""Evaluation of an existing steering."""

from __future__ import annotations

from typing import Any

import numpy as np

from vectors.data.items import ShownItem
from vectors.training.examiner import Examiner
from vectors.training.held_out import held_out_report, interval_report, measure_steering
from vectors.training.method import Method
from vectors.training.model_view import ModelView, Steering
from vectors.training.outcomes import Outcomes, Tested
from vectors.training.progress import Report, WorkPlan
from vectors.training.retention import check_retention, harm_of, retention_of, retention_report
from vectors.training.train import TrainingData, check_fit, show
from vectors.training.verdict import verdict_of


def evaluate(
    view: ModelView,
    data: TrainingData,
    steering: tuple[Steering, ...],
    method: Method,
    *,
    is_held_out: bool = True,
    seed: int,
    report: Report,
) -> tuple[dict[str, Any], Outcomes]:
    """The report on an existing steering and its outcomes, on all items (at most `method.max_items`, by the seed).

    `is_held_out`: see `verdict_of`.
    """
    check_fit(method, view)
    order = np.random.default_rng(seed).permutation(len(data.items.items))[: method.max_items]
    questions = show([data.items.items[index] for index in sorted(order)], method, seed)
    plan = WorkPlan(report, {"testing": 6.0 * len(questions), "retention": 200.0})
    examiner = Examiner(view, method)
    plan.begin("testing", sum(len(q.order) if isinstance(q, ShownItem) else 1 for q in questions))
    test = measure_steering(examiner, questions, steering, plan.advance)
    retention = retention_of(data.retention_items, data.retention_texts, questions, seed)
    plan.begin("retention", retention.num_prompts)
    kept_items, kept_texts = check_retention(view, examiner, retention, steering, plan.advance)
    plan.end()
    kept = retention_report(kept_items, kept_texts, retention.texts_from)
    verdict = verdict_of(test, method, kept, is_held_out=is_held_out)
    reported = {
        "method": method.to_json(),
        "data": {
            "name": data.items.name,
            "sha256": data.items.sha256,
            "items": len(questions),
            "held_out": is_held_out,
        },
        "seed": seed,
        "baseline": {"test": interval_report(test.baseline)},
        "test": held_out_report(test),
        "retention": kept,
        "notes": harm_of(kept),
        "steering": [
            {
                "revision": entry.vector.revision,
                "site": entry.vector.site,
                "layers": list(entry.vector.layers),
                "scale": entry.scale,
            }
            for entry in steering
        ],
        "recommended": verdict.is_recommended,
        "reason": verdict.reason,
        "verdict": verdict.to_json(),
        "seconds": {phase: round(value, 3) for phase, value in plan.seconds.items()},
    }
    return reported, Outcomes((Tested(seed, test.outcomes),), kept_items, kept_texts)
