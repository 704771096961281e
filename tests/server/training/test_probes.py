"""Probes and gates on the embedded model: does the user believe something wrong?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from server.demo import MODEL_DIR, MODEL_NAME
from server.demo.heldout import classed_lines, labelled_lines, quiz_items
from server.demo.quiz import Item
from server.engine.engine import BatchingEngine, EngineSettings
from server.engine.model import load_model
from server.text import load_text
from server.training.engine_view import EngineView
from tests.server.api.serving import serving
from vectors.data import read_data
from vectors.data.items import PairItem
from vectors.data.options import ReadOptions
from vectors.training.task import Task, carry_out
from vectors.training.train import TrainingData


@pytest.fixture(scope="module")
def view() -> Iterator[EngineView]:
    model = load_model(MODEL_DIR, device="cpu", dtype="float32")
    with BatchingEngine(model, EngineSettings(num_pages=2000, page_size=16, max_batch_tokens=512)) as engine:
        yield EngineView(engine, load_text(MODEL_DIR))


@torch.inference_mode()
def test_a_probe_tells_wrong_beliefs_from_right_ones_and_reads_so_on_a_plain_model(view: EngineView) -> None:
    lines = "\n".join(classed_lines(21, 200)).encode()
    data = read_data(lines, "said.jsonl", ReadOptions(positive_class="wrong"))
    task = Task.from_json({"task": "probe", "layers": [3, 4, 5]})
    done = carry_out(task, view, TrainingData(data), seed=0, report=lambda progress: None)
    assert done.report["test"]["auc"]["low"] >= 0.9
    assert done.is_recommended
    assert done.vector is not None
    (layer,) = done.vector.layers
    assert layer >= 4  # where the model has decided
    plain = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32)
    texts = {item.line: item for item in data.items}
    outcomes = [json.loads(line) for line in dict(done.files)["outcomes.jsonl"].splitlines()]
    for outcome in outcomes[-4:]:
        item = texts[outcome["line"]]
        assert isinstance(item, PairItem)
        text = item.positive if outcome["is_positive"] else item.negative
        hidden = plain(torch.tensor([view.encode(text)]), output_hidden_states=True).hidden_states[layer + 1][0, -1]
        read = torch.sigmoid(hidden @ done.vector.reads[layer] + done.vector.biases[layer])
        assert float(read) == pytest.approx(outcome["probability"], abs=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_gated_vector_keeps_its_effect_and_spares_other_prompts(tmp_path: Path) -> None:
    """It does as much against wrong beliefs, and changes at most a third as many answers where there is no belief."""
    model = load_model(MODEL_DIR, device="cpu", dtype="float32", model_id=MODEL_NAME)
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    with serving(tmp_path, model=model, tokenizer=tokenizer) as server:
        view = EngineView(server.engine, load_text(MODEL_DIR))
        said = read_data("\n".join(classed_lines(21, 400)).encode(), "said.jsonl", ReadOptions(positive_class="wrong"))
        beliefs = quiz_items(31, 300, "held_out", "wrong")
        quiz = read_data("\n".join(labelled_lines(beliefs)).encode(), "beliefs.jsonl")
        for name, data, options in (
            ("wrong", said, {"task": "probe"}),
            ("frank", quiz, {"variant": "pas_full"}),
        ):
            task = Task.from_json({"layers": [4], **options})
            done = carry_out(task, view, TrainingData(data), seed=0, report=lambda progress: None)
            assert done.is_recommended
            assert done.vector is not None
            server.store.put(name, done.vector)
        threshold = server.store.get("wrong").vector.threshold
        gated = {"vector": "frank", "when": {"probe": "wrong", "above": threshold}}
        ways: dict[str, list[Any]] = {"plain": [], "ungated": [{"vector": "frank"}], "gated": [gated]}

        def answers(items: list[Item], way: str) -> list[str]:
            bodies = (
                {"prompt": item.prompt, "max_tokens": 1, "temperature": 0, "steering": ways[way]} for item in items
            )
            found = (server.http.post("/v1/completions", json=body).json() for body in bodies)
            return [answer["choices"][0]["text"].strip() for answer in found]

        wrong, none = quiz_items(77, 120, "new", "wrong"), quiz_items(77, 120, "new", "none")
        right = {
            way: sum("ABCD"[item.answer] == letter for item, letter in zip(wrong, answers(wrong, way), strict=True))
            for way in ways
        }
        plain = answers(none, "plain")
        changed = {
            way: sum(one != other for one, other in zip(plain, answers(none, way), strict=True))
            for way in ("ungated", "gated")
        }
    print(f"right of 120 with a wrong belief: {right}; changed of 120 without a belief: {changed}")
    assert right["gated"] - right["plain"] >= 0.95 * (right["ungated"] - right["plain"]) > 0
    assert changed["gated"] <= changed["ungated"] / 3
