"""The race finds what the whole grid finds, and says of cells that it left out only what is certain."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from tests.vectors.training.hash_probe import TextProbe
from tests.vectors.training.hash_probe import drawn as drawn_from
from vectors.data import ChoiceItem, DataSet, PairItem
from vectors.errors import InvalidMethod
from vectors.training.method import Method
from vectors.training.model_view import Steering
from vectors.training.outcomes import Outcomes
from vectors.training.race import NOT_ASKED, race
from vectors.training.recomputed import differences, recompute
from vectors.training.task import Done, Task, carry_out
from vectors.training.train import TrainingData, train
from vectors.vector import SteeringVector


class Answering:
    """An examiner whose answers are known: a steering's scale is its row of `right` `[steerings, questions]`."""

    def __init__(self, right: np.ndarray[Any, Any]) -> None:
        self.right = right
        self.num_asked = 0

    def choose(self, questions: Sequence[PairItem], steerings: Sequence[Any], advance: Any) -> np.ndarray[Any, Any]:
        columns = [question.line for question in questions]
        rows = [int(steering[0].scale) for steering in steerings]
        self.num_asked += len(rows) * len(columns)
        for number in range(len(questions)):
            advance(number + 1)
        return 1 - self.right[np.ix_(rows, columns)].astype(int)  # the right text of a pair is at 0


def drawn(seed: int) -> tuple[np.ndarray[Any, Any], list[float], list[list[int]]]:
    """Answers of some cells, more or less alike, with ties in right answers and in what decides between them."""
    chance = np.random.default_rng(seed)
    num_cells, num_items = int(chance.integers(1, 40)), int(chance.integers(1, 70))
    accuracy = chance.choice([0.2, 0.5, 0.8, 0.97], num_cells + 1)[:, None]
    right = chance.random((num_cells + 1, num_items)) < accuracy
    ties = chance.integers(0, 3, num_cells + 1).astype(float).tolist()
    places = (1 + chance.permutation(num_cells)).tolist()
    half = int(chance.integers(0, num_cells + 1))
    return right, ties, [sorted(places[:half]), sorted(places[half:])]


@pytest.mark.parametrize("seed", range(60))
def test_each_field_is_won_by_the_cell_that_the_whole_grid_chooses(seed: int) -> None:
    truth, ties, fields = drawn(seed)
    vector = SteeringVector({0: torch.ones(2)})
    steerings = [(Steering(vector, float(number)),) for number in range(len(truth))]
    questions = [PairItem("right", "wrong", line=number) for number in range(truth.shape[1])]
    examiner = Answering(truth)
    shown: list[int] = []
    found = race(steerings, fields, ties, questions, examiner, shown.append)  # type: ignore[arg-type]
    assert (found[0] != NOT_ASKED).all(), "in no field, so asked everything"
    assert ((found == NOT_ASKED) | (found == truth)).all()
    assert examiner.num_asked == (found != NOT_ASKED).sum(), "nothing is asked twice"
    assert shown == sorted(shown)
    assert shown[-1] == truth.shape[1]
    for field in filter(None, fields):
        best = min(field, key=lambda number: (-truth[number].sum(), ties[number], number))
        known = [number for number in field if (found[number] != NOT_ASKED).all()]
        assert min(known, key=lambda number: (-found[number].sum(), ties[number], number)) == best


def test_cells_that_are_far_behind_are_asked_little() -> None:
    chance = np.random.default_rng(0)
    truth = chance.random((101, 200)) < 0.3
    truth[7] = True
    vector = SteeringVector({0: torch.ones(2)})
    steerings = [(Steering(vector, float(number)),) for number in range(len(truth))]
    questions = [PairItem("right", "wrong", line=number) for number in range(200)]
    examiner = Answering(truth)
    race(steerings, [range(1, 101)], [0.0] * 101, questions, examiner, lambda done: None)  # type: ignore[arg-type]
    assert examiner.num_asked < 0.1 * truth.size


class KnowingProbe(TextProbe):
    """At layer 1 with a scale of 1, whatever the direction, most answers are right."""

    def next_token_logits(self, prompts: Any, token_ids: Any, steerings: Any) -> Any:
        knowing = [any(one.scale == 1 and 1 in one.vector.directions for one in steering) for steering in steerings]
        for index, logits in super().next_token_logits(prompts, token_ids, steerings):
            prompt = prompts[index]
            letter = "".join(map(chr, prompt)).partition(": true")[0][-1]
            if drawn_from(prompt, "knows", 1, 1) > -1.5:
                of_letter = [token in (ord(letter), 200 + ord(letter)) for token in token_ids[index]]
                logits += 100 * torch.tensor(knowing)[:, None] * torch.tensor(of_letter)
            yield index, logits


def items(count: int) -> DataSet:
    """Questions with two or three options."""
    chance = np.random.default_rng(count)
    made = []
    for number in range(count):
        texts = [f"{word} {number}" for word in ("one", "two", "three")[: int(chance.integers(2, 4))]]
        answer = int(chance.integers(len(texts)))
        texts[answer] = f"true {number}"
        made.append(ChoiceItem(f"Question {number}?", tuple(texts), answer, None, number))
    return DataSet("asked", "0" * 64, tuple(made))


OPTIONS: dict[str, Any] = {
    "variant": ["pas_full", "ipas_all", "ipas_wrong_only"],
    "site": ["residual", "mlp"],
    "scales": [0.25, 1, 4, 16],
    "allow_no_gain": True,
}


def trained(seed: int, **options: Any) -> Done:
    return carry_out(
        Task.from_json(OPTIONS | options),
        TextProbe(),
        TrainingData(items(140)),
        seed=seed,
        report=lambda progress: None,
    )


@pytest.mark.parametrize("letters", ["balanced", "paper"])
@pytest.mark.parametrize("seed", range(2))
def test_a_training_chooses_and_reports_the_same(seed: int, letters: str) -> None:
    options = {"letters": letters, "baselines": ["random", "prompt"], "layers": [1, 2]}
    whole, raced = (trained(seed, race=race, **options).report for race in (False, True))
    for name in ("chosen", "test", "baseline", "baselines", "recommended", "reason", "retention"):
        assert raced[name] == whole[name], name
    assert whole["race"] is None
    left_out = [cell for cell in raced["grid"] if cell["validation"] is None]
    assert len(left_out) == raced["race"]["left_out"] > 0
    assert raced["race"]["answers"] < raced["race"]["of"] == len(raced["grid"]) * raced["data"]["split"]["validation"]
    for cell, full in zip(raced["grid"], whole["grid"], strict=True):
        low, high = cell.get("validation_bounds", [full["validation"]] * 2)
        assert low <= full["validation"] <= high
        assert cell["validation"] in (None, full["validation"])
        assert {**cell, "validation": 0} | full == {**cell, **full}
        assert high <= raced["chosen"]["validation"]


def test_the_files_say_what_is_known_and_the_report_follows_from_them() -> None:
    done = trained(1, race=True, seeds=2)
    files = dict(done.files)
    assert {"grid-pas_full-mlp.png", "accuracy.png"} < files.keys()
    assert not any(name.startswith("gain-") for name in files), "a mean over seeds needs every cell"
    report, outcomes = json.loads(files["report.json"]), Outcomes.from_jsonl(files["outcomes.jsonl"])
    assert list(differences(report, recompute(report, outcomes))) == []
    assert "grid" not in report["seeds"]
    assert any("no mean gains over seeds" in note for note in report["notes"])
    rows = [json.loads(line) for line in files["outcomes.jsonl"].splitlines()]
    asked = [row["cells"] for row in rows if row["part"] == "validation" and row["seed"] == 1]
    for place, cell in enumerate(report["grid"]):
        column = "".join(row[place] for row in asked)
        share, least = column.count("-") / len(column), column.count("1") / len(column)
        assert cell["validation"] == (None if share else least)
        assert cell.get("validation_bounds", [least, least]) == pytest.approx([least, least + share])
    report["grid"][report["grid"].index(next(c for c in report["grid"] if c["validation"] is None))]["validation"] = 0.5
    assert len(list(differences(report, recompute(report, outcomes)))) == 1
    report["race"]["left_out"] += 1
    assert "race.left_out" in {found.path for found in differences(report, recompute(report, outcomes))}


def test_what_needs_the_whole_grid_is_refused() -> None:
    method = Method.from_json({"race": True, "search_retention": True})
    with pytest.raises(InvalidMethod, match="race: search_retention needs every cell of the grid"):
        train(TextProbe(), TrainingData(items(40), retention_items=items(9)), method, seed=0, report=lambda step: None)
