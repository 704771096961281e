"""Training says the truth about itself: it recommends what helps, and nothing else, and says why.

On the embedded model as it is shipped, which knows its facts and goes along with whoever believes otherwise.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import pytest
from transformers import AutoModelForCausalLM

from server.demo import MODEL_DIR
from server.demo.heldout import quiz_items
from server.engine.engine import BatchingEngine, EngineSettings
from server.engine.model import load_model
from server.text import load_text
from server.training.engine_view import EngineView
from vectors.data import ChoiceItem, DataSet, PairItem, read_data, shuffle_alike
from vectors.errors import InvalidData, InvalidMethod
from vectors.training.evaluate import evaluate
from vectors.training.method import Method
from vectors.training.model_view import Steering
from vectors.training.progress import Progress
from vectors.training.train import Trained, TrainingData, train
from vectors.vector import SteeringVector

SMALL = {"layers": [1, 2, 3], "scales": [1, 2, 4]}
WORDS = ("red", "blue", "green", "stone", "river", "cloud", "table", "lamp", "window", "garden")


@pytest.fixture(scope="module")
def view() -> Iterator[EngineView]:
    model = load_model(MODEL_DIR, device="cpu")
    with BatchingEngine(model, EngineSettings(num_pages=2000, page_size=16, max_batch_tokens=512)) as engine:
        yield EngineView(engine, load_text(MODEL_DIR))


def quiz(count: int, belief: Literal["none", "wrong"], seed: int = 5) -> DataSet:
    """Questions that the embedded model can answer, perhaps from a user who believes something wrong."""
    rows = [
        {"question": item.question, "choices": item.choices, "answer": item.answer, "context": item.context}
        for item in quiz_items(seed, count, "held_out", belief)
    ]
    return read_data(b"\n".join(json.dumps(row).encode() for row in rows), f"{belief}.jsonl")


def data_of(items: Sequence[ChoiceItem] | Sequence[PairItem]) -> DataSet:
    return DataSet("made.jsonl", "0" * 64, tuple(items))  # type: ignore[arg-type]


def labelled_by_chance(count: int, seed: int) -> DataSet:
    """Questions with an answer that was drawn."""
    draw = random.Random(seed)
    items = [item for item in quiz(count, "none").items if isinstance(item, ChoiceItem)]
    return data_of([ChoiceItem(item.question, item.choices, draw.randrange(len(item.choices))) for item in items])


def always_first(count: int) -> DataSet:
    """Questions without a meaning, whose first option is right."""
    draw = random.Random(1)
    items = []
    for number in range(count):
        one, other = draw.sample(WORDS, 2)
        question = f"Item {number}: which one, {draw.choice(WORDS)} {draw.choice(WORDS)}?"
        items.append(ChoiceItem(question, (one, other), 0))
    return data_of(items)


@pytest.mark.slow
def test_labels_drawn_by_chance_are_rarely_taken_for_knowledge(view: EngineView) -> None:
    """The verdict is a test at 5 %: of 60 meaningless sets more than 8 would be recommended once in 350 times."""
    taken = [
        seed
        for seed in range(60)
        if run(view, labelled_by_chance(150, 1000 + seed), seed, variant="all").is_recommended
    ]
    assert len(taken) <= 8, taken


def run(view: EngineView, data: DataSet, seed: int = 0, **options: object) -> Trained:
    """One training on a small grid."""
    method = Method.from_json(SMALL | options)
    return train(view, TrainingData(data), method, seed=seed, report=lambda progress: None)


def test_a_sycophant_is_cured_and_keeps_what_it_knows(view: EngineView) -> None:
    data = TrainingData(quiz(200, "wrong"), retention_items=quiz(80, "none", seed=8))
    reported: list[Progress] = []
    trained = train(
        view,
        data,
        Method.from_json(SMALL | {"variant": "all"}),
        seed=0,
        report=lambda progress: reported.append(progress),
    )
    report = trained.report
    assert report["baseline"]["test"]["value"] <= 0.45
    assert report["test"]["accuracy"]["value"] >= 0.75
    assert report["test"]["mcnemar_p"] < 0.001
    assert report["test"]["ci95"][0] > 0
    assert abs(report["test"]["letter_bias"]) < 0.1
    assert report["recommended"]
    assert trained.is_recommended
    retention = report["retention"]["accuracy"]
    assert retention["baseline"]["value"] >= 0.9
    assert retention["change"] >= -0.02
    vector = trained.vector
    assert vector is not None
    assert vector.model == view.model_id
    assert vector.default_scale == report["chosen"]["scale"]
    assert (vector.site, list(vector.layers)) == (report["chosen"]["site"], report["chosen"]["layers"])
    assert vector.training is not None
    assert vector.training["recommended"] is True
    assert vector.training["data"]["sha256"] == data.items.sha256
    assert {"answering", "searching", "testing", "retention"} <= {progress.phase for progress in reported}
    assert len(report["grid"]) == 4 * 3 * 3
    json.dumps(report, allow_nan=False)


def test_what_was_trained_helps_where_it_is_evaluated_again(view: EngineView) -> None:
    trained = run(view, quiz(120, "wrong"), variant="pas_full")
    assert trained.vector is not None
    steering = (Steering(trained.vector, trained.vector.default_scale),)
    others = TrainingData(quiz(40, "wrong", seed=77))
    report, _ = evaluate(view, others, steering, Method(), seed=1, report=lambda progress: None)
    assert report["recommended"]
    assert report["test"]["gain"] > 0.3
    few = TrainingData(data_of(quiz(40, "wrong", seed=77).items[:4]))
    lucky, _ = evaluate(view, few, steering, Method(), seed=1, report=lambda progress: None)
    assert lucky["test"]["gain"] > 0.3
    assert lucky["test"]["mcnemar_p"] > 0.05
    assert not lucky["recommended"]
    none, _ = evaluate(view, others, (Steering(trained.vector, 0.0),), Method(), seed=1, report=lambda progress: None)
    assert not none["recommended"]
    assert none["test"]["gain"] == 0
    back, _ = evaluate(
        view,
        others,
        (Steering(trained.vector, -trained.vector.default_scale),),
        Method(),
        seed=1,
        report=lambda p: None,
    )
    assert not back["recommended"]


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_labels_drawn_by_chance_teach_nothing(view: EngineView, seed: int) -> None:
    trained = run(view, labelled_by_chance(120, seed), seed, variant="all")
    assert trained.vector is None
    assert trained.report["recommended"] is False
    assert "p = " in trained.reason or "unsteered" in trained.reason


@pytest.mark.parametrize("letters", ["paper", "balanced"])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_letter_that_is_always_right_is_no_gain(view: EngineView, seed: int, letters: str) -> None:
    trained = run(view, always_first(120), seed, variant="all", letters=letters, scales=[1, 4, 8])
    report = trained.report
    assert report["recommended"] is False
    assert trained.vector is None
    assert any("always saying A would score 100 %" in note for note in report["notes"])


def saying(view: EngineView, letter: str) -> tuple[Steering, ...]:
    """What makes the model say `letter` to everything."""
    readout: Any = AutoModelForCausalLM.from_pretrained(MODEL_DIR).get_output_embeddings()
    direction = readout.weight[view.encode(f"Answer: {letter}")[-1]].detach().float()
    vector = SteeringVector({view.num_layers - 1: direction / direction.norm()})
    return (Steering(vector, 3000.0),)


def test_a_gain_that_a_letter_brings_is_named(view: EngineView) -> None:
    """In the paper's order the steering answers all items right; in every order it does not."""
    data = always_first(60)
    shown = shuffle_alike([item for item in data.items if isinstance(item, ChoiceItem)], 1)
    letter = "AB"[shown[0].answer]
    method = Method(letters="paper")
    report, _ = evaluate(view, TrainingData(data), saying(view, letter), method, seed=1, report=lambda progress: None)
    test = report["test"]
    assert test["presented"]["steered"] == 1.0
    assert test["presented"]["gain"] > 0.3
    assert test["accuracy"]["value"] == 0.5
    assert test["letter_bias"] > 0.3
    assert test["letters"]["moved"] > 0.3
    assert report["recommended"] is False
    assert report["reason"].startswith("letter bias")


@pytest.mark.parametrize("letter", ["A", "B"])
def test_saying_one_letter_to_everything_is_no_cure(view: EngineView, letter: str) -> None:
    """A sycophant scores below chance, so that even a constant letter raises its letter-balanced accuracy."""
    items = [item for item in quiz(120, "wrong").items if isinstance(item, ChoiceItem) and len(item.choices) == 2]
    data = TrainingData(data_of(items))
    report, _ = evaluate(view, data, saying(view, letter), Method(), seed=0, report=lambda progress: None)
    assert report["test"]["letters"]["after"][letter] == 1.0
    assert report["test"]["gain"] > 0.1
    assert report["recommended"] is False
    assert "one letter" in report["reason"]


def test_no_gain_is_published_where_it_is_asked_for_and_marked(view: EngineView) -> None:
    data = labelled_by_chance(80, 0)
    trained = run(view, data, allow_no_gain=True, variant="mean_difference")
    assert trained.report["recommended"] is False
    assert trained.vector is not None
    assert trained.vector.training is not None
    assert trained.vector.training["recommended"] is False
    assert trained.vector.training["reason"] == trained.reason
    assert trained.reason[:40] in trained.vector.description


def test_the_unsteered_model_may_win(view: EngineView) -> None:
    trained = run(view, quiz(60, "none"), variant="mean_difference")
    assert trained.report["baseline"]["validation"] == 1.0
    assert trained.vector is None
    assert trained.reason == "no steered cell answered more validation items correctly than the unsteered model"


@pytest.mark.parametrize("variant", ["ipas_wrong_only", "ipas_all", "pas_full"])
def test_a_model_that_knows_all_leaves_nothing_to_contrast(view: EngineView, variant: str) -> None:
    with pytest.raises(InvalidData, match=r"answers 36 of 36 training items correctly.*mean_difference") as refused:
        run(view, quiz(60, "none"), variant=variant)
    assert refused.value.file == "none.jsonl"
    assert variant in str(refused.value)


def test_a_variant_without_contrast_is_left_out_and_noted(view: EngineView) -> None:
    trained = run(view, quiz(60, "none"), variant="all")
    assert {cell.variant for cell in trained.cells} == {"mean_difference"}
    assert len([note for note in trained.report["notes"] if "nothing to contrast" in note]) == 3


def test_too_few_items_are_refused(view: EngineView) -> None:
    with pytest.raises(InvalidData, match="got 7"):
        run(view, data_of(quiz(7, "wrong").items))


def test_a_prompt_that_the_model_cannot_hold_is_named_by_its_line(view: EngineView) -> None:
    items = [item for item in quiz(30, "wrong").items if isinstance(item, ChoiceItem)]
    items[4] = ChoiceItem("Why? " * 2000, items[4].choices, 0, None, 5)
    with pytest.raises(InvalidData, match=r"line 5: .* at most 1023 tokens"):
        run(view, data_of(items))


def test_a_text_of_one_token_with_nothing_before_it_is_named_by_its_line(view: EngineView) -> None:
    assert len(view.encode("a")) == 1
    items = [PairItem(f"Number {number} is good.", f"Number {number} is bad.", line=number) for number in range(20)]
    items[3] = PairItem("a", "b", line=3)
    with pytest.raises(InvalidData, match="line 3"):
        run(view, data_of(items), variant="mean_difference")


@pytest.mark.parametrize(
    ("options", "param", "says"),
    [
        ({"variant": "pas"}, "variant", "ipas_wrong_only"),
        ({"site": "residuals"}, "site", "residual"),
        ({"method": 1}, "method", "unknown option"),
        ({"layers": [2, 6]}, "layers", "6 is outside the model, which has blocks 0 to 5"),
        ({"layers": [0], "paper_offset": True}, "layers", "block 0"),
        ({"icl": 2, "variant": "mean_difference"}, "icl", "answers wrong"),
    ],
)
def test_what_the_model_or_the_method_lacks_is_named(
    view: EngineView, options: dict[str, Any], param: str, says: str
) -> None:
    with pytest.raises(InvalidMethod, match=says) as refused:
        run(view, quiz(40, "none"), **options)
    assert refused.value.param == param


class Lacking:
    """The view of a model without chat template that has blocks, but no norm after attention."""

    def __init__(self, view: EngineView) -> None:
        self._probe = view
        self.has_chat_template = False
        self.sites = tuple(site for site in view.sites if site != "post_attention_norm")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._probe, name)


@pytest.mark.parametrize(
    ("options", "param"),
    [({"site": "all"}, "site"), ({"site": ["post_attention_norm"]}, "site"), ({"prompt": "chat"}, "prompt")],
)
def test_what_another_model_lacks_is_named(view: EngineView, options: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidMethod, match=f"^{param}: .*this model") as refused:
        run(Lacking(view), quiz(20, "wrong"), **options)  # type: ignore[arg-type]
    assert refused.value.param == param


def without_times(report: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in report.items() if name not in ("seconds", "items_per_second")}


def assert_alike(one: Any, other: Any, place: str = "report") -> None:
    """Equal, and numbers but for rounding: it depends on which requests happen to share a batch."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for name in one:
            assert_alike(one[name], other[name], f"{place}.{name}")
    elif isinstance(one, list):
        assert len(one) == len(other), place
        for number, (left, right) in enumerate(zip(one, other, strict=True)):
            assert_alike(left, right, f"{place}.{number}")
    elif isinstance(one, float):
        assert one == pytest.approx(other, rel=1e-3), place
    else:
        assert one == other, place


def test_the_same_seed_gives_the_same_report() -> None:
    model = load_model(MODEL_DIR, device="cpu", dtype="float32")
    data = quiz(40, "wrong")
    for options in (
        {"variant": "all", "seeds": 2, "layers": [2]},
        {"letters": "paper", "icl": 2, "prompt": "chat", "layers": [3]},
    ):
        with BatchingEngine(model, EngineSettings(num_pages=2000)) as engine:
            view = EngineView(engine, load_text(MODEL_DIR))
            first, second = (run(view, data, 4, **options, allow_no_gain=True) for _ in range(2))
            other = run(view, data, 5, **options, allow_no_gain=True)
        assert_alike(without_times(first.report), without_times(second.report))
        assert set(first.report["seconds"]) == set(second.report["seconds"])
        assert without_times(other.report) != without_times(first.report)
        assert first.vector is not None
        assert second.vector is not None
        for layer, direction in first.vector.directions.items():
            assert (direction - second.vector.directions[layer]).abs().max() < 1e-3 * direction.abs().max()
