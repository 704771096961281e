"""Variants of families: settings that change the computation, and that published checkpoints use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.families.sizes import LAYERS, WINDOW

_FULL = ["full_attention"] * LAYERS
_THETA = {"rope_theta": 10000.0}
_ORIGINAL = {"original_max_position_embeddings": 64}
_YARN = _THETA | _ORIGINAL | {"rope_type": "yarn", "factor": 4.0}
_NOT_SHARED = {"num_kv_shared_layers": 0, "hidden_size_per_layer_input": 0}
_PARTIAL = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}

VARIANTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    # windows and chunks
    "exaone4-nope": ("exaone4", {"layer_types": ["sliding_attention"] * 3 + ["full_attention"]}),
    "llama4-chunk-of-context": ("llama4_text", {"attention_chunk_size": 256}),
    "llama4-full": ("llama4_text", {"layer_types": _FULL, "attention_chunk_size": 256}),
    "mistral-full": ("mistral", {"sliding_window": None}),
    "phimoe-full": ("phimoe", {"sliding_window": None}),
    "qwen2-full": ("qwen2", {"use_sliding_window": False}),
    "qwen2_moe-window": ("qwen2_moe", {"use_sliding_window": True, "max_window_layers": 2, "sliding_window": WINDOW}),
    "qwen3_moe-window": ("qwen3_moe", {"use_sliding_window": True, "sliding_window": WINDOW}),
    "smollm3-nope": ("smollm3", {"use_sliding_window": False, "no_rope_layer_interval": 2}),
    # attention in both directions
    "bert-encoder": ("bert", {"is_decoder": False}),
    "gemma-bidirectional": ("gemma", {"use_bidirectional_attention": True}),
    "gemma2-bidirectional": ("gemma2", {"use_bidirectional_attention": True}),
    "gemma3-bidirectional": ("gemma3_text", {"use_bidirectional_attention": True}),
    "gemma4-bidirectional": ("gemma4_text", {"use_bidirectional_attention": "all"}),
    # heads and scores
    "cohere-no-qk-norm": ("cohere", {"use_qk_norm": False}),
    "gemma4-keys-are-values": (
        "gemma4_text",
        _NOT_SHARED | {"attention_k_eq_v": True, "num_global_key_value_heads": 1},
    ),
    "gpt2-inverse-layer": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    "gpt2-upcast": ("gpt2", {"reorder_and_upcast_attn": True, "scale_attn_by_inverse_layer_idx": True}),
    "gpt2-unscaled": ("gpt2", {"scale_attn_weights": False}),
    "gpt_bigcode-all-heads": ("gpt_bigcode", {"multi_query": False}),
    "olmo-clip": ("olmo", {"clip_qkv": 0.5}),
    "olmoe-clip": ("olmoe", {"clip_qkv": 0.5}),
    # blocks
    "gemma4-experts": (
        "gemma4_text",
        _NOT_SHARED | {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 24},
    ),
    "deepseek_v2-groups": (
        "deepseek_v2",
        {"topk_method": "group_limited_greedy", "n_group": 2, "topk_group": 1, "n_routed_experts": 4},
    ),
    "gpt_neox-sequential": ("gpt_neox", {"use_parallel_residual": False}),
    "stablelm-sequential": ("stablelm", {"use_parallel_residual": False, "use_qkv_bias": True, "qk_layernorm": False}),
    "opt-350m": ("opt", {"word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "gemma3-tied": ("gemma3_text", {"tie_word_embeddings": True}),
    # hybrid families whose layers all attend
    "bamba-attention": ("bamba", {"attn_layer_indices": [0, 1, 2, 3]}),
    "granitemoehybrid-attention": ("granitemoehybrid", {"layer_types": _FULL}),
    "granitemoehybrid-dense": (
        "granitemoehybrid",
        {"layer_types": _FULL, "num_local_experts": 0, "position_embedding_type": "rope"},
    ),
    "granitemoehybrid-dense-mamba": ("granitemoehybrid", {"num_local_experts": 0}),
    "jamba-attention": ("jamba", {"attn_layer_period": 1, "attn_layer_offset": 0}),
    "lfm2-attention": ("lfm2", {"layer_types": _FULL}),
    "minimax-attention": ("minimax", {"layer_types": _FULL}),
    "qwen3_5-attention": ("qwen3_5_text", {"layer_types": _FULL}),
    "qwen3_next-attention": ("qwen3_next", {"layer_types": _FULL}),
    "zamba2-hybrid": ("zamba2", {"layers_block_type": ["hybrid"] * LAYERS}),
    # positions
    "deepseek_v3-yarn": (
        "deepseek_v3",
        {"rope_parameters": _YARN | {"mscale": 1.0, "mscale_all_dim": 1.0, "beta_fast": 32, "beta_slow": 1}},
    ),
    "gpt_oss-yarn": (
        "gpt_oss",
        {"rope_parameters": _YARN | {"factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False}},
    ),
    "hunyuan-alpha": (
        "hunyuan_v1_dense",
        {"rope_parameters": _THETA | {"rope_type": "dynamic", "alpha": 1000.0, "factor": 1.0}},
    ),
    "llama-dynamic": ("llama", {"rope_parameters": _THETA | _ORIGINAL | {"rope_type": "dynamic", "factor": 4.0}}),
    "llama-dynamic-without-original": ("llama", {"rope_parameters": _THETA | {"rope_type": "dynamic", "factor": 4.0}}),
    "llama-linear": ("llama", {"rope_parameters": _THETA | {"rope_type": "linear", "factor": 4.0}}),
    "llama-llama3": (
        "llama",
        {
            "rope_parameters": _THETA
            | _ORIGINAL
            | {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        },
    ),
    "llama-partial": ("llama", {"rope_parameters": _PARTIAL | {"rope_type": "proportional"}}),
    "llama-yarn": ("llama", {"rope_parameters": _YARN}),
    "ministral3-yarn": (
        "ministral3",
        {
            "rope_parameters": _YARN
            | {"factor": 16.0, "original_max_position_embeddings": 8, "llama_4_scaling_beta": 0.1}
            | {"mscale": 1.0, "mscale_all_dim": 1.0, "beta_fast": 32.0, "beta_slow": 1.0}
        },
    ),
    "phi3-longrope": (
        "phi3",
        {
            "original_max_position_embeddings": 64,
            "rope_parameters": _THETA
            | _ORIGINAL
            | {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4},
        },
    ),
}
"""By name: the family, and the changes to its configuration."""
