"""Invariant 1: greedy output equals transformers' `generate`, token for token, for every supported family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from server.engine.model import prepare_model
from server.engine.refusal import ModelRefused
from server.engine.request import EngineRequest, Generate
from tests.families import CONFIGS, build, plain_model
from tests.server.engine.driving import GREEDY, engine_of, loaded, prompt_of, run, tokens_of

LENGTHS = (1, 3, 9, 17, 30)
NUM_TOKENS = 8  # beyond every window


def generated(family: str, prompts: list[tuple[int, ...]]) -> list[list[int]]:
    """What transformers' own `generate` says, one prompt at a time."""
    model: Any = plain_model(family)
    answers = []
    for prompt in prompts:
        tokens = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=NUM_TOKENS,
            do_sample=False,
        )
        answers.append(tokens[0, len(prompt) :].tolist())
    return answers


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_greedy_equals_generate(family: str) -> None:
    """In chunks; that nothing else changes it is among the invariants (`test_invariants`)."""
    prompts = [prompt_of(length) for length in LENGTHS]
    expected = generated(family, prompts)
    model = loaded(family)
    requests = [EngineRequest(str(index), prompt, Generate(NUM_TOKENS, GREEDY)) for index, prompt in enumerate(prompts)]
    engine = engine_of(model, max_batch_tokens=5)
    assert [tokens_of(events) for events in run(engine, requests).values()] == expected
    engine.close()


def test_model_without_attention_interface_is_refused() -> None:
    config = transformers.BloomConfig(vocab_size=50, hidden_size=16, n_layer=2, n_head=2)
    model = transformers.BloomForCausalLM(config).eval()
    with pytest.raises(ModelRefused, match="custom attention function"):
        prepare_model(model)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_window_that_only_the_models_mask_has_is_kept() -> None:
    """PhiMoE does not tell its attention function about its window."""
    config = transformers.PhimoeConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=2,
        max_position_embeddings=64,
        sliding_window=7,
        initializer_range=0.3,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    model: Any = transformers.PhimoeForCausalLM(config).eval()
    prompt = prompt_of(20, vocabulary=50)
    expected = model.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False)[0, 20:].tolist()
    loaded = prepare_model(model)
    assert [layer.reach.window for layer in loaded.attention_layers if layer] == [7, 7]
    engine = engine_of(loaded, max_batch_tokens=6)
    assert tokens_of(run(engine, [EngineRequest("a", prompt, Generate(8, GREEDY))])["a"]) == expected
    engine.close()


def test_a_site_without_one_activation_a_token_is_not_offered() -> None:
    model = build("llama")
    assert "attention" in prepare_model(model).info.sites
    model.model.layers[2].post_attention_layernorm.register_forward_hook(lambda *given: given[2].repeat(1, 1, 2))
    model.model.layers[2].mlp = torch.nn.Sequential(torch.nn.Linear(64, 32))
    assert prepare_model(model).info.sites == ("residual", "attention", "mlp")


def test_blocks_are_told_from_other_lists_of_the_same_length() -> None:
    model = build("llama")
    model.model.a_projection = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in model.model.layers)
    assert prepare_model(model).sites.modules["residual"] == tuple(model.model.layers)
