"""The context that a model is served with, and that its position encoding is exact in all of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from server.engine.model import prepare_model
from server.engine.refusal import ModelRefused
from server.engine.request import EngineRequest, Generate
from tests.families import CONFIGS
from tests.server.engine.driving import GREEDY, engine_of, prompt_of, run, tokens_of

LENGTHS = (5, 50, 70, 120)


def scaled(family: str = "llama", **rope: Any) -> Any:
    """A tiny model of 256 positions whose RoPE is scaled from 64."""
    torch.manual_seed(0)
    config = CONFIGS[family]()
    config.rope_parameters = {"rope_theta": 10000.0, "original_max_position_embeddings": 64, **rope}
    config.original_max_position_embeddings = 64
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


def longrope() -> Any:
    return scaled(
        "phi3", rope_type="longrope", short_factor=[1.0, 1.1, 1.2, 1.3], long_factor=[2.0, 2.5, 3.0, 4.0], factor=4.0
    )


def generated(model: Any, prompt: tuple[int, ...], num_tokens: int = 6) -> list[int]:
    tokens = model.generate(torch.tensor([prompt]), max_new_tokens=num_tokens, do_sample=False)
    answer: list[int] = tokens[0, len(prompt) :].tolist()
    return answer


def answered(model: Any, max_model_len: int | None = None) -> list[list[int]]:
    """What the engine says to prompts of all `LENGTHS` that fit, run together."""
    engine = engine_of(prepare_model(model, max_model_len=max_model_len))
    prompts = [prompt_of(length) for length in LENGTHS if length + 6 <= engine.info.max_model_len]
    outputs = run(engine, [EngineRequest(str(p), prompt, Generate(6, GREEDY)) for p, prompt in enumerate(prompts)])
    engine.close()
    return [tokens_of(events) for events in outputs.values()]


@pytest.mark.parametrize("rope", [{"rope_type": "dynamic", "factor": 4.0}, {"rope_type": "linear", "factor": 4.0}])
def test_a_scaling_whose_frequencies_stay_is_exact_in_the_whole_context(rope: dict[str, Any]) -> None:
    expected = [generated(scaled(**rope), prompt_of(length)) for length in LENGTHS]
    assert answered(scaled(**rope)) == expected


def test_a_scaling_that_changes_with_the_batch_is_limited_to_where_it_does_not() -> None:
    """PhiMoE scales its angles by the longest sequence of the batch."""
    config = transformers.PhimoeConfig(
        vocab_size=101,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        num_local_experts=2,
        max_position_embeddings=256,
        sliding_window=None,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0] * 4,
            "long_factor": [2.0] * 4,
            "short_mscale": 1.1,
            "long_mscale": 1.4,
            "original_max_position_embeddings": 64,
        },
    )
    model = transformers.PhimoeForCausalLM(config).eval()
    assert prepare_model(model).info.max_model_len == 64
    with pytest.raises(ModelRefused, match=r"expected at most 64, got 128; .* depend on the longest sequence"):
        prepare_model(model, max_model_len=128)


def test_longrope_takes_its_short_factors_up_to_the_original_length() -> None:
    expected = [generated(longrope(), prompt_of(length)) for length in LENGTHS if length + 6 <= 64]
    assert answered(longrope()) == expected
    assert prepare_model(longrope()).info.max_model_len == 64
    assert prepare_model(longrope(), max_model_len=40).info.max_model_len == 40


def test_longrope_beyond_the_original_length_takes_its_long_factors_at_every_position() -> None:
    static = longrope()
    long, _ = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["longrope"](static.config, "cpu", seq_len=65)
    static.model.rotary_emb.rope_type = "default"
    static.model.rotary_emb.inv_freq.copy_(long)
    expected = [generated(static, prompt_of(length)) for length in LENGTHS]
    assert answered(longrope(), max_model_len=256) == expected
    assert expected[1] != generated(longrope(), prompt_of(LENGTHS[1]))


def test_a_context_beyond_the_models_is_refused() -> None:
    with pytest.raises(ModelRefused, match="expected at most 256"):
        prepare_model(scaled(rope_type="linear", factor=4.0), max_model_len=257)


def test_a_context_is_asked_for_only_where_it_lets_the_model_be_served() -> None:
    config = transformers.RecurrentGemmaConfig(
        vocab_size=101, hidden_size=32, num_hidden_layers=3, intermediate_size=96, num_attention_heads=4, lru_width=32
    )
    refused = transformers.RecurrentGemmaForCausalLM(config).eval()
    with pytest.raises(ModelRefused, match=r"keeps its state outside .*; serve it with transformers"):
        prepare_model(refused)
    served = transformers.MambaConfig(vocab_size=101, hidden_size=32, num_hidden_layers=2, state_size=8)
    with pytest.raises(ModelRefused, match="set --max-model-len"):
        prepare_model(transformers.MambaForCausalLM(served).eval())
    model = prepare_model(transformers.MambaForCausalLM(served).eval(), max_model_len=64)
    assert model.info.max_model_len == 64
