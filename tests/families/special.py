"""What a family needs besides the common sizes, by model type: kinds of layers, and values that must fit each other.

A part of a composite configuration is a dictionary; with `model_type` it is of that type.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.families.sizes import HIDDEN, VOCABULARY, WINDOW

ABSENT = "(left out)"
"""The value of a field that keeps its own default."""

_FULL, _SLIDING, _LINEAR = "full_attention", "sliding_attention", "linear_attention"
_INDEXED, _CONV = "indexed_attention", "conv"

_SLIDING_FIRST = {"layer_types": [_SLIDING, _FULL, _SLIDING, _FULL]}
_FULL_FIRST = {"layer_types": [_FULL, _SLIDING, _SLIDING, _FULL]}
_LINEAR_FIRST = {"layer_types": [_LINEAR, _FULL, _LINEAR, _FULL]}
_CONV_FIRST = {"layer_types": [_CONV, _FULL, _CONV, _FULL]}
_DENSE_FIRST = {"mlp_layer_types": ["dense", "sparse", "sparse", "sparse"]}
_ALL_HEADS = {"num_key_value_heads": 4}
_NO_WINDOW = {"use_sliding_window": False}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_MULTIMODAL_ROPE = _ROPE | {"mrope_section": [2, 1, 1]}
_HALF_ROPE = _ROPE | {"partial_rotary_factor": 0.5, "mrope_section": [1, 1, 0]}
_WHOLE_ROPE = _MULTIMODAL_ROPE | {"partial_rotary_factor": 1.0}
_MULTIPLIERS = {"embedding_multiplier": 3.0, "residual_multiplier": 0.53, "attention_multiplier": 0.3}
_ENDS = {"bos_token_id": 1, "eos_token_id": 2}
_CAPPED = {"query_pre_attn_scalar": 8, "attn_logit_softcapping": 5.0}
_GEMMA4 = {"pad_token_id": 0, "global_head_dim": 16, "final_logit_softcapping": 10.0}
_GEMMA4_SHARING = _GEMMA4 | {
    "layer_types": [_SLIDING, _FULL] * 3,
    "num_hidden_layers": 6,
    "num_kv_shared_layers": 2,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": VOCABULARY,
    "num_experts": ABSENT,
}
_GEMMA4_UNIFIED = _GEMMA4 | _SLIDING_FIRST
_GEMMA3N = {
    "pad_token_id": 0,
    "layer_types": [_SLIDING, _FULL, _SLIDING, _SLIDING, _FULL, _SLIDING],
    "num_hidden_layers": 6,
    "num_kv_shared_layers": 2,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": VOCABULARY,
    "activation_sparsity_pattern": [0.5] + [0.0] * 5,
    "laurel_rank": 4,
}
_QWEN4 = {
    "layer_types": [_LINEAR, _INDEXED, _LINEAR, _INDEXED],
    "hc_lowrank": 8,
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 4,
    "indexer_compress_ratio": 2,
    "rope_parameters": _HALF_ROPE,
}
_LLAMA4 = {
    "attention_chunk_size": 8,
    "interleave_moe_layer_step": 2,
    "attn_temperature_tuning": True,
    "floor_scale": 4,
}
_DOTS3 = _ALL_HEADS | {
    "layer_types": [_INDEXED, _SLIDING, _INDEXED, _SLIDING],
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 4,
    "swa_q_lora_rank": 24,
    "swa_kv_lora_rank": 16,
    "swa_qk_nope_head_dim": 8,
    "swa_qk_rope_head_dim": 8,
    "swa_v_head_dim": 12,
    "swa_head_dim": 16,
}
_INKLING = {
    "layer_types": ["hybrid_sliding", "hybrid"] * 2,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "swa_head_dim": 8,
    "sliding_window_size": WINDOW,
    "d_rel": 4,
    "rel_extent": 8,
    "unpadded_vocab_size": VOCABULARY,
}
_GLM5_NEXT = (
    _ALL_HEADS
    | _DENSE_FIRST
    | {
        "layer_types": [_LINEAR, _INDEXED] * 2,
        "index_topk": 16,
        "index_kpool": 4,
        "qk_rope_head_dim": 0,
    }
)
_MINIMAX_M3 = {
    "layer_types": [_FULL, "minimax_m3_sparse"] * 2,
    "rotary_dim": 4,
    "index_block_size": 4,
    "index_topk_blocks": 2,
    "index_local_blocks": 1,
}
_BLT_PART = {"num_key_value_heads": 4, "head_dim": 8}
_MUSE = {"layer_types": [_SLIDING, _FULL] * 2, "pad_token_id": 0}


def _each(names: str, changes: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return dict.fromkeys(names.split(), changes)


SPECIAL: Mapping[str, Mapping[str, Any]] = {
    # windows, caps and other kinds of attention
    "afmoe": _SLIDING_FIRST,
    "beam": _SLIDING_FIRST,
    "cohere": {"use_qk_norm": True},
    "cohere2": _SLIDING_FIRST,
    "cohere2_moe": _SLIDING_FIRST,
    "cohere_compass_text": {"layer_types": [_FULL] * 4, "rope_parameters": {_FULL: _ROPE}},
    "cwm": _SLIDING_FIRST | _ENDS,
    "exaone4": _SLIDING_FIRST,
    "exaone_moe": _SLIDING_FIRST | _DENSE_FIRST,
    "flint": _SLIDING_FIRST,
    "gemma2": _CAPPED,
    "gemma3_text": {
        "query_pre_attn_scalar": 8,
        "layer_types": [_SLIDING, _SLIDING, _FULL, _SLIDING],
        "pad_token_id": 0,
    },
    "gemma3n_text": _GEMMA3N,
    "gemma4_text": _GEMMA4_SHARING,
    "gemma4_unified_text": _GEMMA4_UNIFIED,
    "glm4_moe": {"use_qk_norm": True},
    "gpt_bigcode": {"multi_query": True},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": WINDOW},
    "gpt_neox": {"num_key_value_heads": ABSENT},
    "gpt_oss": _SLIDING_FIRST,
    "kolibri1": _SLIDING_FIRST,
    "laguna": _FULL_FIRST | _DENSE_FIRST,
    "llama4_text": _LLAMA4,
    "mellum": _FULL_FIRST,
    "mimo_v2_flash": _FULL_FIRST,
    "modernbert-decoder": _ENDS
    | {"local_attention": 2 * WINDOW, "pad_token_id": 1, "cls_token_id": 1, "sep_token_id": 2},
    "olmo3": _SLIDING_FIRST,
    "olmoe": {"sliding_window": ABSENT},
    "phimoe": {"sliding_window": WINDOW},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 2},
    "qwen2_moe": _NO_WINDOW,
    "qwen3": {"use_sliding_window": True, "max_window_layers": 2},
    "qwen3_moe": _NO_WINDOW,
    "smollm3": {"use_sliding_window": True},
    "stablelm": {"use_parallel_residual": True, "qk_layernorm": True},
    "vaultgemma": _CAPPED,
    # latent attention, whose heads all have keys and values of their own
    **_each("axk1 axk2 deepseek_v2 deepseek_v3 deepseek_v32 glm4_moe_lite glm_moe_dsa", _ALL_HEADS),
    **_each("hy_v4 minicpm3 youtu", _ALL_HEADS),
    "deepseek_v4": {
        "layer_types": [_SLIDING, "heavily_compressed_attention", "compressed_sparse_attention", _SLIDING],
        "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8},
        "q_lora_rank": 16,
        "o_groups": 2,
        "o_lora_rank": 8,
        "head_dim": 16,
        "partial_rotary_factor": 0.5,
        "num_key_value_heads": 1,
        "hc_mult": 2,
        "index_topk": 2,
    },
    "dots3_note_text": _DOTS3,
    "longcat_flash": _ALL_HEADS
    | {
        "num_layers": 2,
        "num_hidden_layers": ABSENT,
        "head_dim": ABSENT,
        "ffn_hidden_size": 48,
        "expert_ffn_hidden_size": 24,
        "zero_expert_num": 2,
    },
    # scales
    "granite": _MULTIPLIERS | {"logits_scaling": 2.0},
    "granitemoe": _MULTIPLIERS | {"logits_scaling": 2.0},
    "granitemoeshared": _MULTIPLIERS | {"logits_scaling": 2.0},
    "granite_swa": _MULTIPLIERS | _SLIDING_FIRST,
    "granitemoe_swa": _MULTIPLIERS | _SLIDING_FIRST,
    "hyperclovax": _MULTIPLIERS | {"logits_scaling": 2.0},
    # experts
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "jetmoe": _ALL_HEADS | {"kv_channels": 8},
    # recurrent and convolution layers
    "bailing_hybrid": _ALL_HEADS | {"layer_group_size": 2},
    "bamba": {"attn_layer_indices": [1, 3]},
    "falcon_mamba": {"state_size": 8},
    "granitemoehybrid": _MULTIPLIERS | _LINEAR_FIRST,
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    "kimi_linear": _ALL_HEADS | _LINEAR_FIRST,
    "lfm2": _CONV_FIRST,
    "lfm2_moe": _CONV_FIRST,
    "lfm3": _CONV_FIRST,
    "mamba": {"state_size": 8},
    "mamba2": {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8},
    "minimax": _LINEAR_FIRST | {"block_size": 8},
    "nemotron_h": {
        "layers_block_type": [_LINEAR, "moe", _FULL, "mlp"],
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "n_groups": 1,
        "ssm_state_size": 8,
        "chunk_size": 8,
        "use_mamba_kernels": False,
    },
    "olmo_hybrid": _LINEAR_FIRST,
    "qwen3_next": _LINEAR_FIRST,
    "qwen3_5_text": _LINEAR_FIRST | {"rope_parameters": _HALF_ROPE},
    "qwen3_5_moe_text": _LINEAR_FIRST | {"rope_parameters": _HALF_ROPE},
    "qwen4_exp_text": _QWEN4,
    "recurrent_gemma": {
        "block_types": ("recurrent", "attention"),
        "attention_window_size": WINDOW,
        "lru_width": HIDDEN,
        "num_key_value_heads": 1,
    },
    "rwkv": {"context_length": 256, "attention_hidden_size": HIDDEN},
    "xlstm": {"num_heads": 4, "embedding_dim": HIDDEN, "chunk_size": 8},
    "zamba": _ALL_HEADS
    | {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False, "attention_head_dim": 16},
    "zamba2": _ALL_HEADS
    | {
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
        "n_mamba_heads": 8,
        "chunk_size": 8,
        "use_mamba_kernels": False,
    },
    "zaya": {"layer_types": ["hybrid", "hybrid_sliding"] * 2, "router_hidden_size": 16, "num_experts_per_tok": 1},
    # others of their own kind
    "big_bird": {"attention_type": "original_full"},
    "bigbird_pegasus": {"attention_type": "original_full"},
    "blt": {
        "vocab_size": VOCABULARY,
        "encoder_hash_byte_group_vocab": 64,
        "encoder_hash_byte_group_size": [3],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "patcher_config": _BLT_PART,
        "global_config": _BLT_PART,
        "encoder_config": _BLT_PART | {"hidden_size_global": HIDDEN},
        "decoder_config": _BLT_PART | {"hidden_size_global": HIDDEN},
    },
    "cpmant": {"dim_head": 8, "dim_ff": 48, "position_bias_num_buckets": 32, "position_bias_max_distance": 64},
    "doge": {"keep_window_size": 8},
    "hrm_text": {"num_hidden_layers": 2, "H_cycles": 2, "L_cycles": 2},
    "inkling_text": _INKLING | {"mlp_layer_types": ["dense", "sparse"] * 2, "logits_mup_width_multiplier": 2.0},
    "inkling2_text": _INKLING | {"n_layers_per_attn_res_block": 2},
    "minimax_m3_vl_text": _MINIMAX_M3,
    "mistral4": _ALL_HEADS | {"rope_parameters": None},
    "moshi": {"audio_vocab_size": 64, "ffn_dim": 96, "num_codebooks": 2},
    "prophetnet": {
        "num_decoder_layers": 4,
        "num_encoder_layers": 2,
        "num_decoder_attention_heads": 4,
        "num_encoder_attention_heads": 4,
        "is_encoder_decoder": False,
        "add_cross_attention": False,
    },
    "reformer": {
        "attn_layers": ["local", "lsh", "local", "lsh"],
        "axial_pos_shape": (16, 16),
        "axial_pos_embds_dim": (16, 16),
        "attention_head_size": 8,
        "feed_forward_size": 48,
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8,
        "num_buckets": 4,
    },
    "rembert": {"input_embedding_size": 16, "output_embedding_size": 32},
    "roc_bert": {
        "pad_token_id": 0,
        "eos_token_id": 2,
        "pronunciation_embed_dim": 8,
        "shape_embed_dim": 8,
        "pronunciation_vocab_size": 20,
        "shape_vocab_size": 20,
    },
    "xlnet": {"d_inner": 48},
    "xmod": {"default_language": "en_XX", "pad_token_id": 1},
    **_each("camembert data2vec-text roberta roberta-prelayernorm xlm-roberta xlm-roberta-xl", {"pad_token_id": 1}),
    **_each("bart blenderbot blenderbot-small marian mbart mvp pegasus plbart", {"forced_eos_token_id": None}),
    # composites: the language model, and what its towers need
    "cohere_compass": {"text_config": {"layer_types": [_FULL] * 4, "rope_parameters": {_FULL: _ROPE}}},
    "cosmos3_omni": {"text_config": {"rope_parameters": _MULTIMODAL_ROPE}},
    "chameleon": {"vocabulary_map": {"<image>": 507}},
    "cosmos3_edge": {"text_config": {"rope_parameters": _MULTIMODAL_ROPE}},
    "deepseek_ocr2": {"text_config": _DENSE_FIRST},
    "dots3_note": {
        "text_config": _DOTS3,
        "vision_config": {"num_hidden_layers": ABSENT},
        "audio_config": {"adapter_input_size": HIDDEN},
    },
    "evolla": {"pad_token_id": 0},
    "florence2": {"vision_config": {"patch_size": ABSENT, "num_heads": ABSENT, "depth": ABSENT, "window_size": ABSENT}},
    "fun_asr_nano": {"adaptor_config": {"intermediate_size": 8}},
    "emu3": {"text_config": _ENDS | {"pad_token_id": 0}, "vocabulary_map": {"<image>": 507}},
    "ernie4_5_vl_moe": {
        "text_config": _DENSE_FIRST | {"moe_intermediate_size": [24, 24], "rope_parameters": _MULTIMODAL_ROPE}
    },
    "fuyu": {"text_config": {"model_type": "persimmon"}, "image_size": 16, "patch_size": 4},
    "gemma3": {"mm_tokens_per_image": 4, "vision_config": {"num_hidden_layers": 4}},
    "gemma4_assistant": {
        "text_config": _GEMMA4_SHARING
        | {
            "model_type": "gemma4_text",
            "hidden_size_per_layer_input": 0,
            "vocab_size_per_layer_input": 0,
            "num_kv_shared_layers": 6,
        },
        "backbone_hidden_size": HIDDEN,
        "num_centroids": 8,
        "centroid_intermediate_top_k": 2,
    },
    "gemma4_unified_assistant": {
        "text_config": _GEMMA4_UNIFIED | {"model_type": "gemma4_unified_text", "num_kv_shared_layers": 4},
        "backbone_hidden_size": HIDDEN,
        "num_centroids": 8,
        "centroid_intermediate_top_k": 2,
    },
    "glm46v": {"text_config": {"model_type": "glm4v_text", "rope_parameters": _WHOLE_ROPE}},
    "glmga": {"text_config": {"model_type": "glm4v_text", "rope_parameters": _WHOLE_ROPE}},
    **_each("glm4v glm4v_moe glm_ocr", {"text_config": {"rope_parameters": _WHOLE_ROPE}}),
    "glm5_next": {"text_config": _GLM5_NEXT},
    "internvl": {"text_config": {"model_type": "qwen3", **_NO_WINDOW}},
    "kimi_k25": {"text_config": {"model_type": "deepseek_v3"}},
    "lfm2_vl": {"text_config": {"model_type": "lfm2"}},
    "mistral3": {"text_config": {"model_type": "ministral3", "pad_token_id": 0}},
    "mllama": {"text_config": _ENDS | {"cross_attention_layers": [1, 3], "pad_token_id": 0}},
    "molmo2": {"vit_config": {"image_size": ABSENT}},
    "nemotron_h_omni": {"vision_config": {"video_temporal_patch_size": 2}},
    "nemo_speechlm": {"word_timestamp_config": {"audio_hidden_size": HIDDEN}},
    "qwen3_asr": _ENDS | {"pad_token_id": 0, "text_config": {"pad_token_id": 0}},
    "moss_transcribe_diarize": {"text_config": {"model_type": "qwen3", **_NO_WINDOW}},
    "muse_glimmer": {"text_config": _MUSE},
    "muse_spark": {
        "text_config": _MUSE | {"moe_hidden_size": 24},
        "vision_config": {"num_hidden_layers": 4},
        "audio_config": {"num_hidden_layers": 4},
    },
    "paligemma": {"text_config": {"model_type": "gemma", "pad_token_id": 0}},
    "phi4_multimodal": {
        "vision_config": {"image_token_id": 507},
        "audio_config": {"audio_token_id": 508, "input_size": 16},
    },
    "step3p7": {"text_config": _ENDS | {"pad_token_id": 0}},
    **_each(
        "hunyuan_vl paddleocr_vl qwen2_5_omni_thinker qwen2_5_vl qwen2_vl qwen3_omni_moe_thinker qwen3_vl qwen3_vl_moe",
        {"text_config": {"rope_parameters": _MULTIMODAL_ROPE}},
    ),
}
"""By model type."""
