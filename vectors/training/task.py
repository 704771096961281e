"""Task: what one job does - train, evaluate an existing vector, or sweep over training-set sizes - with its files.

The same for a job on the server and for the command line. Its JSON has the options of the task and of its method
together; `options.py` declares them.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from vectors.errors import UNNAMED, InvalidData, InvalidMethod, MissingDependency
from vectors.training.evaluate import evaluate, sweep
from vectors.training.method import Method
from vectors.training.model_view import ModelView, Steering
from vectors.training.options import METHOD_OPTIONS, TASK_OPTIONS, Kind, TaskOptions, read_options
from vectors.training.outcomes import OUTCOMES, Outcomes
from vectors.training.plots import Bar, CurvePoint, accuracy_bars, heat_map, size_curve
from vectors.training.progress import Report
from vectors.training.search import Cell
from vectors.training.statistics import Accuracy
from vectors.training.train import TrainingData, check_fit, train
from vectors.vector import SteeringVector


@dataclass(frozen=True, slots=True, kw_only=True)
class Task(TaskOptions):
    """What to do. `vector` and `scale` are for `evaluate` (None: its default scale), `sizes` for `sweep`."""

    method: Method = field(default_factory=Method)

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> Self:
        """A task from `method.steering`. Raises `InvalidMethod` naming the option."""
        kind: Kind = read_options({"task": given.get("task")}, TASK_OPTIONS).get("kind", "train")
        values = read_options(given, (*TASK_OPTIONS, *METHOD_OPTIONS), kind)
        if kind == "evaluate" and "vector" not in values:
            raise InvalidMethod("vector: expected the name of the vector to evaluate, got none", "vector")
        own = {option.field: values.pop(option.field) for option in TASK_OPTIONS if option.field in values}
        return cls(method=Method(**values), **own)


@dataclass(frozen=True, slots=True)
class Done:
    """The result of a task: the vector to publish, if any, its report (JSON), and its files.

    `files`: `report.json`, then plots, then `outcomes.jsonl`, from which the report can be computed again.
    """

    vector: SteeringVector | None
    report: dict[str, Any]
    files: tuple[tuple[str, bytes], ...]
    num_tokens: int
    is_recommended: bool
    reason: str


def carry_out(
    task: Task, view: ModelView, data: TrainingData, *, steering: Sequence[Steering] = (), seed: int, report: Report
) -> Done:
    """Carry out `task`; `steering` is the vector that it names. Raises as `train`, `evaluate` and `sweep` do."""
    check_installed()
    check_fit(task.method, view)
    try:
        return _carry_out(task, view, data, tuple(steering), seed, report)
    except InvalidData as error:
        raise error if error.file != UNNAMED else error.in_file(data.items.name) from error


def _carry_out(
    task: Task, view: ModelView, data: TrainingData, steering: tuple[Steering, ...], seed: int, report: Report
) -> Done:
    if task.kind == "evaluate":
        found, outcomes = evaluate(view, data, steering, task.method, seed=seed, report=report)
        files = _files(found, [("accuracy.png", _accuracy_plot(found))], outcomes)
        return Done(None, found, files, 0, bool(found["recommended"]), str(found["reason"]))
    if task.kind == "sweep":
        found, outcomes = sweep(view, data, task.method, task.sizes, seed=seed, report=report)
        reason = f"a curve over {len(found['points'])} sizes; nothing is published"
        return Done(None, found, _files(found, [("sizes.png", _curve_plot(found))], outcomes), 0, False, reason)
    trained = train(view, data, task.method, seed=seed, report=report)
    plots = [*_heat_maps(trained.report, trained.cells, task.method), ("accuracy.png", _accuracy_plot(trained.report))]
    return Done(
        trained.vector,
        trained.report,
        _files(trained.report, plots, trained.outcomes),
        trained.num_tokens,
        trained.is_recommended,
        trained.reason,
    )


def check_installed() -> None:
    """Raise `MissingDependency` before the work if what reports need is not installed."""
    for package in ("scipy", "statsmodels", "matplotlib"):
        if importlib.util.find_spec(package) is None:
            raise MissingDependency(f"training needs {package}, which is not installed: pip install 'tiller[train]'")


def _files(
    report: dict[str, Any], plots: Sequence[tuple[str, bytes]], outcomes: Outcomes
) -> tuple[tuple[str, bytes], ...]:
    content = (json.dumps(report, indent=1, allow_nan=False) + "\n").encode()
    return (("report.json", content), *plots, (OUTCOMES, outcomes.to_jsonl()))


def _heat_maps(report: dict[str, Any], cells: Sequence[Cell], method: Method) -> list[tuple[str, bytes]]:
    """One plot for each variant and site searched, the chosen one's first."""
    chosen = report["chosen"]
    names = list(dict.fromkeys((cell.variant, cell.site) for cell in cells))
    names.sort(key=lambda name: name != (chosen["variant"], chosen["site"]))
    plots = []
    for variant, site in names:
        own = [cell for cell in cells if (cell.variant, cell.site) == (variant, site)]
        layers, scales = sorted({cell.layer for cell in own}), sorted({cell.shown_scale for cell in own})
        accuracy = np.full((len(layers), len(scales)), np.nan)
        for cell in own:
            accuracy[layers.index(cell.layer), scales.index(cell.shown_scale)] = cell.accuracy
        is_chosen = (variant, site) == (chosen["variant"], chosen["site"])
        picture = heat_map(
            f"{variant}, {site}: validation accuracy by layer and scale",
            layers,
            scales,
            accuracy,
            report["baseline"]["validation"],
            (chosen["layers"][0], chosen["grid_scale"]) if is_chosen else None,
            **({"scale_label": "scale (× mean ‖h‖ ÷ ‖v‖)"} if method.relative_scales else {}),
        )
        plots.append((f"grid-{variant}-{site}.png", picture))
    return plots


def _accuracy_plot(report: dict[str, Any]) -> bytes:
    before, after = report["baseline"]["test"], report["test"]["accuracy"]
    bars = [
        Bar("unsteered", before["value"], before["low"], before["high"]),
        Bar("steered", after["value"], after["low"], after["high"]),
    ]
    retention = report["retention"]["accuracy"]
    if retention is not None:
        for name in ("baseline", "steered"):
            found = retention[name]
            bars.append(Bar(f"retention, {name}", found["value"], found["low"], found["high"]))
    return accuracy_bars("letter-balanced test accuracy, 95 % intervals", bars)


def _curve_plot(report: dict[str, Any]) -> bytes:
    tested = [point for point in report["points"] if "test" in point]
    points = [
        CurvePoint(point["num_items"], found["value"], found["low"], found["high"])
        for point in tested
        for found in [point["test"]["accuracy"]]
    ]
    return size_curve("test accuracy over training items", points, Accuracy(**tested[-1]["baseline"]))
