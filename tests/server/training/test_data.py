"""What a task does with its data before it trains: items apart, items that are too long, whose words a text is.

On the embedded model as it is shipped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import pytest

from server.demo import MODEL_DIR
from server.demo.heldout import quiz_items
from server.engine.engine import BatchingEngine, EngineSettings
from server.engine.model import load_model
from server.text import load_text
from server.training.engine_view import EngineView
from vectors.data import ChoiceItem, DataSet, Message, PairItem, read_data
from vectors.errors import InvalidData
from vectors.training.examiner import Examiner
from vectors.training.method import Method
from vectors.training.model_view import Steering
from vectors.training.progress import Progress
from vectors.training.prompts import statements_of
from vectors.training.task import Done, Task, carry_out
from vectors.training.train import TrainingData, parts_of

QUICK = {"layers": [3], "scales": [1], "variant": "mean_difference", "allow_no_gain": True}


@pytest.fixture(scope="module")
def view() -> Iterator[EngineView]:
    model = load_model(MODEL_DIR, device="cpu")
    with BatchingEngine(model, EngineSettings(num_pages=2000, page_size=16, max_batch_tokens=512)) as engine:
        yield EngineView(engine, load_text(MODEL_DIR))


def quiz(count: int, seed: int = 5, belief: Literal["none", "wrong"] = "wrong", **change: Any) -> DataSet:
    rows = [
        {"question": item.question, "choices": item.choices, "answer": "ABCD"[item.answer], "context": item.context}
        for item in quiz_items(seed, count, "held_out", belief)
    ]
    return read_data(b"\n".join(json.dumps(row | change).encode() for row in rows), f"{belief}.jsonl")


def asked(item: ChoiceItem) -> str:
    return "".join(letter for letter in item.question.lower() if letter.isalnum())


def run(view: EngineView, data: TrainingData, *steering: Steering, **options: Any) -> Done:
    task = Task.from_json(options)
    return carry_out(task, view, data, steering=steering, seed=0, report=lambda progress: None)


def questions(data: Sequence[Any]) -> set[str]:
    return {asked(item) for item in data}


def test_items_of_the_training_are_no_test_of_its_vector(view: EngineView) -> None:
    data = quiz(60)
    vector = run(view, TrainingData(data), **QUICK).vector
    assert vector is not None
    parts = parts_of(TrainingData(data), Method.from_json(QUICK), 0)
    told: list[str] = []

    def tell(progress: Progress) -> None:
        told.extend([progress.note] if progress.note else [])

    steering = (Steering(vector, 1.0),)
    task = Task.from_json({"task": "evaluate", "vector": "x"})
    report = carry_out(task, view, TrainingData(data), steering=steering, seed=0, report=tell).report
    assert report["data"]["items"] == len(parts.test) < len(data.items)
    left_out = len(data.items) - len(parts.test)
    says = f"data: {left_out} of 60 items are among those that the vector was trained on and were left out"
    assert any(note.startswith(says) for note in report["notes"])
    assert any(note.startswith(says) for note in told)

    # the same questions in another file, written in capitals and with other punctuation, beside new ones
    loud = [
        ChoiceItem(f"  {item.question.upper()} !", item.choices[::-1], 0, None, 1)
        for item in parts.train
        if isinstance(item, ChoiceItem)
    ]
    known = questions(data.items)
    new = [item for item in quiz(120, 9, "none").items if isinstance(item, ChoiceItem) and asked(item) not in known]
    mixed = DataSet("mixed", "0" * 64, (*loud, *new))
    report = run(view, TrainingData(mixed), *steering, task="evaluate", vector="x").report
    assert report["data"]["items"] == len(new) > 0
    with pytest.raises(InvalidData, match=f"all {len(loud)} items are among those that the vector was trained on"):
        run(view, TrainingData(DataSet("loud", "0" * 64, tuple(loud))), *steering, task="evaluate", vector="x")


def test_a_vector_without_a_record_of_its_items_is_not_recommended_by_its_own_file(view: EngineView) -> None:
    data = quiz(60)
    vector = run(view, TrainingData(data), **{**QUICK, "variant": "pas_full", "scales": [0.75]}).vector
    assert vector is not None
    assert vector.training is not None
    record = {**vector.training, "data": {**vector.training["data"], "seen": None}}
    old = Steering(vector.with_defaults(training=record), 1.0)
    done = run(view, TrainingData(data), old, task="evaluate", vector="x")
    assert not done.is_recommended
    assert "trained on this file, and its record does not say on which of the items" in done.reason


def test_validation_and_retention_hold_nothing_of_the_training_file(view: EngineView) -> None:
    data = quiz(60)
    known = questions(data.items)
    new = tuple(
        item for item in quiz(200, 9, "none").items if isinstance(item, ChoiceItem) and asked(item) not in known
    )
    other = DataSet("other", "1" * 64, (*new, *data.items[:5]))
    report = run(view, TrainingData(data, validation=other, retention_items=other), **QUICK).report
    assert report["data"]["split"]["validation"] == len(new)
    says = f"5 of {len(other.items)} items are in the training file too and were left out; {len(new)} remain"
    assert [note for note in report["notes"] if says in note] == [f"validation file: {says}", f"retention file: {says}"]
    assert report["retention"]["accuracy"]["baseline"]["num_items"] == len(new)
    items = [item for item in data.items[:9] if isinstance(item, ChoiceItem)]
    without_belief = tuple(ChoiceItem(item.question, item.choices, item.answer) for item in items)
    kept = DataSet("plain", "2" * 64, without_belief)
    report = run(view, TrainingData(data, retention_items=kept), **QUICK).report
    assert report["retention"]["accuracy"]["baseline"]["num_items"] == 9, "without the belief it is another question"
    with pytest.raises(InvalidData, match="validation file: all 60 items are in the training file too"):
        run(view, TrainingData(data, validation=data), **QUICK)


def test_items_that_are_too_long_are_left_out_and_counted(view: EngineView) -> None:
    items = [item for item in quiz(40).items if isinstance(item, ChoiceItem)]
    items[4] = ChoiceItem("Why? " * 2000, items[4].choices, 0, None, 5)
    items[9] = ChoiceItem(items[9].question, ("word " * 1100, *items[9].choices[1:]), 1, None, 10)
    data = TrainingData(DataSet("long.jsonl", "0" * 64, tuple(items), quiz(40).understood))
    report = run(view, data, **QUICK).report
    assert sum(report["data"]["split"].values()) == 38
    assert report["data"]["read"]["skipped"] == {"too long for the model": 2}
    with pytest.raises(InvalidData, match=r"long.jsonl, line 5: .* at most 1023 tokens.* \(2 of 40 items, more than"):
        run(view, data, **QUICK, max_skipped=0.04)


def test_instructions_are_in_the_users_turn(view: EngineView) -> None:
    """The activation is read where the assistant is about to answer the instruction."""
    content = json.dumps(
        {"harmful": [f"Break it {n}." for n in range(9)], "harmless": [f"Bake it {n}." for n in range(9)]}
    )
    pair = read_data(content.encode(), "lists.json").items[0]
    assert isinstance(pair, PairItem)
    examiner = Examiner(view, Method.from_json({"prompt": "chat"}))
    for statement, text in zip(statements_of(pair), ("Break it 0.", "Bake it 0."), strict=True):
        assert examiner.tokens_of(statement) == view.encode_chat([Message("user", text)])
    raw = Examiner(view, Method())
    assert raw.tokens_of(statements_of(pair)[0]) == view.encode("Break it 0.")


def test_the_likelihood_of_an_instruction_is_that_of_its_own_tokens(view: EngineView) -> None:
    """Neither the template around it nor an empty turn counts: the choice is the text with the likelier tokens."""
    pairs = [PairItem("What is the capital of France?", "Zxq vjk wqp zzk?", turn="user"),
             PairItem("Zxq vjk wqp zzk?", "What is the capital of France?", turn="user")]  # fmt: skip
    for prompt in ("chat", "raw"):
        examiner = Examiner(view, Method.from_json({"prompt": prompt}))
        assert examiner.choose(pairs, [()]).tolist() == [[0, 1]]


def test_texts_that_may_be_anybodys_words_are_refused_in_a_chat(view: EngineView) -> None:
    pairs = tuple(PairItem(f"Number {n} is good.", f"Number {n} is bad.", line=n + 1) for n in range(20))
    data = TrainingData(DataSet("bare", "0" * 64, pairs))
    with pytest.raises(InvalidData, match=r"bare, line 1: .* whose words they are: --turn user or --turn assistant"):
        run(view, data, **QUICK, prompt="chat")
    assert run(view, data, **QUICK).vector is not None
