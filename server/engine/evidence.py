"""Probes a model with two tiny forward passes: what its attention needs, and whether the engine's attention runs it.

The model's code stays transformers' own; only its attention function is replaced. In the first pass every layer must
call that function once, and its arguments are recorded. The second pass runs the implementation chosen for those layers
and shows which sites give one activation per token.
"""

from __future__ import annotations

import inspect
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
from server.engine.recurrent.probe import layers_with_attention
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


def hand_over_attention(module: PreTrainedModel, num_layers: int) -> tuple[LayerAttention | None, ...]:
    """Make `module` call our attention function; return what each of its `num_layers` layers asks of it.

    A layer that has no attention, by transformers' own cache, is None.

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
    _check_calls(module, look.calls, num_layers)
    return tuple(look.layers.get(layer) for layer in range(num_layers))


def _check_calls(module: PreTrainedModel, calls: Sequence[int], num_layers: int) -> None:
    called = set(calls)
    if len(called) == len(calls) and layers_with_attention(module, num_layers) <= called <= set(range(num_layers)):
        return
    raise ModelRefused(
        f"{type(module).__name__}: {len(called)} of {num_layers} layers called the attention function, in "
        f"{len(calls)} calls; models whose layers share their attention, or keep their past in other ways than "
        "transformers' cache does, are not supported"
    )


def run_with_cache(module: PreTrainedModel, cache: Any) -> None:
    """Run `module` on a few tokens with transformers' own `cache`; attention gives zeros. Raises `ModelRefused`."""
    names = inspect.signature(module.forward).parameters
    name = next((name for name in ("past_key_values", "cache_params") if name in names), "past_key_values")
    _run(module, _Look(), use_cache=True, **{name: cache})


def working_sites(
    module: PreTrainedModel,
    sites: ModelSites,
    attention: type[PagedAttention],
    layers: Sequence[LayerAttention | None],
) -> ModelSites:
    """The `sites` whose modules give one activation per token in every block when `attention` runs `layers`.

    Raises `ModelRefused` when the pass is not implemented on the model's device.
    """
    seen: Counter[Site] = Counter()

    def look(site: Site) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            activation = activation_of(output)
            seen[site] += activation.numel() == _LENGTH * sites.hidden_size and activation.is_contiguous()

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


def _run(module: PreTrainedModel, step: AttentionStep, *, use_cache: bool = False, **others: Any) -> None:
    positions = torch.arange(_LENGTH, device=next(module.parameters()).device).unsqueeze(0)
    try:
        with torch.inference_mode(), attention_step(step):
            module(input_ids=torch.zeros_like(positions), position_ids=positions, use_cache=use_cache, **others)
    except NotImplementedError as error:
        raise ModelRefused(f"{type(module).__name__}: {error}") from error
