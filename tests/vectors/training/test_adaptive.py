"""Adaptive vectors: candidates by the formulas, a comparison that finds a difference where there is one, and figures
that follow from the outcomes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.vectors.training.hash_probe import TextProbe, drawn
from tests.vectors.training.recomputation import check_accuracy, check_mean, scores
from vectors.data import ChoiceItem, DataSet, PairItem
from vectors.errors import InvalidMethod
from vectors.training.adaptive_vectors import Inputs, NotMade, candidates_of
from vectors.training.model_view import Steering
from vectors.training.options import ADAPTIVES, Adaptive
from vectors.training.recomputed import differences, recompute_folder
from vectors.training.search import Cell
from vectors.training.statistics import Floats
from vectors.training.task import Done, Task, carry_out
from vectors.training.train import TrainingData
from vectors.vector import SteeringVector
from vectors.vocabulary import Site

HIDDEN = 6


def slow(vector: SteeringVector, scale: float, layer: int, h: Floats) -> Floats:
    """The formulas, for one activation."""
    v = vector.directions[layer].double().numpy()
    if vector.operation == "add":
        return h + scale * v
    if vector.operation == "cap":
        read = float(h @ v) / float(v @ v)
        low = -math.inf if vector.min is None else vector.min
        high = math.inf if vector.max is None else vector.max
        return h + scale * (min(max(read, low), high) - read) * v
    assert (vector.operation, vector.activation) == ("amplify", "sigmoid")
    margin = float(h @ vector.reads[layer].double().numpy()) + float(vector.biases[layer])
    return h + scale / (1 + math.exp(-margin)) * v


class Doubter(TextProbe):
    """Answers by one number of the activation at layer 1: right from 1 on and up to 3, wrong beside that.

    Items that say `sure` begin at 2, which is right, and further steps are too much; those that say `far` begin at -5,
    where no step is enough; others begin around 0.
    """

    num_layers = 2
    hidden_size = HIDDEN

    def state(self, prompt: tuple[int, ...]) -> Floats:
        text = "".join(map(chr, prompt[1:]))
        state = 0.05 * drawn(prompt, "state", HIDDEN).double().numpy()
        state[1] += 1.0  # so that activations are never 0
        state[0] += 2.0 if "sure" in text else -5.0 if "far" in text else 0.0
        state[2] += 1.0 if "open" in text else -1.0
        return np.asarray(state)

    def activations(
        self, prompts: Iterable[tuple[int, ...]], sites: Sequence[Site]
    ) -> Iterator[tuple[int, Mapping[Site, Tensor]]]:
        for index, prompt in enumerate(prompts):
            found = self.state(prompt)
            if "right" in "".join(map(chr, prompt[1:])).rpartition("?")[2]:
                found = found + np.eye(HIDDEN)[0]  # a statement with the right option
            yield index, {site: torch.from_numpy(np.stack([found, found])).float() for site in sites}

    def next_token_logits(
        self,
        prompts: Sequence[tuple[int, ...]],
        token_ids: Sequence[tuple[int, ...]],
        steerings: Sequence[tuple[Steering, ...]],
    ) -> Iterator[tuple[int, Tensor]]:
        for index, (prompt, tokens) in enumerate(zip(prompts, token_ids, strict=True)):
            text = "".join(map(chr, prompt[1:]))
            right = text[text.index(": right") - 1]  # the letter of the option
            rows = []
            for steering in steerings:
                h = self.state(prompt)
                for entry in steering:
                    h = slow(entry.vector, entry.scale, 1, h)
                knows = 1.0 <= h[0] <= 3.0
                letters = [chr(token - 200) if token > 200 else chr(token) for token in tokens]
                rows.append(torch.tensor([float((letter == right) == knows) for letter in letters]))
            yield index, torch.stack(rows)


def asked(count: int, share_sure: float = 0.3) -> DataSet:
    chance = np.random.default_rng(count)
    items = []
    for number in range(count):
        mood = "sure" if chance.random() < share_sure else "open"
        items.append(ChoiceItem(f"{mood} {number}?", (f"right {number}", f"other {number}"), 0, None, number + 1))
    return DataSet("asked", "0" * 64, tuple(items))


def trained(form: Adaptive, *, retention: DataSet | None = None, **options: object) -> Done:
    given = {"layers": [1], "scales": [1.75], "variant": "mean_difference", "adaptive": form, **options}
    data = TrainingData(asked(300), retention_items=retention)
    return carry_out(Task.from_json(given), Doubter(), data, seed=3, report=lambda progress: None)


@pytest.fixture(scope="module", params=ADAPTIVES)
def done(request: pytest.FixtureRequest) -> Done:
    return trained(request.param)


def rows_of(done: Done, part: str, condition: str | None) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in dict(done.files)["outcomes.jsonl"].splitlines()]
    return [row for row in rows if row["part"] == part and row.get("condition") == condition]


def test_where_a_constant_vector_breaks_what_was_right_the_adaptive_one_is_published(done: Done) -> None:
    adaptive = done.report["adaptive"]
    assert adaptive["published"], adaptive["reason"]
    assert adaptive["elsewhere"] == "test items that were right before"
    by_name = {one["name"]: one for one in adaptive["conditions"]}
    assert by_name["adaptive"]["elsewhere"]["changed"]["value"] == 0.0
    assert by_name["constant"]["elsewhere"]["changed"]["value"] > 0.9
    assert done.report["test"]["accuracy"] == by_name["adaptive"]["accuracy"]
    assert done.report["recommended"]
    vector = done.vector
    assert vector is not None
    assert vector.operation == {"cap": "cap", "gate": "amplify"}[adaptive["form"]]
    assert {"adaptive.png", "accuracy.png"} <= dict(done.files).keys()


def test_every_figure_of_the_conditions_follows_from_their_outcomes(done: Done) -> None:
    adaptive = done.report["adaptive"]
    main = rows_of(done, "test", None)
    right = [number for number, row in enumerate(main) if scores([row], "before")[0] == 1.0]
    after = {}
    changed = {}
    for found in adaptive["conditions"]:
        name = None if found["name"] == "constant" else found["name"]
        own = rows_of(done, "test", name)
        assert [row["line"] for row in own] == [row["line"] for row in main]
        after[found["name"]] = scores(own, "after")
        check_accuracy(found["accuracy"], after[found["name"]], own)
        check_mean(found, after[found["name"]] - scores(own, "before"), own)
        kept = [own[number] for number in right]
        moved = np.asarray(
            [np.mean([a != b for a, b in zip(row["before"], row["after"], strict=True)]) for row in kept]
        )
        changed[found["name"]] = moved
        check_accuracy(found["elsewhere"]["changed"], moved, kept)
        if name is not None:
            asked_of = rows_of(done, "validation", name)
            shares = np.asarray([[int(one) for one in row["cells"]] for row in asked_of]).mean(axis=0)
            assert found["chosen"]["selected_from"] == len(shares)
            assert found["chosen"]["validation"] == pytest.approx(shares[found["chosen"]["candidate"]])
            if name != "matched":
                assert found["chosen"]["validation"] == pytest.approx(shares.max())
    for found in adaptive["over"]:
        check_mean(found["accuracy"], after["adaptive"] - after[found["name"]], main)
        kept = [main[number] for number in right]
        check_mean(found["fewer_changed"], changed[found["name"]] - changed["adaptive"], kept)


def test_the_matched_constant_has_the_validation_accuracy_nearest_to_the_adaptive_vectors(done: Done) -> None:
    by_name = {one["name"]: one["chosen"] for one in done.report["adaptive"]["conditions"] if "chosen" in one}
    wanted = by_name["adaptive"]["validation"]
    shares = np.asarray([[int(one) for one in row["cells"]] for row in rows_of(done, "validation", "matched")]).mean(
        axis=0
    )
    distances = np.abs(shares - wanted)
    first = int(np.flatnonzero(np.isclose(distances, distances.min()))[0])
    assert by_name["matched"]["candidate"] == first
    assert by_name["matched"]["scale"] == pytest.approx(done.report["chosen"]["scale"] * (first + 1) / 16)


def test_a_report_is_computed_again_from_its_outcomes_and_a_changed_figure_is_found(done: Done) -> None:
    outcomes = dict(done.files)["outcomes.jsonl"]
    found = recompute_folder(done.report, outcomes)
    assert list(differences(done.report, found)) == []
    assert found["adaptive"]["published"] is True
    forged = json.loads(json.dumps(done.report))
    forged["adaptive"]["conditions"][1]["elsewhere"]["changed"]["value"] = 0.5
    assert [one.path for one in differences(forged, found)] == ["adaptive.conditions.1.elsewhere.changed.value"]


def test_the_published_vector_answers_as_the_formulas_say(done: Done) -> None:
    assert done.vector is not None
    probe = Doubter()
    for row in rows_of(done, "test", "adaptive"):
        item = asked(300).items[row["line"] - 1]
        assert isinstance(item, ChoiceItem)
        for order, chosen in zip(row["orders"], row["after"], strict=True):
            shown = "\n".join(f"{letter}: {item.choices[place]}" for letter, place in zip("AB", order, strict=True))
            prompt = probe.encode(f"{item.question}\n{shown}\nRespond with a single letter.\nAnswer:")
            h = slow(done.vector, done.vector.default_scale, 1, probe.state(prompt))
            assert (chosen == 0) == (1.0 <= h[0] <= 3.0)


@pytest.mark.parametrize("form", ADAPTIVES)
def test_where_nothing_is_harmed_the_constant_vector_is_kept_and_the_report_says_so(form: Adaptive) -> None:
    safe = DataSet("safe", "1" * 64, tuple(ChoiceItem(f"far {n}?", (f"right {n}", f"other {n}"), 1) for n in range(40)))
    done = trained(form, retention=safe, scales=[1.25])
    adaptive = done.report["adaptive"]
    assert not adaptive["published"]
    assert adaptive["elsewhere"] == "retention items"
    assert adaptive["reason"].endswith("so the constant vector is kept")
    assert done.vector is None or done.vector.operation == "add"
    constant = next(one for one in adaptive["conditions"] if one["name"] == "constant")
    assert done.report["test"]["accuracy"] == constant["accuracy"]
    assert list(differences(done.report, recompute_folder(done.report, dict(done.files)["outcomes.jsonl"]))) == []


def cell(scale: float, direction: Tensor) -> Cell:
    dose = abs(scale) * float(direction.norm())
    return Cell("pas_full", "residual", 1, scale, scale, dose, dose, SteeringVector({1: direction}))


@pytest.mark.parametrize("form", ADAPTIVES)
@pytest.mark.parametrize("scale", [1.5, -0.75])
def test_the_dose_of_a_candidate_is_the_mean_length_of_what_it_adds(form: Adaptive, scale: float) -> None:
    chance = np.random.default_rng(1)
    direction = torch.from_numpy(chance.standard_normal(HIDDEN)).float()
    inputs = Inputs(
        training=chance.standard_normal((40, HIDDEN)),
        trained_wrong=np.arange(40) % 2 == 0,
        validation=chance.standard_normal((30, HIDDEN)),
        asked_wrong=np.arange(30) % 3 == 0,
        steered_right=np.arange(30) % 5 != 0,
    )
    if form == "gate":  # a gate needs something to tell
        inputs.training[inputs.trained_wrong] += 1.0
        inputs.validation[inputs.asked_wrong] += 1.0
    made = candidates_of(form, cell(scale, direction), direction.double().numpy(), inputs)
    assert len(made) >= 5
    for one in made:
        moved = [float(np.linalg.norm(slow(one.cell.vector, one.cell.scale, 1, h) - h)) for h in inputs.validation]
        assert one.cell.dose == pytest.approx(np.mean(moved), rel=1e-4)
        along = [
            (slow(one.cell.vector, one.cell.scale, 1, h) - h) @ direction.double().numpy() for h in inputs.validation
        ]
        assert all(scale * step >= -1e-9 for step in along)


def test_without_wrong_answers_there_is_no_gate() -> None:
    chance = np.random.default_rng(2)
    rows, none = chance.standard_normal((10, HIDDEN)), np.zeros(10, dtype=bool)
    inputs = Inputs(rows, none, rows, none, ~none)
    direction = torch.ones(HIDDEN)
    with pytest.raises(NotMade, match="all of one kind"):
        candidates_of("gate", cell(1.0, direction), direction.double().numpy(), inputs)


def test_pairs_of_texts_are_refused() -> None:
    pairs = DataSet("pairs", "2" * 64, tuple(PairItem(f"good {n}", f"bad {n}", f"say {n}", n) for n in range(40)))
    task = Task.from_json({"layers": [1], "scales": [1], "variant": "mean_difference", "adaptive": "cap"})
    with pytest.raises(InvalidMethod, match="adaptive: expected questions with lettered options") as refused:
        carry_out(task, TextProbe(), TrainingData(pairs), seed=0, report=lambda progress: None)
    assert refused.value.param == "adaptive"
