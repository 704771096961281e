"""Comparisons between conditions, gains by layer and scale, and choices, from the cells' files by NumPy and SciPy."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.torch import save
from scipy import stats
from statsmodels.stats.multitest import multipletests

from tests.vectors.training.hash_probe import HashProbe
from tests.vectors.training.recomputation import check_p, interval
from vectors.data import ChoiceItem, DataSet
from vectors.study.choices import chosen_rows, stability_rows, time_rows
from vectors.study.comparisons import comparison_means, comparison_rows
from vectors.study.data import StudyData
from vectors.study.definition import ModelCase, Study
from vectors.study.figures import Records
from vectors.study.grids import grid_rows
from vectors.study.run import cell_file, run_study
from vectors.study.tables import study_files

STUDY = """
name: conditions
model: a/model
adapter: [null, tuned]
tasks: [sycophancy, truthfulqa]
variants: [pas_full, mean_difference]
sites: mlp
seeds: 3
icl: [0, 2]
method: {layers: [0, 2], scales: [1, 4]}
"""
ADAPTER_BYTES = 12_345
CATEGORIES = {"alignment": ["sycophancy", "truthfulqa"], "overall": ["sycophancy", "truthfulqa"]}
CONDITIONS: dict[str, dict[str, tuple[str | None, int | None]]] = {
    "fine-tuning": {"base": (None, None), "SFT": ("tuned", None)},
    "exemplars": {"0-shot": (None, 0), "2-shot": (None, 2)},
}

Cells = dict[tuple[str | None, str, str, str, int, int], dict[str, Any]]
Floats = NDArray[np.float64]


class TunedProbe(HashProbe):
    """The model with an adapter: other activations and answers for the same texts."""

    def encode(self, text: str) -> tuple[int, ...]:
        return (2, *super().encode(text)[1:])


def items(name: str, count: int = 60) -> DataSet:
    """Items of which some are in groups of two."""
    chance = random.Random(name)
    made = tuple(
        ChoiceItem(
            f"{name} {number}?",
            ("red", "green", "blue"),
            chance.randrange(3),
            line=number,
            group=f"passage {number // 2}" if number % 3 else None,
        )
        for number in range(count)
    )
    return DataSet(name, hashlib.sha256(name.encode()).hexdigest(), made)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Records, Cells]:
    """A study of four conditions, its cells as run, and the same read from their files."""
    study, folder = Study.from_yaml(STUDY), tmp_path_factory.mktemp("conditions")
    data = StudyData({task.name: items(task.name) for task in study.tasks})
    records: dict[ModelCase, Any] = {}
    for case in study.cases():
        view = HashProbe() if case.adapter is None else TunedProbe()
        size = None if case.adapter is None else ADAPTER_BYTES
        records[case] = run_study(study, case, view, data, folder, lambda step: None, adapter_bytes=size)
    cells: Cells = {
        (case.adapter, cell.task, cell.variant, cell.site, cell.icl, cell.seed): json.loads(
            cell_file(folder, case, cell).read_bytes()
        )
        for case in study.cases()
        for cell in study.cells()
    }
    return study, records, cells


def answers(cells: Cells, row: dict[str, Any], name: str, task: str, seed: int) -> tuple[Floats, Floats, Any]:
    """The shares of rotations answered right under a condition, whether right as shown, and the cell."""
    plain, _, steered = name.partition(" + ")
    adapter, icl = CONDITIONS[row["kind"]][plain]
    place = (row["variant"] or "pas_full", row["site"] or "mlp")
    cell = cells[
        adapter if row["kind"] == "fine-tuning" else row["adapter"],
        task,
        *place,
        row["icl"] if icl is None else icl,
        seed,
    ]
    when = "after" if steered else "before"
    asked = cell["items"]
    return np.divide(asked[f"right_{when}"], asked["prompts"]), np.asarray(asked[f"presented_{when}"], float), cell


def check_figures(row: dict[str, Any], cells: Cells, tasks: Sequence[str]) -> None:
    names = row["comparison"].split(" → ")
    before, gains, errors, shown, shown_gains, num_test, num_train = [], [], [], [], [], 0, 0
    first: tuple[list[float], list[dict[str, Any]]] = ([], [])
    for seed in range(3):
        by_task = []
        for task in tasks:
            (one, one_shown, cell), (other, other_shown, other_cell) = (
                answers(cells, row, name, task, seed) for name in names
            )
            groups = [{"group": group} for group in cell["items"]["group"]]
            error = interval(other - one, groups, -1.0, 1.0)[2]
            by_task.append(
                (one.mean(), (other - one).mean(), error, one_shown.mean(), (other_shown - one_shown).mean())
            )
            num_test += len(one)
            num_train += min(cell["split"]["train"], other_cell["split"]["train"])
            if seed == 0:
                first[0].extend(other - one)
                first[1].extend({"group": group["group"] and f"{task} {group['group']}"} for group in groups)
        columns = np.asarray(by_task).T
        before.append(columns[0].mean())
        gains.append(columns[1].mean())
        errors.append(math.sqrt((columns[2] ** 2).sum()) / len(tasks))
        shown.append(columns[3].mean())
        shown_gains.append(columns[4].mean())
    mean = np.mean(gains)
    error = math.sqrt((1 / 3 + num_test / num_train) * max(np.var(gains, ddof=1), np.mean(np.square(errors))))
    expected = [np.mean(before), np.mean(before) + mean, mean, *stats.t.interval(0.95, 2, mean, error)]
    assert np.allclose([row[name] for name in ("before", "after", "effect", "low", "high")], expected, atol=1e-12)
    assert np.allclose([row["t"], row["p"]], [mean / error, stats.t.sf(mean / error, 2)])
    effect = np.mean(shown_gains)
    expected = [np.mean(shown), np.mean(shown) + effect, effect]
    assert np.allclose([row[f"presented_{name}"] for name in ("before", "after", "effect")], expected, atol=1e-12)
    if np.ptp(shown_gains) > 1e-9:
        student = stats.ttest_1samp(shown_gains, 0.0, alternative="greater")
        assert np.allclose([row["presented_t"], row["presented_p"]], [student.statistic, student.pvalue])
    else:
        assert row["presented_p"] is None
    differences = np.asarray(first[0])
    check_p(row["exact_p"], np.rint(6 * differences), first[1])  # whole numbers, whose sums do not round
    assert row["items"] == len(differences)
    assert row["wrong_to_right"] == (differences > 1e-9).sum()
    assert row["right_to_wrong"] == (differences < -1e-9).sum()
    assert (row["seeds"], row["tasks"], row["reason"]) == (3, len(tasks), None)


def test_comparisons_against_scipy(found: tuple[Study, Records, Cells]) -> None:
    study, records, cells = found
    rows = comparison_rows(study, records)
    steered = 2  # variants
    assert len(rows) == 4 * 2 * (4 * steered + 1), "adapter at 0 and 2 exemplars, exemplars without and with adapter"
    assert {row["comparison"] for row in rows if row["kind"] == "fine-tuning"} == {
        "base → base + vector",
        "base → SFT",
        "SFT → SFT + vector",
        "base + vector → SFT",
        "base + vector → SFT + vector",
    }
    for row in rows:
        check_figures(row, cells, [row["task"]])
        assert (row["variant"] is None) == ("vector" not in row["comparison"])
    for number in range(1, 5):
        family = [row for row in rows if row["treatment"] == number]
        for name in ("p", "exact_p", "presented_p"):
            known = [row for row in family if row[name] is not None]
            adjusted = multipletests([row[name] for row in known], method="holm")[1]
            assert np.allclose([row[f"{name}_holm"] for row in known], adjusted)
    for row in comparison_means(study, records):
        check_figures(row, cells, CATEGORIES[row["category"]])


def test_other_items_are_not_compared(found: tuple[Study, Records, Cells]) -> None:
    study, records, _ = found
    changed: dict[ModelCase, Any] = {case: dict(own) for case, own in records.items()}
    for cell, record in changed[ModelCase("a/model", "tuned")].items():
        if (cell.task, cell.icl, cell.seed) == ("sycophancy", 0, 1):
            changed[ModelCase("a/model", "tuned")][cell] = record | {"items": record["items"] | {"sha256": "0" * 64}}
    rows = [row for row in comparison_rows(study, changed) if row["treatment"] == 1 and row["task"] == "sycophancy"]
    for row in rows:
        if "SFT" not in row["comparison"]:
            assert row["effect"] is not None
        elif row["comparison"] == "SFT → SFT + vector":
            assert row["reason"] is None
        else:
            assert row["reason"] == "seed 1: the two were tested on different items, so they cannot be compared"
            assert row["effect"] is row["exact_p"] is row["exact_p_holm"] is None
    text = study_files(replace(study, variants=("pas_full",), icl=(0,)), changed)["study.md"].decode()
    assert "Not compared:" in text
    assert "tested on different items" in text


def test_a_condition_that_is_not_in_the_study_is_asked_for(found: tuple[Study, Records, Cells]) -> None:
    study, records, _ = found
    tuned = ModelCase("a/model", "tuned")
    small = replace(study, adapters=("tuned",), icl=(2,), variants=("pas_full",))
    files = study_files(small, {tuned: records[tuned]})
    assert "add `null` to `adapter`" in files["study.md"].decode()
    assert "add `0` to `icl`" in files["study.md"].decode()
    assert not [name for name in files if name.startswith("comparison")]
    alone = replace(small, adapters=(None,), icl=(0,))
    files = study_files(alone, {ModelCase("a/model"): records[ModelCase("a/model")]})
    assert "Comparisons between conditions" not in files["study.md"].decode()


def test_gains_by_layer_and_scale(found: tuple[Study, Records, Cells]) -> None:
    study, records, cells = found
    rows = grid_rows(study, records)
    assert len(rows) == 2 * 2 * 2 * len(CATEGORIES) * 4
    for row in rows:
        by_seed, splits = [], []
        for seed in range(3):
            own = [
                cells[row["adapter"], task, row["variant"], row["site"], row["icl"], seed]
                for task in CATEGORIES[row["category"]]
            ]
            splits += [cell["split"] for cell in own]
            place = [
                list(zip(cell["grid"]["layer"], cell["grid"]["scale"], strict=True)).index((row["layer"], row["scale"]))
                for cell in own
            ]
            by_seed.append(
                np.mean(
                    [
                        cell["grid"]["validation"][index] - cell["validation_baseline"]
                        for cell, index in zip(own, place, strict=True)
                    ]
                )
            )
        ratio = sum(split["validation"] for split in splits) / sum(split["train"] for split in splits)
        assert math.isclose(row["gain"], np.mean(by_seed), abs_tol=1e-12)
        assert math.isclose(row["standard_error"], math.sqrt((1 / 3 + ratio) * np.var(by_seed, ddof=1)), abs_tol=1e-12)
        assert (row["seeds"], row["tasks"]) == (3, 2)
    for cell in cells.values():
        grid, chosen = cell["grid"], cell["chosen"]
        assert max(grid["validation"]) == chosen["validation"]
        assert (chosen["layer"], chosen["scale"]) in zip(grid["layer"], grid["scale"], strict=True)
    alone = grid_rows(replace(study, seeds=(1,)), records)
    assert {row["standard_error"] for row in alone} == {None}


def test_choices_bytes_and_seconds(found: tuple[Study, Records, Cells]) -> None:
    import torch

    study, records, cells = found
    rows = chosen_rows(study, records)
    assert len(rows) == len(cells)
    smallest = len(save({"residual.0": torch.zeros(4)}))
    for row in rows:
        cell = cells[row["adapter"], row["task"], row["variant"], row["site"], row["icl"], row["seed"]]
        assert [row[name] for name in ("layer", "scale", "dose")] == [
            cell["chosen"][name] for name in ("layer", "scale", "dose")
        ]
        assert row["seconds"] == sum(cell["seconds"].values())
        assert row["seconds_searching"] == cell["seconds"]["searching"]
        assert smallest <= row["vector_bytes"] < 2000
        assert row["adapter_bytes"] == (None if row["adapter"] is None else ADAPTER_BYTES)
        split = cell["split"]
        asked = split["train"] + split["validation"] * (1 + 2 * 2 * 2)
        pace = asked / (cell["seconds"]["answering"] + cell["seconds"]["searching"])
        assert math.isclose(row["items_per_second"], pace, rel_tol=0.2), "seconds are rounded to milliseconds"
        assert row["searched_together"] == 2
    names = {task.name: task.attribute for task in study.tasks}
    for row in stability_rows(study, records):
        own = [
            cells[row["adapter"], task, row["variant"], row["site"], row["icl"], seed]["chosen"]
            for task in names
            if names[task] == row["attribute"]
            for seed in range(3)
        ]
        assert dict(row["choices"]) == Counter((chosen["layer"], chosen["scale"]) for chosen in own)
        doses = [chosen["dose"] for chosen in own]
        assert [row["dose"], row["dose_low"], row["dose_high"]] == [np.median(doses), min(doses), max(doses)]
    times = time_rows(study, records)
    assert len(times) == 2 * 2 * 2
    for row in times:
        own = [
            cells[row["adapter"], task, "pas_full", "mlp", row["icl"], seed]["seconds"]
            for task in names
            if names[task] == row["attribute"]
            for seed in range(3)
        ]
        assert math.isclose(row["seconds"], np.mean([sum(seconds.values()) for seconds in own]))
        assert math.isclose(row["seconds_answering"], np.mean([seconds["answering"] for seconds in own]))


def test_the_report_and_its_files(found: tuple[Study, Records, Cells]) -> None:
    study, records, _ = found
    files = study_files(replace(study, variants=("pas_full",)), records)
    text = files["study.md"].decode()
    for heading in ("Comparisons between conditions", "Gain by layer and scale", "Chosen cells, bytes and seconds"):
        assert f"\n## {heading}\n" in text
    assert "### 1. fine-tuning: a/model (base) and a/model + tuned (SFT)\n" in text
    assert "### 4. exemplars: a/model + tuned with 0 and with 2\n" in text
    widths = [line.replace("\\|", "").count("|") for line in text.splitlines() if line.startswith("|")]
    tables = [line for line in text.splitlines() if line.startswith("| ---")]
    assert len(tables) == 2 + 4 * 2 + 1 + 2
    assert set(widths) == {line.count("|") for line in tables}
    assert {"comparisons.csv", "comparison_means.csv", "grid.csv", "chosen.csv"} <= set(files)
    assert {f"comparisons{number}-balanced-pas_full-mlp.png" for number in range(1, 5)} <= set(files)
    assert {"grid-pas_full-mlp-icl0-model1.png", "grid-pas_full-mlp-icl2-model2.png"} <= set(files)
    assert f" {ADAPTER_BYTES} |" in text
