"""The engine on published weights: the published text of stories260K, and TinyStories-656K against `generate`."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from server.engine.model import load_model
from server.engine.request import EngineRequest, Generate
from tests.reference import Steer, greedy
from tests.server.engine.driving import GREEDY, engine_of, plan_of, run, tokens_of
from tests.shared_files import shared

OPENINGS = [
    "Once upon a time, there was a little dog",
    "Tom and Lily went to the park. They",
    "The sun was shining and",
    "One day, a bird",
]


@pytest.mark.parametrize("max_batch_tokens", [1, 512])
def test_stories260k_gives_its_published_text(max_batch_tokens: int) -> None:
    folder = shared("models/stories260K")
    golden = json.loads((folder / "golden.json").read_text())
    engine = engine_of(load_model(folder, device="cpu"), max_batch_tokens=max_batch_tokens)
    request = EngineRequest("x", tuple(golden["input_ids"]), Generate(golden["max_new_tokens"], GREEDY))
    tokens = tokens_of(run(engine, [request])["x"])
    text = str(AutoTokenizer.from_pretrained(folder).decode(tokens, skip_special_tokens=True))
    assert text.strip() == golden["text"].strip()
    engine.close()


def test_tinystories_equals_generate_steered_and_not() -> None:
    folder = shared("models/TinyStories-656K")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    prompts = [tuple(tokenizer(text).input_ids) for text in OPENINGS]
    steer = Steer(torch.randn(128, generator=torch.Generator().manual_seed(0)), 0, scale=0.6, positions="all")
    engine = engine_of(load_model(folder, device="cpu"))
    requests = [EngineRequest(str(index), prompt, Generate(40, GREEDY)) for index, prompt in enumerate(prompts)]
    requests += [
        EngineRequest(f"steered {index}", prompt, Generate(40, GREEDY), plan_of(steer))
        for index, prompt in enumerate(prompts)
    ]
    outputs = run(engine, requests)
    for index, prompt in enumerate(prompts):
        plain = model.generate(torch.tensor([prompt]), max_new_tokens=40, do_sample=False)[0, len(prompt) :].tolist()
        assert tokens_of(outputs[str(index)]) == plain[: len(tokens_of(outputs[str(index)]))]
        steered, _ = greedy(model, prompt, 40, (steer,))
        assert tokens_of(outputs[f"steered {index}"]) == steered[: len(tokens_of(outputs[f"steered {index}"]))]
        assert steered != plain
    engine.close()


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks transformers by an old name
def test_a_lora_adapter_is_merged_before_steering(tmp_path_factory: pytest.TempPathFactory) -> None:
    peft = pytest.importorskip("peft")
    folder = shared("models/TinyStories-656K")
    adapter = tmp_path_factory.mktemp("adapter")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    torch.manual_seed(0)
    adapted = peft.get_peft_model(model, config)
    adapted.save_pretrained(adapter)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = tuple(tokenizer(OPENINGS[0]).input_ids)
    plain = greedy(adapted.merge_and_unload(), prompt, 20)[0]
    engine = engine_of(load_model(folder, device="cpu", adapter=str(adapter)))
    tokens = tokens_of(run(engine, [EngineRequest("x", prompt, Generate(20, GREEDY))])["x"])
    assert tokens == plain[: len(tokens)]
    engine.close()
