"""Hands a model's attention over to the engine, and probes what it asks for and that the engine computes it.

The model's code stays transformers' own; only its attention function is replaced. In the first pass every layer must
call that function once, and its arguments and masks are recorded. The second pass runs the implementation chosen for
those layers and shows which sites give one activation per token.
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
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from server.engine.attention.function import ATTENTION_NAME, attention_step, layer_of, paged_attention
from server.engine.attention.interface import (
    AttentionArguments,
    AttentionStep,
    LayerAttention,
    PagedAttention,
    Reach,
    Segment,
    Stretches,
    page_groups,
)
from server.engine.attention.latent import LatentProbe, LatentSizes
from server.engine.current import Current
from server.engine.masks import MaskLog, build_logged_mask, current_masks, logging_masks
from server.engine.recurrent.probe import layers_with_attention
from server.engine.refusal import ModelRefused
from vectors.sites import ModelSites, activation_of
from vectors.vocabulary import Site

_LENGTH = 4
_PROBE_TOKENS = torch.tensor([[3, 4, 5, 6]])
_PROBE_NAME = "tiller_probe"
_FARTHEST = 2**20
"""How far masks are looked at, in tokens; no window or chunk of a model is larger."""


class _Look(AttentionStep):
    """Records what each layer asks for and returns zeros."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.layers: dict[int, LayerAttention] = {}
        self._given: dict[int, tuple[Tensor, Tensor]] = {}

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
            softcap=arguments.softcap,
            has_sinks=arguments.sinks is not None,
            shares=self._layer_with(keys, values),
        )
        self._given[layer] = keys, values
        return queries.new_zeros(*queries.shape[:2], values.shape[-1])

    def complete(self, layer: int, window: int | None, latent: LatentSizes | None) -> None:
        """Note what the call of `layer` does not show: the `window` asked for, and its latents if it has any."""
        asked = replace(self.layers[layer], reach=Reach(window=window))
        if latent is not None:
            key_dim = latent.rank + latent.rotary_dim
            asked = replace(asked, kv_heads=1, key_dim=key_dim, value_dim=latent.rank, is_latent=True)
        self.layers[layer] = asked

    def _layer_with(self, keys: Tensor, values: Tensor) -> int | None:
        """The earlier layer that was given these very tensors."""
        for layer, (earlier_keys, earlier_values) in self._given.items():
            if _is_same(keys, earlier_keys) and _is_same(values, earlier_values):
                return layer
        return None


def _is_same(one: Tensor, other: Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() and one.shape == other.shape and one.stride() == other.stride()


def _probed_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **others: Any
) -> tuple[Tensor, None]:
    """The attention function of the first pass: notes what the layer may see, then does as the engine's own."""
    masks, layer, (look, latents) = current_masks(), layer_of(module), _current_look.require()
    if attention_mask is not None:
        if (sight := masks.sight_of(attention_mask)) is not None:
            masks.sights[layer] = sight
    elif False in (getattr(module, "is_causal", None), others.get("is_causal")):
        masks.sights[layer] = "lets tokens see later ones (bidirectional attention)"
    output = paged_attention(module, query, key, value, None, **others)
    look.complete(layer, others.get("sliding_window"), latents.find(module, key[0], value[0]))
    return output


_current_look: Current[tuple[_Look, LatentProbe]] = Current("tiller_look")

AttentionInterface.register(_PROBE_NAME, _probed_attention)
AttentionMaskInterface.register(_PROBE_NAME, build_logged_mask)


def require_attention_interface(module: PreTrainedModel, decoder: nn.Module) -> None:
    """Raise `ModelRefused` when the `decoder` of `module` does not accept a custom attention function.

    What else `module` has need not: a vision tower with an attention of its own is not used.
    """
    config = decoder.config if isinstance(decoder, PreTrainedModel) else module.config
    before = module.config._attn_implementation
    module.set_attn_implementation(_PROBE_NAME)
    if config._attn_implementation != _PROBE_NAME:
        raise ModelRefused(
            f"{type(module).__name__} does not accept a custom attention function, so tiller cannot run it in batches; "
            "use a model whose transformers code supports the attention interface"
        )
    module.set_attn_implementation(before)


def hand_over_attention(
    module: PreTrainedModel, num_layers: int, *, context: int | None = None
) -> tuple[LayerAttention | None, ...]:
    """Make `module` call our attention function; return what each of its `num_layers` layers asks of it.

    A layer that has no attention, by transformers' own cache, is None.

    Raises `ModelRefused` when a layer does not call it once, passes an unknown argument, or sees other tokens within
    `context` tokens (None: any number) than the attention can give it.
    """
    context = min(context or _FARTHEST, _FARTHEST)
    architecture = type(module).__name__
    look = _Look()
    module.set_attn_implementation(_PROBE_NAME)
    with logging_masks(context) as masks, LatentProbe(module) as latents, _current_look.set_to((look, latents)):
        _run(module, look)
    _check_calls(module, look.calls, num_layers)
    layers = {layer: _with_sight(architecture, layer, asked, masks) for layer, asked in look.layers.items()}
    module.set_attn_implementation(ATTENTION_NAME)
    return tuple(layers.get(layer) for layer in range(num_layers))


def _check_calls(module: PreTrainedModel, calls: Sequence[int], num_layers: int) -> None:
    """Refuse a model whose layers with attention do not call the attention function once each."""
    architecture, called = type(module).__name__, set(calls)
    if len(called) < len(calls) or not called <= set(range(num_layers)):
        raise ModelRefused(
            f"{architecture} calls the attention function {len(calls)} times for {num_layers} layers, but tiller keeps "
            "the KV of one call a layer; serve it with transformers or vLLM"
        )
    if not layers_with_attention(module, num_layers) <= called:
        raise ModelRefused(
            f"{architecture}: {len(called)} of {num_layers} layers called the attention function; layers that "
            "only images reach, or that keep their past in other ways than transformers' cache does, are not "
            "supported; serve it with transformers"
        )


def run_with_cache(module: PreTrainedModel, cache: Any) -> None:
    """Run `module` on a few tokens with transformers' own `cache`; attention gives zeros."""
    names = inspect.signature(module.forward).parameters
    name = next((name for name in ("past_key_values", "cache_params") if name in names), "past_key_values")
    _run(module, _Look(), use_cache=True, **{name: cache})


def _with_sight(architecture: str, layer: int, asked: LayerAttention, masks: MaskLog) -> LayerAttention:
    """What `layer` asks for, by its arguments and, if it is given a mask, by that. Raises `ModelRefused`."""
    sight = masks.sights.get(layer)
    if sight is None:
        return asked
    if isinstance(sight, str):
        raise ModelRefused(
            f"{architecture}: layer {layer} {sight}, which paged attention does not support; serve it with transformers"
        )
    return replace(asked, reach=sight)


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
            is_wide = activation.shape[-1:] == (sites.hidden_size,)
            seen[site] += is_wide and activation.numel() == _LENGTH * sites.hidden_size

        return hook

    parameter = next(module.parameters())
    num_groups = len(page_groups(layers))
    kv = attention(
        layers, num_pages=[1] * num_groups, page_size=_LENGTH, dtype=parameter.dtype, device=parameter.device
    )
    slots = torch.arange(_LENGTH, device=parameter.device)
    segment = Segment(0, _LENGTH, 0, (Stretches(((0, _LENGTH),)),) * num_groups)
    handles = [
        module.register_forward_hook(look(site)) for site, modules in sites.modules.items() for module in modules
    ]
    try:
        _run(module, kv.plan([segment], [slots] * num_groups))
    finally:
        for handle in handles:
            handle.remove()
        kv.close()
    sound = {site: modules for site, modules in sites.modules.items() if seen[site] == sites.num_layers}
    return replace(sites, modules=MappingProxyType(sound))


def _run(module: PreTrainedModel, step: AttentionStep, *, use_cache: bool = False, **others: Any) -> None:
    device = next(module.parameters()).device
    positions = torch.arange(_LENGTH, device=device).unsqueeze(0)
    with torch.inference_mode(), attention_step(step):
        module(input_ids=_PROBE_TOKENS.to(device), position_ids=positions, use_cache=use_cache, **others)
