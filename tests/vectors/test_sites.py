"""The sites of blocks that are put together in other ways than Llama's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import nn

from tests.families import CONFIGS, build
from vectors.sites import find_sites
from vectors.vocabulary import SITES, SITES_IN_ORDER, Site

SMALL: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}


def built(name: str, **changes: Any) -> nn.Module:
    """A model of the configuration `name`, on no device: only its modules matter."""
    with torch.device("meta"):
        model: nn.Module = transformers.AutoModelForCausalLM.from_config(getattr(transformers, name)(**changes))
    return model


def names(model: nn.Module) -> dict[Site, list[str]]:
    """The name of each site's module in its block, block by block."""
    sites = find_sites(model)
    known = {module: name for name, module in model.named_modules()}
    blocks = [known[block] for block in sites.modules["residual"]]
    return {
        site: [known[module].removeprefix(block).lstrip(".") for module, block in zip(modules, blocks, strict=True)]
        for site, modules in sites.modules.items()
    }


def test_the_blocks_of_a_hybrid_differ() -> None:
    model = built("Lfm2Config", **SMALL, layer_types=["conv", "full_attention"])
    assert names(model) == {
        "residual": ["", ""],
        "attention": ["conv", "self_attn"],
        "mlp": ["feed_forward"] * 2,
        "post_attention_norm": ["ffn_norm"] * 2,
    }


@pytest.mark.parametrize(
    ("config", "changes", "expected"),
    [
        ("GPT2Config", {"n_embd": 16, "n_head": 2, "n_layer": 2}, ("attn", "mlp", "ln_2")),
        (
            "DbrxConfig",
            {"d_model": 16, "n_heads": 2, "n_layers": 2, "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4}},
            ("norm_attn_norm.attn", "ffn", "norm_attn_norm.norm_2"),
        ),
        (
            "BertConfig",
            SMALL | {"is_decoder": True},
            ("attention", "output.dense", "attention.output.LayerNorm"),
        ),
    ],
)
def test_a_site_has_other_names_too(config: str, changes: dict[str, Any], expected: tuple[str, ...]) -> None:
    found = names(built(config, **changes))
    assert found == {site: [name] * 2 for site, name in zip(SITES, ("", *expected), strict=True)}


def test_the_preferred_name_wins_where_a_block_has_several() -> None:
    found = names(built("Gemma2Config", **SMALL))
    assert found["post_attention_norm"] == ["post_attention_layernorm"] * 2


def test_a_site_that_a_block_lacks_is_absent() -> None:
    model = built("LlamaConfig", **SMALL)
    del find_sites(model).modules["residual"][1].mlp
    assert find_sites(model).sites == ("residual", "attention", "post_attention_norm")


def test_a_module_that_two_blocks_share_is_no_site() -> None:
    model = built("LlamaConfig", **SMALL)
    first, second = find_sites(model).modules["residual"]
    second.mlp = first.mlp
    assert "mlp" not in find_sites(model).sites


def test_the_blocks_of_a_tower_are_not_the_decoders() -> None:
    model = built("LlamaConfig", **SMALL)
    tower = nn.Module()
    tower.layers = find_sites(built("LlamaConfig", **SMALL)).decoder.layers
    model.a_tower = tower
    text = model.model
    model.get_decoder = lambda: text  # type: ignore[assignment]
    assert find_sites(model).decoder is text


@pytest.mark.parametrize("family", CONFIGS)
def test_a_block_computes_its_sites_in_order(family: str) -> None:
    """What gates rely on."""
    model = build(family)
    seen: list[tuple[int, Site]] = []
    for site, modules in find_sites(model).modules.items():
        for layer, module in enumerate(modules):
            module.register_forward_hook(lambda *_, at=(layer, site): seen.append(at))
    with torch.no_grad():
        model(input_ids=torch.tensor([[1, 2, 3]]), use_cache=False)
    assert seen == sorted(seen, key=lambda at: (at[0], SITES_IN_ORDER.index(at[1])))
