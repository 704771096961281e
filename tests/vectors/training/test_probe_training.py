"""Probes: found where the signal is, honest where there is none, and computed again from their outcomes."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from tests.vectors.training.hash_probe import HashProbe
from vectors.data import read_data
from vectors.data.items import DataSet, PairItem
from vectors.data.split import split_items
from vectors.errors import InvalidData, InvalidMethod
from vectors.training.method import Method
from vectors.training.options import FITS
from vectors.training.probe_training import train_probe
from vectors.training.progress import WorkPlan
from vectors.training.recomputed import differences, recompute_folder
from vectors.training.task import Done, Task, carry_out
from vectors.training.train import TrainingData
from vectors.vocabulary import Site

WORDS = ("tree", "house", "river", "stone", "cloud", "bread", "lamp", "coat", "bell", "road", "ship", "leaf")


class PlantedView(HashProbe):
    """Activations are drawn from the prompt; where it has a capital X, those of `planted` are longer along one axis."""

    def __init__(self, planted: tuple[Site, int] | None = ("mlp", 1), strength: float = 3.0) -> None:
        super().__init__()
        self._planted, self._strength = planted, strength

    def activations(
        self, prompts: Iterable[tuple[int, ...]], sites: Sequence[Site]
    ) -> Iterator[tuple[int, Mapping[Site, Tensor]]]:
        prompts = list(prompts)
        for index, found in super().activations(prompts, sites):
            changed = {site: activation.clone() for site, activation in found.items()}
            if self._planted is not None and self._planted[0] in changed and ord("X") in prompts[index]:
                site, layer = self._planted
                changed[site][layer, 2] += self._strength
            yield index, changed


def labelled(count: int, seed: int, mark: str = "X", other: str = "o") -> DataSet:
    """Texts of two classes, told apart by one letter."""
    chance = random.Random(seed)
    rows = []
    for number in range(2 * count):
        words = " ".join(chance.sample(WORDS, 4))
        label = "yes" if number % 2 == 0 else "no"
        rows.append({"text": f"{words} {number} {mark if label == 'yes' else other}", "label": label})
    return read_data("".join(json.dumps(row) + "\n" for row in rows).encode(), "texts.jsonl")


def probe(view: HashProbe, data: DataSet, seed: int = 0, **options: Any) -> Done:
    task = Task.from_json({"task": "probe", "site": ["residual", "mlp"], "turn": "assistant", **options})
    return carry_out(task, view, TrainingData(data), seed=seed, report=lambda progress: None)


@pytest.mark.parametrize("fit", ["logistic", "mean_difference"])
def test_a_probe_is_found_where_the_signal_is_and_reads_its_probability(fit: str) -> None:
    view = PlantedView()
    data = labelled(120, 1)
    done = probe(view, data, fit=fit)
    chosen, test = done.report["chosen"], done.report["test"]
    assert (chosen["site"], chosen["layer"], chosen["fit"], chosen["selected_from"]) == ("mlp", 1, fit, 6)
    assert test["auc"]["value"] > 0.9
    assert done.is_recommended
    assert done.vector is not None
    assert (done.vector.site, done.vector.layers, done.vector.activation) == ("mlp", (1,), "sigmoid")
    assert done.vector.threshold == chosen["threshold"]
    lines = [json.loads(line) for line in dict(done.files)["outcomes.jsonl"].splitlines()]
    tested = [line for line in lines if line["part"] == "test"]
    texts = {item.line: item for item in data.items}
    for line in tested:
        item = texts[line["line"]]
        assert isinstance(item, PairItem)
        text = item.positive if line["is_positive"] else item.negative
        ((_, found),) = view.activations([view.encode(text)], ["mlp"])
        read = torch.sigmoid(found["mlp"][1] @ done.vector.reads[1] + done.vector.biases[1])
        assert float(read) == pytest.approx(line["probability"], abs=1e-5)
    positive = [line["score"] for line in tested if line["is_positive"]]
    negative = [line["score"] for line in tested if not line["is_positive"]]
    u = stats.mannwhitneyu(positive, negative).statistic
    assert test["auc"]["value"] == pytest.approx(u / len(positive) / len(negative))


def test_the_report_is_computed_again_from_its_outcomes() -> None:
    done = probe(PlantedView(), labelled(60, 2))
    report, lines = json.loads(dict(done.files)["report.json"]), dict(done.files)["outcomes.jsonl"]
    figures = recompute_folder(report, lines)
    assert list(differences(report, figures)) == []
    assert {"auc", "p", "brier", "bins"} <= set(figures["test"])
    changed = lines.replace(b'"is_positive": true, "score": ', b'"is_positive": true, "score": -', 1)
    assert {one.path for one in differences(report, recompute_folder(report, changed))} >= {"chosen.validation"}


def test_labels_without_meaning_make_no_probe() -> None:
    method = Method(sites=("residual", "mlp"))
    recommended = 0
    for seed in range(60):
        data = labelled(40, 100 + seed)
        parts = split_items(data.items, method.split, seed, method.max_items)
        plan = WorkPlan(lambda progress: None, {})
        trained = train_probe(PlantedView(None), data, parts, method, FITS, seed=seed, plan=plan)
        recommended += bool(trained.report["recommended"])
        assert (trained.vector is not None) == trained.report["recommended"]
    assert recommended <= 3


def test_a_probe_that_reads_no_more_than_the_length_is_not_recommended() -> None:
    class LengthView(HashProbe):
        def activations(
            self, prompts: Iterable[tuple[int, ...]], sites: Sequence[Site]
        ) -> Iterator[tuple[int, Mapping[Site, Tensor]]]:
            for index, prompt in enumerate(prompts):
                length = torch.full((self.num_layers, self.hidden_size), float(len(prompt)))
                yield index, dict.fromkeys(sites, length)

    done = probe(LengthView(), labelled(60, 3, mark="and so on and so on"))
    assert done.report["test"]["auc"]["value"] == done.report["controls"]["length"] == 1.0
    assert not done.is_recommended
    assert "the texts' lengths" in done.reason
    assert done.vector is None
    assert probe(LengthView(), labelled(60, 3, mark="and so on"), allow_no_gain=True).vector is not None


def test_questions_are_told_apart_by_their_right_option() -> None:
    chance = random.Random(5)
    rows = []
    for number in range(80):
        choices = [f"{chance.choice(WORDS)} X{number}", f"{chance.choice(WORDS)} {number}", f"nothing {number}"]
        chance.shuffle(choices)
        answer = next(place for place, choice in enumerate(choices) if "X" in choice)
        rows.append({"question": f"what is {number}?", "choices": choices, "answer": answer})
    data = read_data("".join(json.dumps(row) + "\n" for row in rows).encode(), "quiz.jsonl")
    done = probe(PlantedView(strength=6.0), data)
    assert done.is_recommended
    assert done.report["data"]["split"] == {"train": 48, "validation": 16, "test": 16}
    assert done.report["test"]["positive_texts"] == done.report["test"]["negative_texts"] == 16


def test_no_item_is_in_two_parts_and_the_record_says_which_were_seen() -> None:
    data = labelled(40, 6)
    done = probe(PlantedView(), data)
    assert done.vector is not None
    assert done.vector.training is not None
    assert done.vector.training["task"] == "probe"
    again = probe(PlantedView(), data)
    assert again.vector == done.vector
    lines = [json.loads(line) for line in dict(done.files)["outcomes.jsonl"].splitlines()]
    places = {name: {line["line"] for line in lines if line["part"] == name} for name in ("validation", "test")}
    assert not places["validation"] & places["test"]
    names = dict(done.files)
    assert names["auc.png"].startswith(b"\x89PNG")
    assert names["calibration.png"].startswith(b"\x89PNG")


def test_options_of_steering_vectors_are_refused() -> None:
    with pytest.raises(InvalidMethod, match="scales: not an option of probe"):
        Task.from_json({"task": "probe", "scales": [1]})
    with pytest.raises(InvalidMethod, match="fit: not an option of train, only of probe"):
        Task.from_json({"fit": "logistic"})


def test_texts_without_any_difference_are_refused() -> None:
    class FlatView(HashProbe):
        def activations(
            self, prompts: Iterable[tuple[int, ...]], sites: Sequence[Site]
        ) -> Iterator[tuple[int, Mapping[Site, Tensor]]]:
            for index, _ in enumerate(prompts):
                yield index, dict.fromkeys(sites, torch.ones(self.num_layers, self.hidden_size))

    with pytest.raises(InvalidData, match="the same activations everywhere"):
        probe(FlatView(), labelled(20, 7))
