"""A checkpoint is served whole or refused, with the names of what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from server.engine.model import load_model
from server.engine.refusal import ModelRefused
from server.text import TokenizerRefused, load_text
from tests.families import build

Tensors = dict[str, Tensor]


def saved(folder: Path, model: Any = None, **config: Any) -> Path:
    """A tiny model saved in `folder`, with changes to its config.json."""
    (build("llama") if model is None else model).save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


def changed(folder: Path, change: Callable[[Tensors], Tensors]) -> Path:
    """A saved tiny model whose tensors are changed."""
    path = saved(folder) / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})
    return folder


def prefixed(prefix: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()}


def without(part: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if part not in name}


def an_extra_block(tensors: Tensors) -> Tensors:
    return tensors | {
        name.replace("layers.2.", "layers.3."): tensor.clone()
        for name, tensor in tensors.items()
        if "layers.2." in name
    }


def scaled(tensors: Tensors) -> Tensors:
    return tensors | {f"{name}_scale": torch.ones(1) for name in tensors if "proj" in name}


def halved(tensors: Tensors) -> Tensors:
    name = "model.layers.1.mlp.down_proj.weight"
    return tensors | {name: tensors[name][:5].clone()}


DAMAGED: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "compiled": (prefixed("_orig_mod."), r"it has '_orig_mod\..*' where .* is expected: save the model itself"),
    "wrapped": (prefixed("module."), r"it has 'module\..*' where .* is expected"),
    "no head": (without("lm_head"), r"lacks 1 of the weights of LlamaForCausalLM \(lm_head.weight\)"),
    "no block 1": (without("layers.1."), r"lacks 9 of the weights .* and 5 more\), which would be random"),
    "one matrix": (without("layers.1.mlp.up"), r"lacks 1 .*model\.layers\.1\.mlp\.up_proj\.weight"),
    "no embeddings": (without("embed"), r"lacks 1 .*embed_tokens"),
    "another shape": (halved, r"down_proj.weight \[5, 48\] instead of \[32, 48\]"),
    "an extra block": (an_extra_block, r"has 9 tensors that LlamaForCausalLM does not read \(model.layers.3"),
    "scales": (scaled, r"has 21 tensors .* quantised in a way that transformers does not apply"),
    "a bias": (lambda tensors: tensors | {"lm_head.bias": torch.ones(101)}, r"does not read \(lm_head.bias\)"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_checkpoint_that_is_not_whole_is_refused_by_name(damage: str, tmp_path: Path) -> None:
    change, message = DAMAGED[damage]
    with pytest.raises(ModelRefused, match=message):
        load_model(changed(tmp_path, change), device="cpu")


HARMLESS: dict[str, Callable[[Tensors], Tensors]] = {
    "as it is": lambda tensors: tensors,
    "old buffers": lambda tensors: tensors | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)},
    "a value head": lambda tensors: tensors | {"v_head.summary.weight": torch.ones(1, 32)},
    "a tower": lambda tensors: tensors | {"vision_tower.layers.0.mlp.weight": torch.ones(2)},
    "scales of a KV cache": lambda tensors: tensors | {"model.layers.0.self_attn.k_scale": torch.ones(1)},
}


@pytest.mark.parametrize("extra", HARMLESS)
def test_tensors_of_other_parts_are_left_out(extra: str, tmp_path: Path) -> None:
    loaded = load_model(changed(tmp_path, HARMLESS[extra]), device="cpu")
    assert loaded.info.num_parameters == sum(parameter.numel() for parameter in build("llama").parameters())


def test_layers_that_predict_further_tokens_are_left_out_where_the_configuration_counts_them(tmp_path: Path) -> None:
    changed(tmp_path, an_extra_block)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_nextn_predict_layers": 1}))
    assert load_model(tmp_path, device="cpu").info.num_layers == 3


def test_tied_weights_are_not_missing(tmp_path: Path) -> None:
    model = build("llama")
    model.config.tie_word_embeddings = True
    model.tie_weights()
    saved(tmp_path, model)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    load_model(tmp_path, device="cpu")


def test_a_checkpoint_of_another_head_says_so(tmp_path: Path) -> None:
    config = build("llama").config
    config.pad_token_id = 0
    saved(tmp_path, transformers.LlamaForSequenceClassification(config))
    with pytest.raises(ModelRefused, match=r"lacks 1 .*config.json names LlamaForSequenceClassification"):
        load_model(tmp_path, device="cpu")


@pytest.mark.parametrize("method", ["modelopt", "made-up"])
def test_a_quantisation_that_transformers_does_not_know_is_refused(method: str, tmp_path: Path) -> None:
    saved(tmp_path, quantization_config={"quant_method": method})
    with pytest.raises(ModelRefused, match=rf"quantised with '{method}', .* expected one of aqlm, .* with vLLM"):
        load_model(tmp_path, device="cpu")


def test_a_quantisation_whose_package_lacks_names_the_package(tmp_path: Path) -> None:
    saved(tmp_path, quantization_config={"quant_method": "hqq", "quant_config": {}})
    with pytest.raises(ModelRefused, match=r"cannot load .*HQQ"):
        load_model(tmp_path, device="cpu")


def test_a_model_that_generates_no_text_is_refused(tmp_path: Path) -> None:
    config = transformers.ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    saved(tmp_path, transformers.ViTModel(config))
    with pytest.raises(ModelRefused, match=r"no causal language model for model_type 'vit' \(ViTModel\)"):
        load_model(tmp_path, device="cpu")


def test_a_text_class_that_only_the_checkpoint_names_is_loaded(tmp_path: Path) -> None:
    config = transformers.Mistral4Config(
        vocab_size=101,
        hidden_size=32,
        intermediate_size=48,
        moe_intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        kv_lora_rank=16,
        q_lora_rank=24,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=12,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        max_position_embeddings=128,
    )
    saved(tmp_path, transformers.Mistral4ForCausalLM(config))
    assert load_model(tmp_path, device="cpu").info.architecture == "Mistral4ForCausalLM"


def test_code_of_the_models_own_is_never_asked_for(tmp_path: Path) -> None:
    """Neither the model's nor the tokenizer's; what transformers itself has is served without it."""
    own = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}
    with pytest.raises(ModelRefused, match=r"brings code of its own, which tiller never runs; .*with vLLM") as caught:
        load_model(saved(tmp_path / "new", model_type="brand_new", auto_map=own), device="cpu")
    assert "Please" not in str(caught.value)
    assert load_model(saved(tmp_path / "known", auto_map=own), device="cpu").info.architecture == "LlamaForCausalLM"
    settings = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own.OwnTokenizer", None]}}
    folder = saved(tmp_path / "tokenizer")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(TokenizerRefused, match=r"cannot load the tokenizer of .*which tiller never runs"):
        load_text(folder)
