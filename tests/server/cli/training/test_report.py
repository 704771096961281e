"""`tiller report`: it shows the figures of a folder again, and says where the report has others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from server.cli import main
from tests.vectors.training.hash_probe import TextProbe
from vectors.data import ChoiceItem, DataSet
from vectors.training.task import Task, carry_out
from vectors.training.train import TrainingData


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The files of a training."""
    items = tuple(ChoiceItem(f"{number}?", ("yes", "no"), number % 2, None, number) for number in range(40))
    task = Task.from_json({"layers": [0], "scales": [1, 4], "variant": "mean_difference"})
    done = carry_out(
        task, TextProbe(), TrainingData(DataSet("made", "0" * 64, items)), seed=0, report=lambda progress: None
    )
    for name, content in done.files:
        (tmp_path / name).write_bytes(content)
    return tmp_path


def change(folder: Path, gain: float) -> None:
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    report["test"]["gain"] = gain
    (folder / "report.json").write_text(json.dumps(report))


def test_the_figures_are_shown_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "test.over_text.p" in shown
    assert "baseline.validation" in shown
    assert shown.endswith("the report has the same figures\n")


def test_what_differs_is_shown_beside_what_it_should_be(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = json.loads((folder / "report.json").read_text())
    change(folder, 0.875)
    assert main(["report", str(folder)]) == 1
    *_, heading, row = capsys.readouterr().out.splitlines()
    assert heading.split() == ["figure", "report", "recomputed"]
    assert row.split() == ["test.gain", "0.875", f"{report['test']['gain']:.6g}"]
    assert main(["report", str(folder), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [one["path"] for one in found["differences"]] == ["test.gain"]
    assert found["figures"]["test"]["gain"] == report["test"]["gain"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("report.json", None, "report.json cannot be read"),
        ("outcomes.jsonl", None, "outcomes.jsonl cannot be read"),
        ("report.json", "{", "is not a report: expected JSON"),
        ("report.json", "{}", "is no report of this version"),
        ("outcomes.jsonl", "{}", "outcomes.jsonl, line 1: is no outcome of an item"),
    ],
)
def test_what_cannot_be_read_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str, content: str | None, says: str
) -> None:
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    assert main(["report", str(folder)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("tiller: ")
    assert error.count("\n") == 1
    assert says in error
