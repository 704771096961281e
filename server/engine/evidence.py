"""Probes a model with two tiny forward passes: what its attention needs, and whether the engine's attention runs it.

The model's code stays transformers' own; only its attention function is replaced. In the first pass every layer must
call that function once, and its arguments are recorded. The second pass runs the implementation chosen for those layers
and shows which sites give one activation per token.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from server.engine.attention.function import ATTENTION_NAME, attention_step
from server.engine.attention.interface import (
    AttentionArguments,
    AttentionStep,
    LayerAttention,
    PagedAttention,
    Segment,
)
from server.engine.refusal import ModelRefused
from vectors.sites import ModelSites, activation_of
from vectors.vocabulary import Site

_LENGTH = 4


class _Look(AttentionStep):
    """Records the arguments of each layer and returns zeros."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.layers: dict[int, LayerAttention] = {}

    def write(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Keep nothing."""

    def attend(
        self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, arguments: AttentionArguments
    ) -> Tensor:
        """Record the call; return zeros `[heads, tokens, value_dim]`."""
        self.calls.append(layer)
        self.layers[layer] = LayerAttention(
            kv_heads=keys.shape[0],
            key_dim=keys.shape[-1],
            value_dim=values.shape[-1],
            window=arguments.window,
            softcap=arguments.softcap,
            has_sinks=arguments.sinks is not None,
        )
        return queries.new_zeros(*queries.shape[:2], values.shape[-1])


def hand_over_attention(module: PreTrainedModel, num_layers: int) -> tuple[LayerAttention, ...]:
    """Make `module` call our attention function; return what each of its `num_layers` layers asks of it.

    Raises `ModelRefused` when a layer does not call it, or passes an unknown argument.
    """
    architecture = type(module).__name__
    module.set_attn_implementation(ATTENTION_NAME)
    if module.config._attn_implementation != ATTENTION_NAME:
        raise ModelRefused(
            f"{architecture} does not accept a custom attention function, so tiller cannot run it in batches; "
            "use a model whose transformers code supports the attention interface"
        )
    look = _Look()
    _run(module, look)
    if sorted(look.calls) != list(range(num_layers)):
        raise ModelRefused(
            f"{architecture}: {len(set(look.calls))} of {num_layers} layers called the attention function; "
            "models with other kinds of layers (linear attention, state space, shared KV) are not supported"
        )
    return tuple(look.layers[layer] for layer in range(num_layers))


def working_sites(
    module: PreTrainedModel,
    sites: ModelSites,
    attention: type[PagedAttention],
    layers: Sequence[LayerAttention],
) -> ModelSites:
    """The `sites` whose modules give one activation per token in every block when `attention` runs `layers`.

    Raises `ModelRefused` when the pass is not implemented on the model's device.
    """
    seen: Counter[Site] = Counter()

    def look(site: Site) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            activation = activation_of(output)
            is_wide = activation.shape[-1:] == (sites.hidden_size,)
            seen[site] += is_wide and activation.numel() == _LENGTH * sites.hidden_size

        return hook

    parameter = next(module.parameters())
    kv = attention(layers, num_pages=1, page_size=_LENGTH, dtype=parameter.dtype, device=parameter.device)
    slots = torch.arange(_LENGTH, device=parameter.device)
    handles = [
        module.register_forward_hook(look(site)) for site, modules in sites.modules.items() for module in modules
    ]
    try:
        _run(module, kv.plan([Segment(0, _LENGTH, 0, ((0, _LENGTH),))], slots))
    finally:
        for handle in handles:
            handle.remove()
        kv.close()
    sound = {site: modules for site, modules in sites.modules.items() if seen[site] == sites.num_layers}
    return replace(sites, modules=MappingProxyType(sound))


def _run(module: PreTrainedModel, step: AttentionStep) -> None:
    positions = torch.arange(_LENGTH, device=next(module.parameters()).device).unsqueeze(0)
    try:
        with torch.inference_mode(), attention_step(step):
            module(input_ids=torch.zeros_like(positions), position_ids=positions, use_cache=False)
    except NotImplementedError as error:
        raise ModelRefused(f"{type(module).__name__}: {error}") from error
