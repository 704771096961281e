"""A sweep: training for increasing numbers of items, on one split or several, and the curve of their accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from vectors.errors import InvalidData
from vectors.training.method import Method
from vectors.training.model_view import ModelView
from vectors.training.outcomes import Outcomes, Tested
from vectors.training.progress import Report, WorkPlan
from vectors.training.report import SeedResult, cell_report
from vectors.training.size_curve import curve_report
from vectors.training.train import TrainingData, check_fit, expected_work, parts_of, train_seed


def sweep(
    view: ModelView, data: TrainingData, method: Method, sizes: Sequence[int], *, seed: int, report: Report
) -> tuple[dict[str, Any], Outcomes]:
    """Held-out accuracy by the number of training items, and its outcomes.

    Each size of a seed is a training on the first items of the same split; with `method.seeds` each of as many splits
    is tried with every size. Sizes above what every split has become the largest that all have. A size that leaves
    nothing to contrast is reported with the reason. Raises as `train`.
    """
    check_fit(method, view)
    seeds = range(seed, seed + method.seeds)
    parts = [parts_of(data, method, number) for number in seeds]
    available = min(len(part.train) for part in parts)
    tried = sorted({min(size, available) for size in sizes})
    found: dict[int, dict[int, tuple[SeedResult, float]]] = {size: {} for size in tried}
    reasons: dict[int, list[dict[str, Any]]] = {size: [] for size in tried}
    failure = InvalidData("none of the sizes can be trained", data.items.name)
    one = replace(method, seeds=1)
    for number in seeds:
        for size in tried:
            label = f"{size} items" if method.seeds == 1 else f"seed {number}, {size} items"
            plan = WorkPlan(_labelled(report, label), expected_work(data, one, view))
            try:
                result = train_seed(view, data, one, number, plan, num_train=size)
            except InvalidData as error:
                failure = error
                reasons[size].append({"seed": number, "reason": str(error)})
                continue
            plan.end()
            found[size][number] = (result, round(sum(plan.seconds.values()), 3))
    if not any(found.values()):
        raise failure
    splits = [{"train": len(part.train), "validation": len(part.validation), "test": len(part.test)} for part in parts]
    tests = {size: {number: result.test for number, (result, _) in own.items()} for size, own in found.items()}
    curve = curve_report(tests, method.seeds, splits)
    reported = {
        "method": method.to_json(),
        "data": {
            "name": data.items.name,
            "sha256": data.items.sha256,
            "items": len(data.items.items),
            "split": splits[0],
        },
        "seed": seed,
        "splits": splits,
        **curve,
        "points": _points(curve["points"], found, reasons),
    }
    tested = tuple(
        Tested(number, result.test.outcomes, result.validation, size)
        for size, own in found.items()
        for number, (result, _) in own.items()
    )
    return reported, Outcomes(tested)


def _labelled(report: Report, label: str) -> Report:
    """`report`, with the label before the name of each phase."""
    return lambda progress: report(replace(progress, phase=f"{label}: {progress.phase}"))


def _points(
    figures: Sequence[dict[str, Any]],
    found: dict[int, dict[int, tuple[SeedResult, float]]],
    reasons: dict[int, list[dict[str, Any]]],
) -> list[dict[str, Any]]:
    """A point for each size: its figures, what each seed chose, and the seeds without a result."""
    by_size = {point["num_items"]: point for point in figures}
    points = []
    for size, own in found.items():
        if not own:
            points.append({"num_items": size, "reason": reasons[size][0]["reason"], "failed": reasons[size]})
            continue
        each = [
            {
                "seed": number,
                "chosen": cell_report(result.chosen),
                "baseline": result.test.baseline.value,
                "steered": result.test.steered.value,
                "seconds": seconds,
            }
            for number, (result, seconds) in own.items()
        ]
        points.append(by_size[size] | {"chosen": each[0]["chosen"], "each": each, "failed": reasons[size]})
    return points
