"""The places in a decoder where activations are read or steered, found in any transformers model.

For block `l` (0-based) of a decoder:

    residual              output of the block                       = `hidden_states[l + 1]` before the final norm
    attention             output of the attention module
    mlp                   output of the feed-forward module
    post_attention_norm   output of `post_attention_layernorm`

A site is the module's own output, whatever the model does with it next. That matters for `post_attention_norm`: in
Llama-like families it is what the feed-forward reads; in Gemma 2/3 and OLMo 2 it normalises the attention's output
before it joins the residual stream.

No model family is known by name: blocks are found by count, modules by a short list of attribute names.
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
    """The possible names of the module of `site` in a block; the block itself has the empty name, as in torch."""
    match site:
        case "residual":
            return ("",)
        case "attention":
            attention = ("self_attn", "attention", "attn", "self_attention")
            return (*attention, "linear_attn", "mamba", "conv")  # what a hybrid block has in its place
        case "mlp":
            return ("mlp", "feed_forward", "block_sparse_moe", "ffn")
        case "post_attention_norm":
            return ("post_attention_layernorm",)
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

    The blocks are the shallowest `ModuleList` of length `num_hidden_layers` (of the config), preferably one whose
    members have attention modules. Raises `SitesNotFound` if there is none.
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
    candidates = [
        (not _has_attention(module), name.count("."), name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == num_layers
    ]
    if not candidates:
        raise SitesNotFound(
            f"{type(model).__name__}: no ModuleList of {num_layers} decoder blocks was found; "
            "if this model keeps its blocks elsewhere, vectors/sites.py has to be extended"
        )
    _, _, name, blocks = min(candidates, key=lambda candidate: candidate[:3])
    modules = {site: found for site in SITES if (found := _modules_at(site, blocks))}
    decoder = model.get_submodule(name.rpartition(".")[0])
    return ModelSites(num_layers, hidden_size, decoder, MappingProxyType(modules))


def _modules_at(site: Site, blocks: nn.ModuleList) -> tuple[nn.Module, ...]:
    """The module of `site` in every block, under the first of its names that the block has; empty if one has none."""
    found = [
        next((module for name in _module_names(site) if (module := _submodule(block, name)) is not None), None)
        for block in blocks
    ]
    return tuple(module for module in found if module is not None) if None not in found else ()


def _has_attention(blocks: nn.ModuleList) -> bool:
    return all(any(_submodule(block, name) is not None for name in _module_names("attention")) for block in blocks)


def _submodule(block: nn.Module, name: str) -> nn.Module | None:
    module = getattr(block, name, None) if name else block
    return module if isinstance(module, nn.Module) else None


def activation_of(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """The activation in a site module's output, which is the activation itself or a tuple that begins with it."""
    activation = output[0] if isinstance(output, tuple) else output
    assert isinstance(activation, Tensor)
    return activation
