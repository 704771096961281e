"""A model is served only if packed batches give what its own attention gives; whatever breaks that is found at load."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from server.engine.model import prepare_model
from server.engine.refusal import ModelRefused
from tests.families import CONFIGS, build

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

_DECODER: dict[str, Any] = {
    "vocab_size": 101,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "decoder_ffn_dim": 48,
    "decoder_attention_heads": 4,
    "max_position_embeddings": 128,
    "init_std": 0.3,
}
_BERT: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 130,
    "initializer_range": 0.3,
    "pad_token_id": 1,
}


def _llama4() -> Any:
    torch.manual_seed(0)
    config = transformers.Llama4TextConfig(
        vocab_size=101,
        hidden_size=32,
        intermediate_size=48,
        intermediate_size_mlp=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=2,
        attention_chunk_size=512,
        max_position_embeddings=512,
        initializer_range=0.3,
        attn_temperature_tuning=True,
        floor_scale=128,
        attn_scale=0.4,
    )
    return transformers.Llama4ForCausalLM(config).eval()


REFUSED: dict[str, Any] = {
    "positions counted over the batch": lambda: transformers.BartForCausalLM(transformers.BartConfig(**_DECODER)),
    "positions counted over the batch, sinusoids": lambda: transformers.MarianForCausalLM(
        transformers.MarianConfig(**_DECODER, pad_token_id=1)
    ),
    "shifted positions": lambda: transformers.RobertaForCausalLM(transformers.RobertaConfig(**_BERT, is_decoder=True)),
    "an encoder": lambda: transformers.BertLMHeadModel(transformers.BertConfig(**_BERT)),
    "bidirectional attention": lambda: transformers.Gemma3ForCausalLM(_bidirectional_gemma()),
}


def _bidirectional_gemma() -> Any:
    config = CONFIGS["gemma3"]()
    config.use_bidirectional_attention = True
    return config


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("what", REFUSED)
def test_what_packed_batches_would_change_is_refused(what: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    with pytest.raises(ModelRefused, match=r"something else in packed batches than alone|bidirectional"):
        prepare_model(REFUSED[what]().eval().to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3_moe", "gpt_oss", "gpt_neox"])
def test_rounding_is_no_difference(family: str, dtype: torch.dtype) -> None:
    for seed in range(3):
        prepare_model(build(family, seed).to(dtype))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_scale_that_changes_far_into_the_context_is_found_there(dtype: torch.dtype) -> None:
    with pytest.raises(ModelRefused, match=r"far into its context: .* serve it with --max-model-len 127"):
        prepare_model(_llama4().to(dtype))
    prepare_model(_llama4().to(dtype), max_model_len=127)


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_wrong_position_in_the_code_is_found(dtype: torch.dtype) -> None:
    """A rotary embedding that counts the tokens of the batch is right for relative positions within one chunk."""
    model = build("llama").to(dtype)  # type: ignore[arg-type]
    rotary = model.model.rotary_emb
    original = rotary.forward
    rotary.forward = lambda x, position_ids: original(x, torch.arange(x.shape[1])[None])
    with pytest.raises(ModelRefused, match="something else in packed batches than alone"):
        prepare_model(model)


def test_a_shift_of_all_positions_is_no_difference_to_a_relative_encoding() -> None:
    model = build("llama")
    rotary = model.model.rotary_emb
    original = rotary.forward
    rotary.forward = lambda x, position_ids: original(x, position_ids + 3)
    prepare_model(model)


def test_whatever_a_models_code_raises_is_a_refusal_with_its_text() -> None:
    model = build("llama")

    def fail(*_: object) -> None:
        raise ZeroDivisionError("the moon is full")

    model.model.layers[1].mlp.register_forward_hook(fail)
    with pytest.raises(ModelRefused, match=r"LlamaForCausalLM .*ZeroDivisionError: the moon is full"):
        prepare_model(model)


def test_contexts_of_a_few_tokens_are_served() -> None:
    for length in (1, 7, 8, 9, 26):
        assert prepare_model(build("llama"), max_model_len=length).info.max_model_len == length


def test_weights_that_overflow_are_called_that() -> None:
    model = build("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.fill_(torch.inf)
    with pytest.raises(ModelRefused, match="own output is not finite in float32; try another --dtype"):
        prepare_model(model)
