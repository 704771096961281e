"""What is kept of a token: one latent for multi-head latent attention, and shared keys and values once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    Gemma3nTextConfig,
    Gemma3TextConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from server.engine.attention.interface import LayerAttention, Reach, page_groups
from server.engine.attention.stretches import StretchAttention
from server.engine.evidence import hand_over_attention
from server.engine.model import prepare_model
from server.engine.request import EngineRequest, Generate
from tests.server.engine.driving import GREEDY, engine_of, prompt_of, run, tokens_of

SMALL: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 32,
    "intermediate_size": 32,
    "max_position_embeddings": 128,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
HEADS_OF_DEEPSEEK_V3 = {
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "kv_lora_rank": 512,
    "q_lora_rank": 8,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
}


def deepseek_v3(**sizes: Any) -> DeepseekV3Config:
    return DeepseekV3Config(**SMALL, num_hidden_layers=2, first_k_dense_replace=2, **sizes)


def gemma_3n() -> Gemma3nTextConfig:
    """With the published heads, in ten layers of which the last four share, as the last fifteen of thirty-five do."""
    return Gemma3nTextConfig(
        **SMALL | {"intermediate_size": [32] * 10},
        num_hidden_layers=10,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=256,
        num_kv_shared_layers=4,
        layer_types=(["sliding_attention"] * 4 + ["full_attention"]) * 2,
        activation_sparsity_pattern=[0.0] * 10,
        vocab_size_per_layer_input=256,
        hidden_size_per_layer_input=8,
        laurel_rank=4,
        sliding_window=16,
    )


def gemma_3() -> Gemma3TextConfig:
    return Gemma3TextConfig(
        **SMALL,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=256,
        sliding_window=16,
        layer_types=["sliding_attention"] * 5 + ["full_attention"],
    )


def build(config: PreTrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:  # far enough apart that greedy tokens mean something
                parameter.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)
    return model


def asked_by(config: PreTrainedConfig) -> list[LayerAttention]:
    layers = hand_over_attention(build(config), config.num_hidden_layers, context=128)
    assert None not in layers
    return [layer for layer in layers if layer is not None]


def as_given(layers: list[LayerAttention], heads: int, key_dim: int, value_dim: int) -> int:
    """Bytes a token in float16 when every layer keeps the keys and values that it is given."""
    return len(layers) * heads * (key_dim + value_dim) * 2


def test_latents_are_71_times_smaller_than_what_deepseek_v3_expands_them_to() -> None:
    layers = asked_by(deepseek_v3(**HEADS_OF_DEEPSEEK_V3))
    assert {(layer.kv_heads, layer.key_dim, layer.value_dim, layer.is_latent) for layer in layers} == {
        (1, 576, 512, True)
    }
    assert StretchAttention.bytes_per_token(layers, torch.float16) == (2 * 576 * 2,)
    assert as_given(layers, 128, 192, 128) / (2 * 576 * 2) == pytest.approx(71.1, abs=0.05)


def test_layers_that_share_keep_nothing_of_their_own() -> None:
    layers = asked_by(gemma_3n())
    assert [layer.shares for layer in layers] == [None] * 6 + [5, 5, 5, 4]
    windowed = [*layers[:4], layers[5]]
    of_groups = (as_given([layers[4]], 2, 256, 256), as_given(windowed, 2, 256, 256))
    assert StretchAttention.bytes_per_token(layers, torch.float16) == of_groups


def test_layers_with_a_window_have_pages_of_their_own() -> None:
    layers = asked_by(gemma_3())
    assert page_groups(layers) == (Reach(), Reach(window=16))
    of_groups = (as_given(layers[5:], 4, 256, 256), as_given(layers[:5], 4, 256, 256))
    assert StretchAttention.bytes_per_token(layers, torch.float16) == of_groups


def test_the_engine_generates_what_the_model_does_from_latents_and_shared_kv() -> None:
    small = {"num_attention_heads": 4, "num_key_value_heads": 4, "kv_lora_rank": 16, "qk_nope_head_dim": 8}
    for config in (deepseek_v3(**HEADS_OF_DEEPSEEK_V3 | small | {"qk_rope_head_dim": 4, "v_head_dim": 6}), gemma_3n()):
        prompts = [prompt_of(length) for length in (1, 9, 23)]
        plain: Any = build(config)
        expected = [
            plain.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False)[0, len(prompt) :].tolist()
            for prompt in prompts
        ]
        loaded = prepare_model(build(config))
        for changes in ({}, {"max_batch_tokens": 5}, {"num_pages": 9, "max_batch_tokens": 6}):
            requests = [EngineRequest(str(index), prompt, Generate(8, GREEDY)) for index, prompt in enumerate(prompts)]
            with_changes = engine_of(loaded, **changes)
            outputs = run(with_changes, requests)
            assert [tokens_of(outputs[str(index)]) for index in range(len(prompts))] == expected, changes
            with_changes.close()


@pytest.mark.parametrize("spoiled", ["bias", "subclass"])
def test_a_projection_that_is_no_plain_weight_is_left_as_it_is(spoiled: str) -> None:
    class Quantised(nn.Linear):
        """Stands for a module whose weight is not what multiplies."""

    config = deepseek_v3(**HEADS_OF_DEEPSEEK_V3 | {"num_attention_heads": 4, "num_key_value_heads": 4})
    model = build(config)
    for module in model.modules():
        linear = getattr(module, "kv_b_proj", None)
        if isinstance(linear, nn.Linear) and spoiled == "bias":
            linear.bias = nn.Parameter(torch.ones(linear.out_features))
        elif isinstance(linear, nn.Linear):
            linear.__class__ = Quantised
    layers = hand_over_attention(model, config.num_hidden_layers, context=128)
    assert [(layer.kv_heads, layer.is_latent) for layer in layers if layer] == [(4, False)] * 2
