"""Tiny seeded models of every supported family, built from their configurations: random weights, real code."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import torch
import transformers

VOCABULARY = 101
HIDDEN = 32
LAYERS = 3

_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.25,  # well separated logits: a tie of two tokens would test nothing
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
    "tie_word_embeddings": False,
}


def _config(name: str, **changes: object) -> transformers.PretrainedConfig:
    config = getattr(transformers, name)(**(copy.deepcopy(_COMMON) | changes))
    assert isinstance(config, transformers.PretrainedConfig)
    return config


HYBRIDS: dict[str, Callable[[], transformers.PretrainedConfig]] = {
    "qwen3_next": lambda: _config(
        "Qwen3NextConfig",
        layer_types=["linear_attention", "full_attention", "linear_attention"],
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=24,
        shared_expert_intermediate_size=24,
    ),
    "lfm2": lambda: _config(
        "Lfm2Config", layer_types=["conv", "full_attention", "conv"], block_auto_adjust_ff_dim=False
    ),
    "bamba": lambda: _config(
        "BambaConfig", attn_layer_indices=[1], mamba_n_heads=8, mamba_d_head=8, mamba_d_state=8, mamba_chunk_size=8
    ),
    "falcon_h1": lambda: _config(
        "FalconH1Config", mamba_d_ssm=64, mamba_n_heads=8, mamba_d_head=8, mamba_d_state=8, mamba_chunk_size=8
    ),
    "jamba": lambda: _config("JambaConfig", attn_layer_period=2, attn_layer_offset=1, mamba_d_state=8, num_experts=2),
}
"""Models that have recurrent layers beside their attention, or in place of it."""

CONFIGS: dict[str, Callable[[], transformers.PretrainedConfig]] = {
    "llama": lambda: _config("LlamaConfig"),
    "mistral": lambda: _config("MistralConfig", sliding_window=7),
    "qwen2": lambda: _config("Qwen2Config"),
    "qwen3": lambda: _config("Qwen3Config"),
    "gemma2": lambda: _config("Gemma2Config", sliding_window=7, query_pre_attn_scalar=8, attn_logit_softcapping=5.0),
    "gemma3": lambda: _config(
        "Gemma3TextConfig",
        sliding_window=7,
        query_pre_attn_scalar=8,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
    ),
    "phi3": lambda: _config("Phi3Config"),
    "gpt_neox": lambda: _config("GPTNeoXConfig", num_key_value_heads=4),
    "olmo2": lambda: _config("Olmo2Config"),
    "mixtral": lambda: _config("MixtralConfig", num_local_experts=4, num_experts_per_tok=2),
    "qwen3_moe": lambda: _config(
        "Qwen3MoeConfig", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, norm_topk_prob=True
    ),
    "gpt_oss": lambda: _config(
        "GptOssConfig",
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=7,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    **HYBRIDS,
}

_WIDE = {"head_dim": 32, "num_attention_heads": 2, "num_key_value_heads": 1}

WITH_WIDE_HEADS: dict[str, Callable[[], transformers.PretrainedConfig]] = {
    "wide_llama": lambda: _config("LlamaConfig", **_WIDE),
    "wide_mistral": lambda: _config("MistralConfig", sliding_window=7, **_WIDE),
    "wide_qwen2": lambda: _config("Qwen2Config", num_attention_heads=1, num_key_value_heads=1, head_dim=32),
    "wide_qwen3": lambda: _config("Qwen3Config", **_WIDE),
    "wide_gemma2": lambda: _config(
        "Gemma2Config", sliding_window=7, query_pre_attn_scalar=32, tie_word_embeddings=True, **_WIDE
    ),
    "wide_gemma3": lambda: _config(
        "Gemma3TextConfig",
        sliding_window=7,
        query_pre_attn_scalar=32,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
        **_WIDE,
    ),
}
"""Models that vLLM runs on a CPU, where its kernels have no heads of 8. It ties some families' embeddings always."""


def build(family: str, seed: int = 0) -> transformers.PreTrainedModel:
    """A float32 model of `family` with weights drawn from `seed`; the same seed gives the same weights."""
    torch.manual_seed(seed)
    config = (CONFIGS | WITH_WIDE_HEADS)[family]()
    model: transformers.PreTrainedModel = transformers.AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation="eager"
    )
    model.eval()
    return model


@functools.cache
def plain_model(family: str) -> transformers.PreTrainedModel:
    """What `build` makes, made once, to ask and not to change."""
    return build(family)
