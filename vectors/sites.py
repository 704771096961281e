"""The places in a decoder where activations are read or steered, found in any transformers model.

For block `l` (0-based) of a decoder:

    residual              output of the block                       = `hidden_states[l + 1]` before the final norm
    attention             output of the module that mixes tokens: attention, or what a hybrid block has in its place
    mlp                   output of the feed-forward module
    post_attention_norm   output of `post_attention_layernorm`, or of the norm that has its place under another name

A site is the module's own output, whatever the model does with it next. That matters for `post_attention_norm`: in
Llama-like families it is what the feed-forward reads; in Gemma 2/3 and OLMo 2 it normalises the attention's output
before it joins the residual stream. `docs/families.md` says for each family what its sites are and how they join.

No model family is known by name: blocks are found by count, modules by lists of attribute names, block by block.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, assert_never

from torch import Tensor, nn

from vectors.errors import VectorsError
from vectors.vocabulary import SITES, Site


def _module_names(site: Site) -> tuple[str, ...]:
    """The possible names of the module of `site` in a block, the preferred first; "" is the block, as in torch."""
    match site:
        case "residual":
            return ("",)
        case "attention":
            attention = ("self_attn", "attention", "attn", "self_attention", "multi_head_attention")
            in_its_place = ("linear_attn", "mamba", "conv", "temporal_block", "mixer")
            return (*attention, "norm_attn_norm.attn", *in_its_place)
        case "mlp":
            by_parts = ("output.dense", "fc2")  # BERT and Bart have no module for the whole: its last projection
            return ("mlp", "feed_forward", "block_sparse_moe", "ffn", "shared_mlp", "mlp_block", *by_parts)
        case "post_attention_norm":
            read_by_mlp = (
                "pre_feedforward_layernorm", "feedforward_layernorm", "pre_ff_layernorm", "ffn_norm", "mlp_norm",
                "norm_attn_norm.norm_2", "channel_pre_norm", "ln_2", "layernorm2", "final_layer_norm",
            )  # fmt: skip
            in_bert = ("attention.output.LayerNorm", "intermediate.LayerNorm", "LayerNorm")
            return ("post_attention_layernorm", *read_by_mlp, *in_bert)
        case _:
            assert_never(site)


class SitesNotFound(VectorsError):
    """The model's decoder blocks could not be found; the message says what was looked for."""


@dataclass(frozen=True)
class ModelSites:
    """The steerable modules of one model: `modules[site][layer]`.

    `decoder` is the module that runs the blocks. `hidden_size` is the width of every site's output. Sites that the
    architecture does not have are absent.
    """

    num_layers: int
    hidden_size: int
    decoder: nn.Module
    modules: Mapping[Site, tuple[nn.Module, ...]]

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites that this model has, in the order of `SITES`."""
        return tuple(site for site in SITES if site in self.modules)


def find_sites(model: nn.Module) -> ModelSites:
    """Find the decoder blocks of a transformers causal language model and the sites in each.

    The blocks are the shallowest `ModuleList` of length `num_hidden_layers` (of the config) in the text decoder,
    preferably one whose members have attention modules. Raises `SitesNotFound` if there is none.
    """
    config: Any = getattr(model, "config", None)
    text_config = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    num_layers = getattr(text_config, "num_hidden_layers", None)
    hidden_size = getattr(text_config, "hidden_size", None)
    if not isinstance(num_layers, int) or not isinstance(hidden_size, int):
        raise SitesNotFound(
            f"{type(model).__name__}: its config has no num_hidden_layers and hidden_size; "
            "only decoder language models can be steered"
        )
    decoder = _decoder_of(model)
    name = name_of_blocks(decoder, num_layers)
    if name is None:
        decoder, name = model, name_of_blocks(model, num_layers)
    if name is None:
        raise SitesNotFound(
            f"{type(model).__name__}: its config counts {num_layers} blocks, and no ModuleList has as many; blocks "
            "that are run several times a pass, have several attentions or are kept elsewhere cannot be told apart"
        )
    blocks = decoder.get_submodule(name)
    assert isinstance(blocks, nn.ModuleList)
    modules = {site: found for site in SITES if (found := _modules_at(site, blocks))}
    return ModelSites(
        num_layers, hidden_size, decoder.get_submodule(name.rpartition(".")[0]), MappingProxyType(modules)
    )


def _decoder_of(model: nn.Module) -> nn.Module:
    """The text decoder of a multimodal model, whose towers may have as many blocks; else the model itself."""
    find: Any = getattr(model, "get_decoder", None)
    decoder = find() if callable(find) else None
    return decoder if isinstance(decoder, nn.Module) else model


def name_of_blocks(module: nn.Module, num_layers: int) -> str | None:
    """The path in `module` of the list of its `num_layers` blocks: the shallowest, preferably one with attention."""
    candidates = [
        (not _has_attention(child), name.count("."), name)
        for name, child in module.named_modules()
        if isinstance(child, nn.ModuleList) and len(child) == num_layers
    ]
    return min(candidates)[2] if candidates else None


def _modules_at(site: Site, blocks: nn.ModuleList) -> tuple[nn.Module, ...]:
    """The module of `site` in every block; empty unless each block has one of its own."""
    found = [module for block in blocks if (module := module_in(block, site)) is not None]
    return tuple(found) if len(set(found)) == len(blocks) else ()


def module_in(block: nn.Module, site: Site) -> nn.Module | None:
    """The module of `site` in `block`, under the first of its names that the block has; hybrid blocks differ."""
    return next((module for name in _module_names(site) if (module := _submodule(block, name)) is not None), None)


def _has_attention(blocks: nn.ModuleList) -> bool:
    return all(module_in(block, "attention") is not None for block in blocks)


def _submodule(block: nn.Module, path: str) -> nn.Module | None:
    found: Any = block
    for name in path.split(".") if path else ():
        found = getattr(found, name, None)
    return found if isinstance(found, nn.Module) else None


def activation_of(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """The activation in a site module's output, which is the activation itself or a tuple that begins with it."""
    activation = output[0] if isinstance(output, tuple) else output
    assert isinstance(activation, Tensor)
    return activation
