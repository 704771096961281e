"""Task: what one job does - train a vector or a probe, evaluate or calibrate a vector, or sweep over sizes - with its
files.

The same for a job on the server and for the command line. Its JSON has the options of the task and of its method
together; `options.py` declares them.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from vectors.data.items import DataSet, summary_of
from vectors.data.options import ReadOptions
from vectors.errors import UNNAMED, InvalidData, InvalidMethod, MissingDependency
from vectors.training.adaptive_plot import retention_at_accuracy
from vectors.training.apart import of_record, recorded, seen_of, without_seen, without_too_long
from vectors.training.evaluate import evaluate
from vectors.training.examiner import Examiner
from vectors.training.method import Method
from vectors.training.model_view import ModelView, Steering
from vectors.training.options import DATA_OPTIONS, METHOD_OPTIONS, TASK_OPTIONS, Kind, TaskOptions, read_options
from vectors.training.outcomes import OUTCOMES
from vectors.training.plots import (
    RELATIVE_SCALE_LABEL,
    SCALE_LABEL,
    Bar,
    CurvePoint,
    SlopeLine,
    accuracy_bars,
    gain_map,
    heat_map,
    size_curve,
)
from vectors.training.probe_outcomes import to_jsonl
from vectors.training.probe_plots import auc_by_layer, calibration
from vectors.training.probe_training import train_probe
from vectors.training.progress import Progress, Report, WorkPlan
from vectors.training.search import Cell
from vectors.training.sweep import sweep
from vectors.training.train import TrainingData, check_fit, parts_of, train
from vectors.vector import SteeringVector


@dataclass(frozen=True, slots=True, kw_only=True)
class Task(TaskOptions):
    """What to do. `vector` and `scale` are for `evaluate` (None: its default scale), `sizes` for `sweep`, `fits` for
    `probe`.

    `calibrate` carries itself out in `vectors.calibration`, as does the calibration after a training.

    `reading` says how its files are read.
    """

    method: Method = field(default_factory=Method)
    reading: ReadOptions = field(default_factory=ReadOptions)

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> Self:
        """A task from `method.steering`. Raises `InvalidMethod` naming the option."""
        kind: Kind = read_options({"task": given.get("task")}, TASK_OPTIONS).get("kind", "train")
        values = read_options(given, (*TASK_OPTIONS, *METHOD_OPTIONS, *DATA_OPTIONS), kind)
        if kind in ("evaluate", "calibrate") and "vector" not in values:
            raise InvalidMethod(f"vector: expected the name of the vector to {kind}, got none", "vector")
        own, reading = (
            {option.field: values.pop(option.field) for option in options if option.field in values}
            for options in (TASK_OPTIONS, DATA_OPTIONS)
        )
        return cls(method=Method(**values), reading=ReadOptions(**reading), **own)


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
    """Carry out `task`; `steering` is the vector that it names. Raises as `train`, `evaluate` and `sweep` do.

    Before, items that are too long for the model and items that are not held out are left out; the report says so.
    """
    check_installed()
    check_fit(task.method, view)
    try:
        return _carry_out(task, view, data, tuple(steering), seed, report)
    except InvalidData as error:
        raise error if error.file != UNNAMED else error.in_file(data.items.name) from error


def _carry_out(
    task: Task, view: ModelView, data: TrainingData, steering: tuple[Steering, ...], seed: int, report: Report
) -> Done:
    data = _askable(task, view, data)
    data, notes = _held_apart(data, steering)
    report(Progress("reading the data", 0, 0, note=f"{data.items.name}: {summary_of(data.items)}"))
    for note in notes:
        report(Progress("reading the data", 0, 0, note=note))
    if task.kind == "evaluate":
        is_held_out = _is_held_out(data, steering)
        found, outcomes = evaluate(view, data, steering, task.method, is_held_out=is_held_out, seed=seed, report=report)
        _say_what_was_read(found, data, notes)
        files = _files(found, [("accuracy.png", _accuracy_plot(found))], outcomes.to_jsonl())
        return Done(None, found, files, 0, bool(found["recommended"]), str(found["reason"]))
    if task.kind == "sweep":
        found, outcomes = sweep(view, data, task.method, task.sizes, seed=seed, report=report)
        _say_what_was_read(found, data, notes)
        reason = f"a curve over {len(found['points'])} sizes; nothing is published"
        files = _files(found, [("sizes.png", _curve_plot(found))], outcomes.to_jsonl())
        return Done(None, found, files, 0, False, reason)
    if task.kind == "probe":
        return _probe(task, view, data, notes, seed, report)
    trained = train(view, data, task.method, seed=seed, report=report)
    _say_what_was_read(trained.report, data, notes)
    plots = _heat_maps(trained.report, trained.cells, task.method)
    if "grid" in trained.report.get("seeds", {}):
        plots += _gain_maps(trained.report, task.method)
    plots.append(("accuracy.png", _accuracy_plot(trained.report)))
    if trained.report.get("baselines"):
        plots.append(("baselines.png", _baselines_plot(trained.report)))
    if trained.report.get("adaptive", {}).get("conditions"):
        plots.append(("adaptive.png", retention_at_accuracy(trained.report)))
    return Done(
        _with_record(trained.vector, data, task.method, seed),
        trained.report,
        _files(trained.report, plots, trained.outcomes.to_jsonl()),
        trained.num_tokens,
        trained.is_recommended,
        trained.reason,
    )


def _probe(task: Task, view: ModelView, data: TrainingData, notes: Sequence[str], seed: int, report: Report) -> Done:
    parts = parts_of(data, task.method, seed)
    num_texts = 2.0 * len((*parts.train, *parts.validation, *parts.test))
    plan = WorkPlan(report, {"reading activations": num_texts, "fitting": 0.1 * num_texts, "testing": 1.0})
    trained = train_probe(view, data.items, parts, task.method, task.fits, seed=seed, plan=plan)
    _say_what_was_read(trained.report, data, notes)
    plots = [("auc.png", auc_by_layer(trained.report)), ("calibration.png", calibration(trained.report))]
    files = _files(trained.report, plots, to_jsonl(trained.outcomes))
    vector = _with_record(trained.vector, data, task.method, seed)
    found = trained.report
    return Done(vector, found, files, trained.num_tokens, bool(found["recommended"]), str(found["reason"]))


def _askable(task: Task, view: ModelView, data: TrainingData) -> TrainingData:
    """The data without items that are too long for the model. Raises the first one's `InvalidData` for too many."""
    examiner = Examiner(view, task.method)

    def fitting(given: DataSet | None) -> DataSet | None:
        if given is None:
            return None
        return without_too_long(given, examiner, view.max_length, task.reading.max_skipped)

    items = fitting(data.items)
    assert items is not None
    return dataclasses.replace(
        data, items=items, validation=fitting(data.validation), retention_items=fitting(data.retention_items)
    )


def _held_apart(data: TrainingData, steering: Sequence[Steering]) -> tuple[TrainingData, list[str]]:
    """The data without what is not held out, and sentences that say so. Raises `InvalidData` if nothing is left.

    Items on which a vector was trained are no test of it. Validation and retention items that stand in the first file
    too may be test items.
    """
    notes: list[str] = []
    for entry in steering:
        if seen := of_record(_data_record(entry.vector).get("seen")):
            items, found = without_seen(data.items, seen, "data", "among those that the vector was trained on")
            data, notes = dataclasses.replace(data, items=items), notes + found
    where = "in the data too" if steering else "in the training file too"
    if data.validation is not None:
        kept, found = without_seen(data.validation, seen_of(data.items.items), "validation file", where)
        data, notes = dataclasses.replace(data, validation=kept), notes + found
    if data.retention_items is not None:
        seen = seen_of(data.items.items, with_context=True)
        kept, found = without_seen(data.retention_items, seen, "retention file", where, with_context=True)
        data, notes = dataclasses.replace(data, retention_items=kept), notes + found
    return data, notes


def _data_record(vector: SteeringVector) -> Mapping[str, Any]:
    found = (vector.training or {}).get("data")
    return found if isinstance(found, Mapping) else {}


def _with_record(vector: SteeringVector | None, data: TrainingData, method: Method, seed: int) -> SteeringVector | None:
    """The vector with the keys of the items that it was trained and chosen by, to tell them from new ones."""
    if vector is None or vector.training is None:
        return vector
    parts = parts_of(data, method, seed)
    seen = recorded(seen_of([*parts.train, *parts.validation]))
    record = {**vector.training, "data": {**_data_record(vector), "seen": seen}}
    return dataclasses.replace(vector, training=record)


def _say_what_was_read(report: dict[str, Any], data: TrainingData, notes: Sequence[str]) -> None:
    report["data"]["read"] = data.items.described()
    report["notes"] = [*notes, *report.get("notes", ())]


def _is_held_out(data: TrainingData, steering: Sequence[Steering]) -> bool:
    """False if a vector was trained on this very file, and it is not recorded which items took part."""
    records = [_data_record(entry.vector) for entry in steering]
    return all(
        record.get("sha256") != data.items.sha256 or of_record(record.get("seen")) is not None for record in records
    )


def check_installed() -> None:
    """Raise `MissingDependency` before the work if what reports need is not installed."""
    for package in ("scipy", "statsmodels", "matplotlib"):
        if importlib.util.find_spec(package) is None:
            raise MissingDependency(f"training needs {package}, which is not installed: pip install 'tiller[train]'")


def _files(
    report: dict[str, Any], plots: Sequence[tuple[str, bytes]], outcomes: bytes
) -> tuple[tuple[str, bytes], ...]:
    content = (json.dumps(report, indent=1, allow_nan=False) + "\n").encode()
    return (("report.json", content), *plots, (OUTCOMES, outcomes))


def _heat_maps(report: dict[str, Any], cells: Sequence[Cell], method: Method) -> list[tuple[str, bytes]]:
    """One plot for each variant and site searched, the chosen one's first."""
    chosen = report["chosen"]
    names = list(dict.fromkeys((cell.variant, cell.site) for cell in cells))
    names.sort(key=lambda name: name != (chosen["variant"], chosen["site"]))
    plots = []
    for variant, site in names:
        own = [cell for cell in cells if (cell.variant, cell.site) == (variant, site)]
        layers, scales = sorted({cell.layer for cell in own}), sorted({cell.shown_scale for cell in own})
        accuracy, at_most = (np.full((len(layers), len(scales)), np.nan) for _ in range(2))
        for cell in own:
            place = layers.index(cell.layer), scales.index(cell.shown_scale)
            if cell.bounds is None:
                accuracy[place] = cell.accuracy
            else:
                at_most[place] = cell.bounds[1]
        is_chosen = (variant, site) == (chosen["variant"], chosen["site"])
        picture = heat_map(
            f"{variant}, {site}: validation accuracy by layer and scale",
            layers,
            scales,
            accuracy,
            report["baseline"]["validation"],
            (chosen["layers"][0], chosen["grid_scale"]) if is_chosen else None,
            scale_label=RELATIVE_SCALE_LABEL if method.relative_scales else SCALE_LABEL,
            at_most=at_most,
        )
        plots.append((f"grid-{variant}-{site}.png", picture))
    return plots


def _gain_maps(report: dict[str, Any], method: Method) -> list[tuple[str, bytes]]:
    """One plot for each variant and site: the mean gain over the seeds."""
    places = dict.fromkeys((cell["variant"], cell["site"]) for cell in report["seeds"]["grid"])
    plots = []
    for variant, site in places:
        own = [cell for cell in report["seeds"]["grid"] if (cell["variant"], cell["site"]) == (variant, site)]
        title = f"{variant}, {site}: mean validation gain over {len(report['seeds']['each'])} seeds"
        label = RELATIVE_SCALE_LABEL if method.relative_scales else SCALE_LABEL
        plots.append((f"gain-{variant}-{site}.png", gain_map(title, own, scale_label=label)))
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


def _baselines_plot(report: dict[str, Any]) -> bytes:
    found = [("unsteered", report["baseline"]["test"]), ("the vector", report["test"]["accuracy"])]
    found += [(one["name"], one["accuracy"]) for one in report["baselines"] if "accuracy" in one]
    bars = [Bar(name, accuracy["value"], accuracy["low"], accuracy["high"]) for name, accuracy in found]
    return accuracy_bars("letter-balanced test accuracy of the vector and the baselines", bars)


def _curve_plot(report: dict[str, Any]) -> bytes:
    points = [_curve_point(point["num_items"], point["accuracy"]) for point in report["points"] if "accuracy" in point]
    slope = report["slope"]
    line = None if slope is None else SlopeLine(slope["intercept"], slope["per_doubling"], slope["standard_error"])
    title = f"test accuracy over training items, {report['method']['seeds']} seeds"
    return size_curve(title, points, _curve_point(1, report["baseline"]), line)


def _curve_point(num_items: int, accuracy: dict[str, Any]) -> CurvePoint:
    """A point; one without an interval, since seeds have no result, is drawn without."""
    value = accuracy["value"]
    low, high = (value if accuracy[end] is None else accuracy[end] for end in ("low", "high"))
    return CurvePoint(num_items, value, low, high)
