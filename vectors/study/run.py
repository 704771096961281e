"""Runs the cells of a study on one model, and writes each to its own file as soon as it is done.

    OUTPUT/cells/MODEL/TASK.VARIANT.SITE.iclN.seedN.json

A killed study continues where it stopped: only cells without a file are run. A file records what it depends on (method,
data, model, seed) with a hash of that, and files of another study are rejected rather than mixed in. All variants and
sites of one task, number of exemplars and seed share one search and one test of the plain model.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vectors.data.items import ChoiceItem, DataSet, ShownItem
from vectors.data.split import shuffle_options
from vectors.durable import make_folder, write_file
from vectors.errors import InvalidData, InvalidMethod
from vectors.study.data import StudyData
from vectors.study.definition import ModelCase, Study, StudyCell
from vectors.study.records import Record, cell_result, failed_cell, reason_of
from vectors.training.examiner import Examiner, Question, answers_of
from vectors.training.held_out import HeldOutResult, measure_steerings
from vectors.training.method import Method
from vectors.training.model_view import ModelView
from vectors.training.options import Variant
from vectors.training.progress import Progress, WorkPlan
from vectors.training.report import answers_per_second
from vectors.training.retention import MAX_RETENTION_ITEMS
from vectors.training.search import Cell, best_of
from vectors.training.train import Searched, TrainingData, check_fit, search_seed
from vectors.vocabulary import Site

FORMAT = 4
"""The format of a cell's file. Cells of other formats are refused: they lack what the tables are made of."""


@dataclass(frozen=True, slots=True)
class StudyProgress:
    """`num_done` of `num_total` cells of this model are done, `num_failed` of them without a result.

    `label` says what is being searched, `phase` how far that search is; `seconds_left`: until all of this model's cells
    are done, None while unknown.
    """

    num_done: int
    num_total: int
    num_failed: int
    label: str
    phase: Progress | None = None
    seconds_left: float | None = None


StudyReport = Callable[[StudyProgress], None]
"""Receives progress. An exception it raises stops the study, which can be continued later."""


@dataclass(frozen=True, slots=True)
class _Group:
    """The cells that one search covers, and those still missing."""

    task: str
    icl: int
    seed: int
    missing: list[StudyCell] = field(default_factory=list)

    @property
    def label(self) -> str:
        return f"{self.task}, {f'{self.icl} exemplars, ' if self.icl else ''}seed {self.seed}"


def read_cells(study: Study, case: ModelCase, data: StudyData, folder: Path) -> dict[StudyCell, Record]:
    """The study's cells in `folder` for this model.

    Raises `InvalidMethod` for a cell of another method, data or model, naming its file and what differs, `InvalidData`
    for a file that is not a cell, and `OSError`.
    """
    found = {}
    for cell in study.cells():
        path = cell_file(folder, case, cell)
        try:
            record = json.loads(path.read_bytes())
            known, key, _ = record["depends_on"], record["key"], record["reason"]
        except FileNotFoundError:
            continue
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            reason = f"is not a cell of a study ({error}); delete it to run the cell again"
            raise InvalidData(reason, str(path)) from None
        wanted = _depends_on(study, case, cell, data)
        if key != _key(wanted):
            known = known if isinstance(known, dict) else {}
            if known.get("format") != FORMAT:
                raise InvalidMethod(
                    f"{path}: expected a cell of format {FORMAT}, got {known.get('format')!r:.20}, of another version; "
                    "choose another output folder, or delete it to run the cell again"
                )
            differing = [name for name, value in wanted.items() if known.get(name) != value]
            raise InvalidMethod(
                f"{path}: belongs to another study ({', '.join(differing) or 'hash'} differs); "
                "choose another output folder"
            )
        found[cell] = record
    return found


def cell_file(folder: Path, case: ModelCase, cell: StudyCell) -> Path:
    """The path of a cell's file. Cells with different names never share one."""
    name = json.dumps([case.model, case.adapter, case.dtype])
    readable = re.sub(r"[^A-Za-z0-9.-]+", "-", case.label).strip("-.")[-60:]
    model = f"{readable}-{hashlib.sha256(name.encode(errors='replace')).hexdigest()[:8]}"
    task = cell.task.replace("/", "+")  # no task name contains a +
    return folder / "cells" / model / f"{task}.{cell.variant}.{cell.site}.icl{cell.icl}.seed{cell.seed}.json"


def run_study(
    study: Study,
    case: ModelCase,
    view: ModelView,
    data: StudyData,
    folder: Path,
    report: StudyReport,
    *,
    adapter_bytes: int | None = None,
) -> dict[StudyCell, Record]:
    """Run the cells that are missing; returns all of them.

    `adapter_bytes`, the size of the case's adapter, is written into its cells. A cell whose data leaves nothing to
    contrast is written as failed with its reason, and the study continues. Raises as `read_cells` does, `InvalidMethod`
    for what the model lacks, what the view and `report` raise, and `OSError`.
    """
    layers = check_fit(study.method_of(variants=study.variants, sites=study.sites, icl=0), view)
    found = read_cells(study, case, data, folder)
    groups = _groups(study, found)
    reporter = _Reporter(study, groups, found, data, report)
    for group in groups:
        reporter.begin(group)
        variants = [name for name in study.variants if any(cell.variant == name for cell in group.missing)]
        sites = [name for name in study.sites if any(cell.site == name for cell in group.missing)]
        method = study.method_of(variants=variants, sites=sites, icl=group.icl, layers=layers)
        results = _run_group(group, view, data, method, reporter.phase)
        for cell in group.missing:
            depends_on = _depends_on(study, case, cell, data)
            record = {"format": FORMAT, "key": _key(depends_on), "depends_on": depends_on}
            record |= results[cell.variant, cell.site] | {"adapter_bytes": adapter_bytes}
            file = cell_file(folder, case, cell)
            make_folder(file.parent)
            write_file(file, json.dumps(record, indent=1, allow_nan=False).encode())
            found[cell] = record
            reporter.cell_done(is_failed=record["reason"] is not None)
        reporter.end(group)
    return found


def _groups(study: Study, found: Mapping[StudyCell, Record]) -> list[_Group]:
    groups: dict[tuple[str, int, int], _Group] = {}
    for cell in study.cells():
        if cell not in found:
            name = (cell.task, cell.icl, cell.seed)
            groups.setdefault(name, _Group(*name)).missing.append(cell)
    return list(groups.values())


def _depends_on(study: Study, case: ModelCase, cell: StudyCell, data: StudyData) -> dict[str, Any]:
    method = study.method_of(variants=[cell.variant], sites=[cell.site], icl=cell.icl).to_json()
    for option in ("allow_no_gain", "max_loss", "max_perplexity", "search_retention", "race"):
        del method[option]
    # with layers chosen for the model, a study of the residual stream read at the input leaves out block 0 everywhere
    skips_first = study.method.layers is None and study.method.reads_at_input and "residual" in study.sites
    return {
        "format": FORMAT,
        "model": case.model,
        "adapter": case.adapter,
        "dtype": case.dtype,
        "task": cell.task,
        "data_sha256": data.tasks[cell.task].sha256,
        "retention_sha256": None if data.retention is None else data.retention.sha256,
        "method": method,
        "skips_first_block": skips_first,
        "seed": cell.seed,
    }


def _key(depends_on: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()


def _run_group(
    group: _Group, view: ModelView, data: StudyData, method: Method, report: Callable[[Progress], None]
) -> dict[tuple[Variant, Site], Record]:
    """The result of every variant and site of the method."""
    names = [(variant, site) for variant in method.variants for site in method.sites]
    items = data.tasks[group.task]
    plan = WorkPlan(report, _expected(items, data.retention, method, view))
    try:
        searched = search_seed(view, TrainingData(items), method, group.seed, plan)
    except (InvalidData, InvalidMethod) as error:
        return dict.fromkeys(names, failed_cell(str(error)))
    chosen: dict[tuple[Variant, Site], Cell] = {}
    for name in names:
        cells = [cell for cell in searched.cells if (cell.variant, cell.site) == name]
        if cells:
            chosen[name] = best_of(cells, is_paper=method.is_paper)
    plan.best = max(cell.accuracy or 0.0 for cell in chosen.values())
    tests = _tests(searched, list(chosen.values()), plan)
    kept = _retention(view, data.retention, list(chosen.values()), method, group.seed, plan)
    plan.end()
    results = {name: failed_cell(reason_of(name[0], searched)) for name in names if name not in chosen}
    cost = {
        "seconds": {phase: round(value, 3) for phase, value in plan.seconds.items()},
        "items_per_second": answers_per_second([(searched.num_items, searched.validation)], plan.seconds),
        "searched_together": len(chosen),
    }
    for (name, cell), test, retention in zip(chosen.items(), tests, kept, strict=True):
        results[name] = cell_result(searched, cell, test, retention, is_paper=method.is_paper) | cost
    return results


def _expected(items: DataSet, retention: DataSet | None, method: Method, view: ModelView) -> dict[str, float]:
    """Work by phase, in prompts; a steered answer costs one token, a small part of a prompt."""
    count = min(len(items.items), method.max_items)
    places = len(method.variants) * len(method.sites)
    num_cells = method.num_cells(view.num_layers)
    kept = 0 if retention is None else min(len(retention.items), MAX_RETENTION_ITEMS)
    return {
        "answering": method.split.train * count * (2 if method.icl else 1),
        "reading activations": 2.0 * method.split.train * count,
        "searching": method.split.validation * count * (1 + 0.02 * num_cells),
        "testing": method.split.test * count * 3 * (1 + 0.02 * places),
        "retention": float(kept),
    }


def _tests(searched: Searched, chosen: Sequence[Cell], plan: WorkPlan) -> list[HeldOutResult]:
    """`held_out.measure_steering` for each cell; the prompts are read once for all of them."""
    questions = searched.tested
    sizes = [len(question.order) if isinstance(question, ShownItem) else 1 for question in questions]
    plan.begin("testing", sum(sizes))
    return measure_steerings(searched.examiner, questions, [cell.steering for cell in chosen], plan.advance)


def _retention(
    view: ModelView, data: DataSet | None, chosen: Sequence[Cell], method: Method, seed: int, plan: WorkPlan
) -> list[dict[str, float] | None]:
    """Accuracy on the retention items, without and with each steering, in balanced order."""
    items = [item for item in (data.items if data is not None else ()) if isinstance(item, ChoiceItem)]
    if not items:
        return [None] * len(chosen)
    questions: Sequence[Question] = shuffle_options(items[:MAX_RETENTION_ITEMS], seed)
    plan.begin("retention", len(questions))
    steerings = [(), *(cell.steering for cell in chosen)]
    right = Examiner(view, method).choose(questions, steerings, plan.advance) == answers_of(questions)
    plain, *steered = (float(value) for value in np.mean(right, axis=1))
    return [{"baseline": plain, "steered": value, "change": value - plain} for value in steered]


class _Reporter:
    """Counts cells and estimates the time left, weighting groups by their number of items."""

    def __init__(
        self,
        study: Study,
        groups: Sequence[_Group],
        found: Mapping[StudyCell, Record],
        data: StudyData,
        report: StudyReport,
    ) -> None:
        self._report = report
        self._weights = {
            id(group): float(min(len(data.tasks[group.task].items), study.method.max_items)) for group in groups
        }
        self._total = sum(self._weights.values())
        self._finished = 0.0
        self._num_done = len(found)
        self._num_total = len(study.cells())
        self._num_failed = sum(record["reason"] is not None for record in found.values())
        self._started = time.monotonic()
        self._group_started = self._started
        self._weight = 0.0
        self._label = ""

    def begin(self, group: _Group) -> None:
        self._label, self._weight = group.label, self._weights[id(group)]
        self._group_started = time.monotonic()
        self._tell(None, 0.0)

    def phase(self, progress: Progress) -> None:
        spent = time.monotonic() - self._group_started
        left = progress.seconds_left
        self._tell(progress, 0.0 if left is None or spent + left <= 0 else spent / (spent + left))

    def cell_done(self, *, is_failed: bool) -> None:
        self._num_done += 1
        self._num_failed += is_failed
        self._tell(None, 1.0)

    def end(self, group: _Group) -> None:
        self._finished += self._weights[id(group)]

    def _tell(self, phase: Progress | None, share: float) -> None:
        finished = self._finished + self._weight * share
        spent = time.monotonic() - self._started
        left = spent / finished * (self._total - finished) if finished > 0 else None
        self._report(StudyProgress(self._num_done, self._num_total, self._num_failed, self._label, phase, left))
