"""What the probe says of a model's attention is what the model's configuration says."""

from __future__ import annotations

import pytest
import torch

from server.engine.evidence import hand_over_attention
from server.engine.model import prepare_model
from server.engine.refusal import ModelRefused
from tests.families import CONFIGS, LAYERS, build

RECURRENT_KINDS = ("linear_attention", "conv", "mamba")


@pytest.mark.parametrize("family", CONFIGS)
def test_each_layer_asks_for_what_the_configuration_says(family: str) -> None:
    config = CONFIGS[family]()
    windows = [getattr(config, "sliding_window", None)] * LAYERS
    for layer, kind in enumerate(getattr(config, "layer_types", None) or ()):
        windows[layer] = windows[layer] if kind == "sliding_attention" else None
    handed_over = hand_over_attention(build(family), LAYERS, context=config.max_position_embeddings)
    has_attention = [
        kind not in RECURRENT_KINDS for kind in getattr(config, "layer_types", None) or ["hybrid"] * LAYERS
    ]
    assert [layer is not None for layer in handed_over] == has_attention
    layers = [layer for layer in handed_over if layer is not None]
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    assert [(layer.kv_heads, layer.key_dim, layer.value_dim) for layer in layers] == [
        (heads, head_dim, head_dim)
    ] * sum(has_attention)
    assert [layer.reach.window if layer else None for layer in handed_over] == windows
    assert {layer.softcap for layer in layers} == {getattr(config, "attn_logit_softcapping", None)}
    assert {layer.has_sinks for layer in layers} == {family == "gpt_oss"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kv_of_a_token_is_sized_by_the_layers_and_the_dtype(dtype: torch.dtype) -> None:
    model = prepare_model(build("llama").to(dtype))  # type: ignore[arg-type]
    assert model.kv_bytes_per_token == (LAYERS * 2 * (8 + 8) * dtype.itemsize,)


def test_an_error_of_the_models_own_code_is_refused_with_a_way_out() -> None:
    model = build("llama")

    def forward(*values: object, **named: object) -> None:
        raise ValueError("You have to specify pixel_values")

    model.model.layers[0].forward = forward
    message = "cannot run in packed batches: ValueError: You have to specify pixel_values; serve it with transformers"
    with pytest.raises(ModelRefused, match=message):
        prepare_model(model)
