"""Reports computed again from their outcomes: by SciPy and statsmodels alone, and by `recomputed`."""

from __future__ import annotations

import ast
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.vectors.training import recomputation
from tests.vectors.training.hash_probe import TextProbe
from vectors.data import ChoiceItem, DataSet
from vectors.errors import InvalidData
from vectors.training.method import Method
from vectors.training.model_view import Continuations, Steering
from vectors.training.outcomes import Outcomes
from vectors.training.recomputed import differences, recompute
from vectors.training.task import Task, carry_out
from vectors.training.train import TrainingData, train

OPTIONS = {"layers": [0, 2], "scales": [1, 4], "seeds": 3, "search_retention": True, "max_loss": 1.0}


def items(name: str, count: int, *, in_groups: bool) -> DataSet:
    """Questions with two to four options, of which some repeat."""
    chance = np.random.default_rng(count)
    made = []
    for number in range(count):
        texts = ["yes", "no", f"only {number}", "perhaps"][: int(chance.integers(2, 5))]
        group = f"group {number // 3}" if in_groups and number % 4 else None
        made.append(
            ChoiceItem(f"{name} {number}?", tuple(texts), int(chance.integers(len(texts))), None, number, group)
        )
    return DataSet(name, "0" * 64, tuple(made))


class DrawnProbe(TextProbe):
    """Texts have probabilities that depend on the steering."""

    def continuation_logprobs(self, queries: Any) -> Any:
        for index, query in enumerate(queries):
            assert isinstance(query, Continuations)
            strength = sum(entry.scale for entry in query.steering)
            yield (
                index,
                tuple(
                    tuple(-1.0 - (token % 7) / 7 - 0.01 * strength * (token % 3) for token in choice)
                    for choice in query.choices
                ),
            )


@pytest.fixture(scope="module", params=[False, True], ids=["alone", "in groups"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a training over three seeds, with retention items that the search takes in."""
    data = TrainingData(
        items("asked", 70, in_groups=request.param), retention_items=items("kept", 24, in_groups=request.param)
    )
    task = Task.from_json({"variant": ["pas_full", "mean_difference"], **OPTIONS})
    done = carry_out(task, DrawnProbe(), data, seed=4, report=lambda progress: None)
    made = tmp_path_factory.mktemp("report")
    for name, content in done.files:
        (made / name).write_bytes(content)
    return made


def read(folder: Path) -> tuple[dict[str, Any], Outcomes]:
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return report, Outcomes.from_jsonl((folder / "outcomes.jsonl").read_bytes())


def test_every_figure_by_scipy_and_statsmodels(folder: Path) -> None:
    recomputation.check_report(folder)


def test_the_recomputation_imports_nothing_of_ours() -> None:
    tree = ast.parse(Path(recomputation.__file__).read_text())
    names = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    names |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert not {name for name in names if name and name.partition(".")[0] in ("vectors", "server", "tests")}


def test_a_report_is_what_its_outcomes_say(folder: Path) -> None:
    report, outcomes = read(folder)
    assert list(differences(report, recompute(report, outcomes))) == []
    assert outcomes.to_jsonl() == (folder / "outcomes.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("test.gain", 0.5),
        ("test.over_text.p", 0.0),
        ("test.best_text.said_after", 2.0),
        ("retention.accuracy.loss.value", -1.0),
        ("retention.perplexity.ratio", 1.0),
        ("seeds.corrected.p", 1e-9),
        ("grid.3.validation", 1.5),
        ("baseline.validation", 1.5),
        ("recommended", "yes"),
        ("verdict.rules.0.passed", None),
    ],
)
def test_a_changed_figure_is_named(folder: Path, path: str, value: Any) -> None:
    report, outcomes = read(folder)
    place: Any = report
    *names, last = path.split(".")
    for name in names:
        place = place[int(name)] if isinstance(place, list) else place[name]
    place[last] = value
    assert path in {found.path for found in differences(report, recompute(report, outcomes))}


def test_a_changed_answer_is_seen(folder: Path) -> None:
    report, outcomes = read(folder)
    first, *others = outcomes.tested[0].test
    other = first.answer if first.score_after < 1 else (first.answer + 1) % first.num_options
    flipped = replace(first, after=(other,) * first.num_options)
    changed = replace(outcomes, tested=(replace(outcomes.tested[0], test=(flipped, *others)), *outcomes.tested[1:]))
    assert list(differences(report, recompute(report, changed)))


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"[]",
        b'{"part": "tests"}',
        b'{"part": "test", "seed": 0}',
        b'{"part": "validation", "seed": 0, "line": 1, "before": true, "cells": "012"}',
        b'{"part": "retention", "line": 1, "group": null, "choices": ["a", "b"], "answer": 2, "orders": [[0, 1]], '
        b'"before": [0], "after": [0]}',
        b'{"part": "retention", "line": 1, "group": null, "choices": ["a", "b"], "answer": 0, "orders": [[0, 0]], '
        b'"before": [0], "after": [0]}',
    ],
)
def test_lines_that_are_no_outcomes_are_named(line: bytes) -> None:
    good = b'{"part": "retention_text", "line": 1, "tokens": 3, "before": -1.0, "after": null}\n'
    with pytest.raises(InvalidData, match=r"outcomes\.jsonl, line 2: is no outcome"):
        Outcomes.from_jsonl(good + line)


def test_outcomes_that_are_missing_are_named(folder: Path) -> None:
    report, outcomes = read(folder)
    with pytest.raises(InvalidData, match="expected the outcomes of seed 5, got none"):
        recompute(report, replace(outcomes, tested=(outcomes.tested[0], outcomes.tested[2])))
    with pytest.raises(InvalidData, match="is no report of this version"):
        recompute({"test": {}}, outcomes)


def test_seeds_that_tried_different_cells_are_recomputed(tmp_path: Path) -> None:
    """With few items some variants have nothing to contrast in some splits."""
    task = Task.from_json({"variant": "all", "layers": [0], "scales": [1], "seeds": 8, "allow_no_gain": True})
    data = TrainingData(items("few", 10, in_groups=False), retention_items=items("kept", 9, in_groups=False))
    done = carry_out(task, DrawnProbe(), data, seed=0, report=lambda progress: None)
    for name, content in done.files:
        (tmp_path / name).write_bytes(content)
    report, outcomes = read(tmp_path)
    assert len({str(each["cells"]) for each in report["seeds"]["each"]}) > 1
    recomputation.check_grid(report["seeds"], tmp_path)
    assert list(differences(report, recompute(report, outcomes))) == []
    assert {name for name, _ in done.files} > {"gain-mean_difference-residual.png"}
    report["seeds"]["grid"][0]["gain"] += 0.25
    assert [found.path for found in differences(report, recompute(report, outcomes))] == ["seeds.grid.0.gain"]


def test_sizes_are_recomputed_each() -> None:
    task = Task.from_json(
        {"task": "sweep", "sizes": [20, 30], "layers": [0], "scales": [1], "variant": "mean_difference"}
    )
    done = carry_out(
        task, DrawnProbe(), TrainingData(items("asked", 60, in_groups=False)), seed=1, report=lambda progress: None
    )
    files = dict(done.files)
    report, outcomes = json.loads(files["report.json"]), Outcomes.from_jsonl(files["outcomes.jsonl"])
    assert list(differences(report, recompute(report, outcomes))) == []
    report["points"][1]["test"]["gain"] += 0.25
    assert [found.path for found in differences(report, recompute(report, outcomes))] == ["points.1.test.gain"]


def test_an_evaluation_is_recomputed() -> None:
    data = TrainingData(items("asked", 70, in_groups=False))
    trained = train(
        DrawnProbe(),
        data,
        Method.from_json({"layers": [2], "scales": [4], "variant": "mean_difference", "allow_no_gain": True}),
        seed=0,
        report=lambda progress: None,
    )
    assert trained.vector is not None
    steering = (Steering(trained.vector, 4.0),)
    task = Task.from_json({"task": "evaluate", "vector": "made"})
    done = carry_out(task, DrawnProbe(), data, steering=steering, seed=0, report=lambda progress: None)
    files = dict(done.files)
    report = json.loads(files["report.json"])
    assert list(differences(report, recompute(report, Outcomes.from_jsonl(files["outcomes.jsonl"])))) == []
    assert [name for name, _ in done.files] == ["report.json", "accuracy.png", "outcomes.jsonl"]


def test_a_search_leaves_out_what_costs_too_much() -> None:
    data = TrainingData(items("asked", 70, in_groups=False), retention_items=items("kept", 40, in_groups=False))
    options = {"layers": [0, 1, 2], "scales": [0.1, 1, 4], "variant": "mean_difference", "search_retention": True}

    def chosen(max_loss: float) -> tuple[dict[str, Any], list[dict[str, Any]], list[str]]:
        method = Method.from_json(options | {"max_loss": max_loss})
        found = train(DrawnProbe(), data, method, seed=0, report=lambda progress: None).report
        cell = next(
            cell
            for cell in found["grid"]
            if (cell["layer"], cell["scale"]) == (found["chosen"]["layers"][0], found["chosen"]["grid_scale"])
        )
        return cell, found["grid"], found["notes"]

    _, grid, _ = chosen(1.0)
    losses = sorted({cell["retention_loss"] for cell in grid})
    assert len(losses) > 1
    cell, _, notes = chosen(max(0.0, losses[0]))
    allowed = [found for found in grid if found["retention_loss"] <= max(0.0, losses[0])]
    assert cell["validation"] == max(found["validation"] for found in allowed)
    assert cell["retention_loss"] <= max(0.0, losses[0])
    assert not any("every cell costs" in note for note in notes)
