"""Adaptive vectors on the embedded model: the answers are those of a plain transformers model with a hook."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from server.demo import MODEL_DIR
from server.engine.engine import BatchingEngine, EngineSettings
from server.engine.model import load_model
from server.text import load_text
from server.training.engine_view import EngineView
from tests.server.training.test_honest import labelled_by_chance, quiz
from vectors.data import ChoiceItem
from vectors.training.method import Method
from vectors.training.model_view import Steering
from vectors.training.options import ADAPTIVES, Adaptive
from vectors.training.progress import WorkPlan
from vectors.training.train import TrainingData, train, train_seed


@pytest.fixture(scope="module")
def view() -> Iterator[EngineView]:
    model = load_model(MODEL_DIR, device="cpu", dtype="float32")
    with BatchingEngine(model, EngineSettings(num_pages=2000, page_size=16, max_batch_tokens=512)) as engine:
        yield EngineView(engine, load_text(MODEL_DIR))


def changed(steering: Steering, h: Tensor) -> Tensor:
    """The activation `[hidden]` after the change, by the formulas."""
    vector = steering.vector
    (layer,) = vector.layers
    v = vector.directions[layer]
    if vector.operation == "add":
        return h + steering.scale * v
    if vector.operation == "cap":
        read = float(h @ v) / float(v @ v)
        low = -math.inf if vector.min is None else vector.min
        return h + steering.scale * (max(read, low) - read) * v
    assert (vector.operation, vector.activation) == ("amplify", "sigmoid")
    return h + steering.scale * torch.sigmoid(h @ vector.reads[layer] + vector.biases[layer]) * v


@torch.inference_mode()
@pytest.mark.parametrize("form", ADAPTIVES)
def test_each_condition_answers_as_a_plain_model_with_a_hook(view: EngineView, form: Adaptive) -> None:
    data = TrainingData(quiz(60, "wrong"))
    method = Method.from_json({"layers": [3], "scales": [0.5, 1], "variant": "pas_full", "adaptive": form})
    result = train_seed(view, data, method, 0, WorkPlan(lambda progress: None, {}))
    assert result.adaptive is not None
    plain: Any = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32)
    items = {item.line: item for item in data.items.items if isinstance(item, ChoiceItem)}
    num_moved = 0
    for condition, outcomes in zip(result.adaptive.searched.conditions, result.adaptive.tests, strict=True):
        (steering,) = condition.chosen.steering

        def steer(module: Any, args: Any, output: Tensor, steering: Steering = steering) -> Tensor:
            output[0, -1] = changed(steering, output[0, -1])
            return output

        with plain.model.layers[3].register_forward_hook(steer):
            for outcome in outcomes[:6]:
                item = items[outcome.line]
                for order, chosen in zip(outcome.orders, outcome.after, strict=True):
                    options = "\n".join(f"{'ABCDE'[n]}: {item.choices[place]}" for n, place in enumerate(order))
                    context = f"Remember, {item.context}.\n" if item.context else ""
                    text = f"{item.question}\n{options}\n{context}Respond with a single letter.\nAnswer:"
                    logits = plain(torch.tensor([view.encode(text)])).logits[0, -1]
                    scores = [letter_score(view, text, "ABCDE"[n], logits) for n in range(len(order))]
                    assert order[scores.index(max(scores))] == chosen
            num_moved += sum(outcome.before != outcome.after for outcome in outcomes[:6])
    assert num_moved > 0


def letter_score(view: EngineView, text: str, letter: str, logits: Tensor) -> float:
    """The log of the probability of both spellings, up to a constant."""
    before = len(view.encode(text))
    tokens = {view.encode(text + spelling)[before] for spelling in (letter, f" {letter}")}
    return float(logits[list(tokens)].logsumexp(0))


@pytest.mark.parametrize("form", ADAPTIVES)
@pytest.mark.parametrize("seed", [0, 1])
def test_labels_drawn_by_chance_teach_no_adaptive_vector(view: EngineView, form: Adaptive, seed: int) -> None:
    method = Method.from_json({"layers": [1, 3], "scales": [1, 4], "variant": "mean_difference", "adaptive": form})
    data = TrainingData(labelled_by_chance(100, seed))
    trained = train(view, data, method, seed=seed, report=lambda progress: None)
    assert trained.vector is None
    assert not trained.report["adaptive"]["published"]
