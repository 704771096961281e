"""Training on a plain transformers model: a labelled file in, a vector and its report out."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from vectors.data import DataSet, ReadOptions, read_data, read_retention
from vectors.errors import InvalidMethod
from vectors.plain.model_view import PlainModelView
from vectors.training.options import DATA_OPTIONS, METHOD_OPTIONS
from vectors.training.progress import Report, progress_line
from vectors.training.task import Task, carry_out, check_installed
from vectors.training.train import TrainingData
from vectors.vector import SteeringVector


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """The result of a training.

    `vector` is None if it does not help and `allow_no_gain` was not set. `report` is the JSON report of a training job;
    `reason` says in a sentence why the vector is recommended or not. `files`: `report.json`, pictures (PNG) and
    `outcomes.jsonl`, by name.
    """

    vector: SteeringVector | None
    report: Mapping[str, Any]
    is_recommended: bool
    reason: str
    files: Mapping[str, bytes]

    @property
    def summary(self) -> str:
        """The verdict, the accuracy on held-out items before and after, and what was chosen, on a line each; and with
        `adaptive` which vector it is.
        """
        chosen, test = self.report["chosen"], self.report["test"]
        before, after = (100 * found["value"] for found in (self.report["baseline"]["test"], test["accuracy"]))
        layers = ", ".join(map(str, chosen["layers"]))
        adaptive = self.report.get("adaptive")
        says = "" if adaptive is None else f"\nadaptive ({adaptive['form']}): {adaptive['reason']}"
        return (
            f"{'it helps' if self.is_recommended else 'not recommended'}: {self.reason}\n"
            f"test accuracy {before:.1f} % → {after:.1f} %\n"
            f"{chosen['variant']}, {chosen['site']} layer {layers}, scale {chosen['scale']:g}{says}"
        )


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: str | PathLike[str] | DataSet,
    *,
    validation: str | PathLike[str] | DataSet | None = None,
    retention: str | PathLike[str] | None = None,
    negative: str | PathLike[str] | None = None,
    seed: int = 0,
    report: Report | None = None,
    **options: Any,
) -> TrainingResult:
    """Train a vector from labelled data by Painless Activation Steering (arXiv:2509.22739), and test whether it helps.

    `data` is a file (JSON, CSV, Parquet) or a data set of `vectors.data`; `validation` holds other items to choose by,
    `retention` what the vector should leave alone, `negative` the texts of the unwanted class if `data` has only those
    of the wanted one. `options` are those of `tiller train` and of a training job, such as
    `variant="pas_full"`, `layers=[8, 12]`, `prompt="chat"`; see `Method`. `report` receives progress; None shows it on
    standard error if that is a terminal. The model must be in evaluation mode, and is left unchanged. Raises
    `InvalidMethod`, `InvalidData`, `MissingDependency`, `SitesNotFound` and `OSError`.
    """
    check_installed()
    task = _task_of(options)
    reading = task.reading
    retained = (None, ()) if retention is None else read_retention(*_content_of(retention), reading.without_map())
    given = TrainingData(
        _items(data, reading, negative), None if validation is None else _items(validation, reading), *retained
    )
    with contextlib.ExitStack() as cleanup:
        view = cleanup.enter_context(contextlib.closing(PlainModelView(model, tokenizer)))
        tell = cleanup.enter_context(progress_line(sys.stderr)) if report is None else report
        done = carry_out(task, view, given, seed=seed, report=tell)
    return TrainingResult(done.vector, done.report, done.is_recommended, done.reason, dict(done.files))


def _task_of(options: Mapping[str, Any]) -> Task:
    """A training with these options. Raises `InvalidMethod` naming one that a training does not have."""
    own = [option.name for option in (*METHOD_OPTIONS, *DATA_OPTIONS)]
    for name in options:
        if name not in own:
            raise InvalidMethod(f"{name[:60]}: unknown option, expected one of {', '.join(own)}", name[:60])
    return Task.from_json({name: _as_json(value) for name, value in options.items()})


def _items(
    data: str | PathLike[str] | DataSet, reading: ReadOptions, negative: str | PathLike[str] | None = None
) -> DataSet:
    if isinstance(data, DataSet):
        return data
    return read_data(*_content_of(data), reading, negative=None if negative is None else _content_of(negative))


def _content_of(path: str | PathLike[str]) -> tuple[bytes, str]:
    """The bytes and the name of a file."""
    return Path(path).read_bytes(), Path(path).name


def _as_json(value: object) -> object:
    """`value` as in a job's JSON: lists for tuples and ranges."""
    return list(value) if isinstance(value, tuple | range) else value
