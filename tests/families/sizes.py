"""Sizes small enough for a test, by the names that configurations give them; a configuration takes those it has.

The shapes differ where a mix-up should show: two KV heads for four heads, values narrower than keys, four experts of
which two are used, a window that every prompt but the shortest leaves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

VOCABULARY = 512
HIDDEN = 32
WINDOW = 7
CONTEXT = 256
LAYERS = 4

_FEED_FORWARD = 48
_EXPERT = 24
_HEADS = 4

TEXT: Mapping[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": _FEED_FORWARD,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": _HEADS,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": CONTEXT,
    "sliding_window": WINDOW,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
    "tie_word_embeddings": False,
    "is_decoder": True,
    # the older names of the same
    "n_embd": HIDDEN,
    "d_model": HIDDEN,
    "emb_dim": HIDDEN,
    "n_layer": LAYERS,
    "n_layers": LAYERS,
    "num_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_layers": LAYERS,
    "n_head": _HEADS,
    "n_heads": _HEADS,
    "num_heads": _HEADS,
    "attention_heads": _HEADS,
    "decoder_attention_heads": _HEADS,
    "encoder_attention_heads": _HEADS,
    "n_inner": _FEED_FORWARD,
    "ffn_dim": _FEED_FORWARD,
    "dff": _FEED_FORWARD,
    "decoder_ffn_dim": _FEED_FORWARD,
    "encoder_ffn_dim": _FEED_FORWARD,
    "n_positions": CONTEXT,
    "n_ctx": CONTEXT,
    "max_seq_len": CONTEXT,
    "rotary_dim": 4,
    # latent attention
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,
    "index_topk": 6,
    "index_head_dim": 8,
    "index_n_heads": _HEADS,
    # experts
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": _EXPERT,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "moe_num_shared_experts": 1,
    "shared_intermediate_size": _EXPERT,
    "shared_expert_intermediate_size": _EXPERT,
    "shared_experts_intermediate_size": _EXPERT,
    "moe_shared_expert_intermediate_size": _EXPERT,
    "first_k_dense_replace": 1,
    "num_dense_layers": 1,
    "dense_intermediate_size": _FEED_FORWARD,
    "intermediate_size_mlp": _FEED_FORWARD,
    # state space and linear attention
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_chunk_size": 8,
    "mamba_d_ssm": 64,
    "linear_num_heads": _HEADS,
    "linear_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": _HEADS,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
"""Of a language model."""

TOWER: Mapping[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "embed_dim": HIDDEN,
    "d_model": HIDDEN,
    "base_channels": HIDDEN,
    "mm_embed_dim": HIDDEN,
    "intermediate_size": _FEED_FORWARD,
    "ffn_dim": _FEED_FORWARD,
    "mlp_dim": _FEED_FORWARD,
    "d_ff": _FEED_FORWARD,
    "encoder_ffn_dim": _FEED_FORWARD,
    "decoder_ffn_dim": _FEED_FORWARD,
    "num_hidden_layers": 2,
    "num_layers": 2,
    "depth": 2,
    "num_blocks": 2,
    "num_res_blocks": 1,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "num_global_layers": 1,
    "num_attention_heads": _HEADS,
    "num_key_value_heads": _HEADS,
    "num_heads": _HEADS,
    "attention_heads": _HEADS,
    "encoder_attention_heads": _HEADS,
    "decoder_attention_heads": _HEADS,
    "head_dim": 8,
    "d_kv": 8,
    "in_channels": 3,
    "num_channels": 3,
    "output_channels": 16,
    "latent_channels": 4,
    "image_size": 16,
    "crop_size": 16,
    "patch_size": 4,
    "window_size": 2,
    "position_embedding_size": 64,
    "num_position_embeddings": 16,
    "max_position_embeddings": 64,
    "num_mel_bins": 16,
    "codebook_size": 64,
    "num_codebooks": 2,
    "ext_pw_out_channel": HIDDEN,
    "depthwise_separable_out_channel": HIDDEN,
    "nemo_conv_channels": HIDDEN,
    "adapter_in_dim": HIDDEN,
    "vision_output_dim": HIDDEN,
    "projector_input_dim": HIDDEN,
    # towards the language model
    "out_hidden_size": HIDDEN,
    "output_proj_dims": HIDDEN,
    "text_hidden_size": HIDDEN,
    "projector_output_dim": HIDDEN,
    "projection_hidden_dim": HIDDEN,
    "adapter_out_dim": HIDDEN,
}
"""Of what encodes images and sound."""
