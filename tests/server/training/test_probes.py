"""Probes on the embedded model: does the user believe something wrong?"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import torch
from transformers import AutoModelForCausalLM

from server.demo import MODEL_DIR
from server.demo.heldout import classed_lines
from server.engine.engine import BatchingEngine, EngineSettings
from server.engine.model import load_model
from server.text import load_text
from server.training.engine_view import EngineView
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
