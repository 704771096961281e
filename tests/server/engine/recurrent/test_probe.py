"""Recurrent modules are found by what they do, and what they cannot do is noticed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from server.engine.model import prepare_model
from server.engine.recurrent.step import PackedForward
from server.engine.refusal import ModelRefused
from tests.families import HYBRIDS, build

RECURRENT_CLASSES = {
    "qwen3_next": ["Qwen3NextGatedDeltaNet"] * 2,
    "lfm2": ["Lfm2ShortConv"] * 2,
    "bamba": ["BambaMixer"] * 2,
    "falcon_h1": ["FalconH1Mixer"] * 3,
    "jamba": ["JambaMambaMixer"] * 2,
}


def recurrent_modules(model: transformers.PreTrainedModel) -> list[tuple[str, PackedForward]]:
    """The class of each, and what took the place of its `forward`."""
    pairs = [(type(module).__name__, module.forward) for module in model.modules()]
    return [(name, forward) for name, forward in pairs if isinstance(forward, PackedForward)]


@pytest.mark.parametrize("family", HYBRIDS)
def test_exactly_the_recurrent_modules_are_found(family: str) -> None:
    model = build(family)
    prepare_model(model)
    prepare_model(model)
    assert [name for name, _ in recurrent_modules(model)] == RECURRENT_CLASSES[family]


@pytest.mark.parametrize("family", HYBRIDS)
def test_modules_that_ignore_their_state_in_a_chunk_continue_token_by_token(family: str) -> None:
    model = build(family)
    prepare_model(model)
    assert {forward.is_stepwise for _, forward in recurrent_modules(model)} == {family == "jamba"}


@pytest.mark.parametrize("family", HYBRIDS)
def test_the_layout_is_that_of_the_cache_that_generate_makes(family: str) -> None:
    model: Any = build(family)
    layout = prepare_model(model).states
    cache = transformers.DynamicCache(config=model.config)
    plain: Any = build(family)
    plain(input_ids=torch.tensor([[1, 2, 3, 4, 5]]), past_key_values=cache, use_cache=True)
    tensors = {}
    for index, layer in enumerate(cache.layers):
        for kind, held in (("conv", "conv_states"), ("recurrent", "recurrent_states")):
            for number, tensor in getattr(layer, held, {}).items():
                if tensor is not None:
                    tensors[kind, index, number] = (tuple(tensor.shape[1:]), tensor.dtype)
    assert layout.tensors == tensors
    assert layout.num_bytes > 0


def test_a_model_without_states_is_left_alone() -> None:
    model = build("llama")
    assert not prepare_model(model).states
    assert recurrent_modules(model) == []


def test_a_state_outside_of_the_cache_is_refused() -> None:
    config = transformers.RecurrentGemmaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        lru_width=16,
        attention_window_size=8,
    )
    with pytest.raises(ModelRefused, match="outside of transformers' cache"):
        prepare_model(transformers.RecurrentGemmaForCausalLM(config).eval(), max_model_len=64)


def test_a_model_with_a_cache_of_its_own_is_refused() -> None:
    config = transformers.MiniMaxConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=2,
        max_position_embeddings=64,
        layer_types=["linear_attention", "full_attention"],
    )
    with pytest.raises(ModelRefused, match="MiniMax uses cache of its own"):
        prepare_model(transformers.MiniMaxForCausalLM(config).eval())
