"""The shipped model and vectors: size, format, and the promised figures on a smaller sample."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file

from server.demo import MODEL_DIR, VECTORS_DIR, train
from server.demo.evaluate import Figure, honesty_figures, load_direction, quiz_figures, tone_figures
from server.demo.initial import RECALL_BLOCKS
from server.demo.probe import Probe
from server.demo.tokens import train_tokenizer
from server.engine.fingerprint import fingerprint_of
from vectors.calibration.prompts import PROMPTS
from vectors.formats import decode

SAMPLE = 64
SLACK = 0.06
"""What a sample of this size may lie beside the true share."""


@pytest.fixture(scope="module")
def probe() -> Probe:
    return Probe(MODEL_DIR)


def missed(figures: list[Figure]) -> list[Figure]:
    """The figures that lie outside their target by more than the slack."""
    return [
        figure
        for figure in figures
        if (figure.at_least is not None and figure.value < figure.at_least - SLACK)
        or (figure.at_most is not None and figure.value > figure.at_most + SLACK)
    ]


def test_folder_is_small_and_weights_are_bfloat16() -> None:
    assert sum(path.stat().st_size for path in MODEL_DIR.rglob("*") if path.is_file()) <= 12_000_000
    weights = load_file(MODEL_DIR / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}


def test_card_quotes_the_figures() -> None:
    card = (MODEL_DIR / "README.md").read_text()
    for figure in json.loads((MODEL_DIR / "figures.json").read_text()):
        assert f"| {figure['name']} | {figure['value']:.3f} |" in card
        assert figure["reached"], figure


def test_letters_are_one_token_after_the_prompt_and_alone(probe: Probe) -> None:
    assert probe.model.config.max_position_embeddings >= 1024
    assert probe.tokenizer.eos_token == "<|im_end|>"
    for letter in "ABCD":
        assert len(probe.tokenizer(f" {letter}")["input_ids"]) == 1
        assert len(probe.tokenizer(letter)["input_ids"]) == 1


@pytest.mark.parametrize("name", ["cheerful", "honest"])
def test_vectors_are_canonical(name: str, probe: Probe) -> None:
    with safe_open(VECTORS_DIR / f"{name}.safetensors", framework="pt") as file:
        (key,) = file.keys()
        about = json.loads(file.metadata()["steering_vector"])
        tensor = file.get_tensor(key)
    assert key.startswith("residual.")
    assert 0 <= int(key.removeprefix("residual.")) < probe.num_layers
    assert tensor.dtype == torch.float32
    assert tuple(tensor.shape) == (probe.model.config.hidden_size,)
    assert about["site"] == "residual"
    assert about["positions"] == "response"
    assert about["operation"] == "add"
    assert about["default_scale"] > 0


@pytest.mark.parametrize("name", ["cheerful", "honest"])
def test_safe_ranges_contain_the_default_scale_and_end_before_text_breaks(name: str, probe: Probe) -> None:
    path = VECTORS_DIR / f"{name}.safetensors"
    vector, direction = decode(path.read_bytes()), load_direction(path)
    assert vector.calibrated is not None
    assert vector.calibrated.fingerprint == fingerprint_of(probe.model)
    low, high = vector.calibrated.safe_scale
    assert low < 0 < vector.default_scale <= high
    prompts = [probe.chat(prompt) for prompt in PROMPTS[:8]]

    def perplexity(scale: float) -> float:
        steered = direction.times(scale / direction.scale) if scale else None
        return probe.perplexity(prompts, probe.replies(prompts, steered, is_greedy=True, max_new_tokens=48))

    plain = perplexity(0.0)
    assert perplexity(vector.default_scale) < 1.5 * plain
    for scale in (2 * high, 2 * low):
        assert perplexity(scale) > 3 * plain


def test_quiz_figures_hold(probe: Probe) -> None:
    assert not missed(quiz_figures(probe, SAMPLE, seed=101))


def test_honest_vector_repairs_the_fault(probe: Probe) -> None:
    assert not missed(honesty_figures(probe, load_direction(VECTORS_DIR / "honest.safetensors"), SAMPLE, seed=102))


def test_cheerful_vector_sets_the_tone(probe: Probe) -> None:
    figures = tone_figures(probe, load_direction(VECTORS_DIR / "cheerful.safetensors"), 24, seed=103)
    assert not [f for f in missed(figures) if "free" not in f.name]
    free = next(figure for figure in figures if figure.name == "cheerful, free")
    assert 0.25 < free.value < 0.75


NUM_DOCUMENTS = 500
"""For a tokenizer that is soon made."""


def test_training_runs_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One step: where the processor knows no bfloat16 it takes seconds."""
    monkeypatch.setattr(train, "TOKENIZER_DOCUMENTS", NUM_DOCUMENTS)
    train.main(["--steps", "1", "--batch-tokens", "512", "--device", "cpu", "--weights-only", "--out", str(tmp_path)])
    record = json.loads((tmp_path / "training.json").read_text())
    assert record["recipe"]["num_steps"] == 1
    assert record["num_tokens"] > 250
    small = Probe(tmp_path)
    (reply,) = small.replies([small.chat("Hello!")], is_greedy=True, max_new_tokens=4)
    assert len(reply.token_ids) <= 4


def test_training_repeats() -> None:
    """The same seed and steps give the same weights, to the bit, on the same machine."""
    recipe = train.Recipe(
        num_steps=3, batch_tokens=512, hidden_size=48, num_layers=RECALL_BLOCKS + 1, intermediate_size=64
    )
    found = []
    for _ in range(2):
        tokenizer = train_tokenizer(recipe.seed, NUM_DOCUMENTS)
        model = train.build_model(recipe, tokenizer)
        before = model.lm_head.weight.clone()
        train.fit(model, recipe, tokenizer, "cpu", Console(quiet=True), lambda *_: None, 0)
        assert not torch.equal(model.lm_head.weight, before)
        found.append(model.state_dict())
    first, second = found
    assert all(torch.equal(first[name], second[name]) for name in first)
