"""The baselines of a training: the same items, cells and directions as by plain loops, and figures from outcomes."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from tests.vectors.training.hash_probe import TextProbe
from tests.vectors.training.recomputation import check_accuracy, check_mean, scores
from vectors.data import ChoiceItem, DataSet, PairItem
from vectors.errors import InvalidMethod
from vectors.training.baselines import SYSTEM_PROMPTS
from vectors.training.held_out import held_out_result
from vectors.training.options import BASELINES
from vectors.training.outcomes import Outcomes
from vectors.training.recomputed import differences, recompute
from vectors.training.task import Done, Task, carry_out
from vectors.training.train import TrainingData
from vectors.training.verdict import verdict_of

OPTIONS = {"layers": [0, 2], "scales": [1, 4], "variant": ["ipas_all", "mean_difference"], "allow_no_gain": True}
STEERED = ("random", "logistic", "lda", "pca", "caa")


class CountingProbe(TextProbe):
    """Counts how often each prompt's activations are read."""

    def __init__(self) -> None:
        super().__init__()
        self.read: dict[tuple[int, ...], int] = {}

    def activations(self, prompts: Any, sites: Any) -> Any:
        prompts = list(prompts)
        for prompt in prompts:
            self.read[prompt] = self.read.get(prompt, 0) + 1
        return super().activations(prompts, sites)


def choices(count: int) -> DataSet:
    chance = np.random.default_rng(count)
    made = tuple(
        ChoiceItem(f"q {number}?", ("yes", "no", f"only {number}"), int(chance.integers(3)), None, number)
        for number in range(count)
    )
    return DataSet("asked", "0" * 64, made)


def trained(data: DataSet, probe: TextProbe | None = None, **options: object) -> Done:
    task = Task.from_json({**OPTIONS, **options})
    return carry_out(task, probe or TextProbe(), TrainingData(data), seed=4, report=lambda progress: None)


@pytest.fixture(scope="module")
def done() -> Done:
    return trained(choices(80), baselines="all", system_prompt="Be right.")


def test_every_baseline_is_in_the_table_with_the_figures_of_its_outcomes(done: Done) -> None:
    files = dict(done.files)
    rows = [json.loads(line) for line in files["outcomes.jsonl"].splitlines()]
    tests = [row for row in rows if row["part"] == "test"]
    vector = [row for row in tests if "baseline" not in row]
    assert [found["name"] for found in done.report["baselines"]] == list(BASELINES)
    for found in done.report["baselines"]:
        own = [row for row in tests if row.get("baseline") == found["name"]]
        assert [row["line"] for row in own] == [row["line"] for row in vector]
        assert [row["before"] for row in own] == [row["before"] for row in vector]
        before, after = scores(own, "before"), scores(own, "after")
        check_accuracy(found["accuracy"], after, own)
        check_mean(found, after - before, own)
        check_mean(found["vector_over"], scores(vector, "after") - after, own)
        asked = [row for row in rows if row["part"] == "validation" and row.get("baseline") == found["name"]]
        shares = np.asarray([[int(right) for right in row["cells"]] for row in asked]).mean(axis=0)
        chosen = found["chosen"]
        assert chosen["validation"] == pytest.approx(shares.max()) == pytest.approx(shares[chosen["candidate"]])
        assert chosen["selected_from"] == len(shares)
    assert files["baselines.png"].startswith(b"\x89PNG")


def test_directions_have_the_grid_of_the_vector_and_its_length(done: Done) -> None:
    found = {one["name"]: one for one in done.report["baselines"]}
    assert {name: found[name]["chosen"]["selected_from"] for name in BASELINES} == {
        **dict.fromkeys(STEERED[:-1], 2 * 2 * 2),
        "caa": 2 * 2,
        "prompt": 1 + len(SYSTEM_PROMPTS),
        "icl": 1,
    }
    assert all(found[name]["norm"] > 0 for name in STEERED)


def test_the_vector_is_the_one_without_baselines(done: Done) -> None:
    alone = trained(choices(80))
    assert "baselines" not in alone.report
    for name in ("chosen", "test", "grid", "recommended"):
        assert alone.report[name] == done.report[name]
    assert alone.vector is not None
    assert done.vector is not None
    for layer, direction in alone.vector.directions.items():
        assert torch.equal(direction, done.vector.directions[layer])


def test_activations_are_read_once() -> None:
    probe = CountingProbe()
    trained(choices(40), probe, baselines="all")
    assert probe.num_searched == 1
    assert set(probe.read.values()) == {1}


def test_a_report_with_baselines_is_what_its_outcomes_say(done: Done) -> None:
    outcomes = Outcomes.from_jsonl(dict(done.files)["outcomes.jsonl"])
    assert list(differences(done.report, recompute(done.report, outcomes))) == []
    changed = json.loads(json.dumps(done.report))
    changed["baselines"][3]["vector_over"]["p"] = 2.0
    changed["baselines"][5]["chosen"]["validation"] = 2.0
    paths = [found.path for found in differences(changed, recompute(changed, outcomes))]
    assert paths == ["baselines.3.vector_over.p", "baselines.5.chosen.validation"]


def test_pairs_have_no_letters_and_no_examples() -> None:
    pairs = tuple(PairItem(f"p {number}", "good", "bad", line=number) for number in range(40))
    found = trained(DataSet("pairs", "0" * 64, pairs), variant="mean_difference", baselines=["random", "caa", "icl"])
    reasons = {one["name"]: one.get("reason") for one in found.report["baselines"]}
    assert reasons["random"] is None
    assert "no letters" in reasons["caa"]
    assert "no solved examples" in reasons["icl"]


def test_a_system_prompt_without_the_baseline_is_refused() -> None:
    with pytest.raises(InvalidMethod, match="add baselines: prompt") as refused:
        trained(choices(40), system_prompt="Be right.", baselines=["random"])
    assert refused.value.param == "system_prompt"


@pytest.mark.parametrize(
    ("gain", "over", "says"),
    [
        (0.2, {"gain": 0.01, "ci95": [-0.05, 0.07], "p": 0.4}, "a system prompt does as well: 70.0 %"),
        (0.2, {"gain": -0.2, "ci95": [-0.3, -0.1], "p": 1.0}, "a system prompt does better: 70.0 %"),
        (0.2, {"gain": 0.2, "ci95": [0.1, 0.3], "p": 0.001}, None),
        (-0.1, {"gain": 0.01, "ci95": [-0.05, 0.07], "p": 0.4}, None),
    ],
)
def test_the_verdict_says_if_prompting_does_as_well(done: Done, gain: float, over: Any, says: str | None) -> None:
    outcomes = Outcomes.from_jsonl(dict(done.files)["outcomes.jsonl"])
    test = held_out_result(outcomes.tested[0].test)
    method = Task.from_json(OPTIONS).method
    nothing = {"accuracy": None, "perplexity": None}
    row = {"name": "prompt", "gain": gain, "accuracy": {"value": 0.7}, "vector_over": {**over, "method": "a test"}}
    plain = verdict_of(test, method, nothing)
    found = verdict_of(test, method, nothing, baselines=[row, {**row, "name": "random"}])
    assert found.rules == plain.rules
    assert found.reason.startswith(plain.reason)
    added = found.reason.removeprefix(plain.reason)
    assert added == "" if says is None else added.startswith(f"; {says}") and added.count(";") == 1
