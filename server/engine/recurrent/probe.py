"""Finds a model's recurrent modules and makes them run on packed batches.

They are found by what they do. One pass is run with the cache that transformers would generate with, and the modules
that read or write a state of it are recurrent. Then each is tried: some ignore their state when they are given several
tokens, so these continue token by token.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin, LinearAttentionCacheLayerMixin

from server.engine.recurrent.states import RecurrentStates, StateCache, StateKey, StateLayout
from server.engine.recurrent.step import PackedForward
from server.engine.refusal import ModelRefused


def layers_with_attention(module: PreTrainedModel, num_layers: int) -> frozenset[int]:
    """The layers for which transformers' own cache of `module` keeps keys and values; all when it does not tell."""
    layers = DynamicCache(config=module.config).layers
    if len(layers) != num_layers:
        return frozenset(range(num_layers))
    return frozenset(index for index, layer in enumerate(layers) if isinstance(layer, CacheLayerMixin))


def hand_over_recurrence(module: PreTrainedModel, run: Callable[[Any], None]) -> StateLayout:
    """Make the recurrent modules of `module` run on packed batches; return the layout of a sequence's state.

    `run` calls `module` on a few tokens with the cache that it is given. Raises `ModelRefused` when a recurrent module
    cannot be run apart from the rest of its model.
    """
    cache = _WatchedCache(module)
    if not any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in cache.layers):
        return StateLayout()
    try:
        with cache:
            run(cache)
    except Exception as error:  # the model's own code may raise anything
        raise ModelRefused(
            f"{type(module).__name__} does not run with the cache that transformers makes from its configuration, so "
            f"tiller cannot keep its recurrent state: {type(error).__name__}: {error}; serve it with transformers"
        ) from error
    layout = cache.layout()
    for index, layer in enumerate(cache.layers):
        if isinstance(layer, LinearAttentionCacheLayerMixin) and not any(key[1] == index for key in layout.tensors):
            raise ModelRefused(
                f"{type(module).__name__}: layer {index} is recurrent but keeps its state outside of transformers' "
                "cache, so tiller cannot run it in batches; serve it with transformers"
            )
    for seen in cache.seen.values():
        cache_name = _cache_name(type(module).__name__, seen, cache)
        original = getattr(seen.module.forward, "original", seen.module.forward)
        is_stepwise = _is_stepwise(original, cache_name, seen, layout)
        setattr(seen.module, "forward", PackedForward(original, cache_name, is_stepwise=is_stepwise))  # noqa: B010 - mypy allows no other assignment to a method
    return layout


@dataclass(eq=False)
class _Call:
    """A call that is running: `arguments` by name; `keys` of the states that the module itself touched."""

    module: nn.Module
    arguments: dict[str, Any]
    keys: set[StateKey] = field(default_factory=set)
    has_attention: bool = False


class _WatchedCache(DynamicCache):
    """Transformers' cache for `model`. Within its context it notes which modules of the model touch states."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(config=model.config)
        self.seen: dict[nn.Module, _Call] = {}
        self._model = model
        self._running: list[_Call] = []

    def __enter__(self) -> _WatchedCache:
        self._handles = []
        for module in self._model.modules():
            self._handles.append(module.register_forward_pre_hook(self._enter, with_kwargs=True))
            self._handles.append(module.register_forward_hook(self._leave, always_call=True))
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _enter(self, module: nn.Module, values: tuple[Any, ...], named: dict[str, Any]) -> None:
        original = getattr(module.forward, "original", module.forward)
        names = inspect.signature(original).parameters
        self._running.append(_Call(module, dict(zip(names, values, strict=False)) | named))

    def _leave(self, module: nn.Module, values: Any, output: Any) -> None:
        call = self._running.pop()
        if call.keys:
            known = self.seen.setdefault(module, call)
            known.keys |= call.keys
            known.has_attention |= call.has_attention or any(outer.keys for outer in self._running)

    def _note(self, key: StateKey) -> None:
        self._running[-1].keys.add(key)

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        """See `Cache`."""
        self._note(("conv", layer_idx, state_idx))
        state: Tensor | None = super().get_conv_state(layer_idx, state_idx)
        return state

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        """See `Cache`."""
        self._note(("recurrent", layer_idx, state_idx))
        state: Tensor | None = super().get_recurrent_state(layer_idx, state_idx)
        return state

    def update_conv_state(self, conv_states: Tensor, layer_idx: int, state_idx: int = 0, **others: Any) -> Tensor:
        """See `Cache`."""
        self._note(("conv", layer_idx, state_idx))
        states: Tensor = super().update_conv_state(conv_states, layer_idx, state_idx, **others)
        return states

    def update_recurrent_state(
        self, recurrent_states: Tensor, layer_idx: int, state_idx: int = 0, **others: Any
    ) -> Tensor:
        """See `Cache`."""
        self._note(("recurrent", layer_idx, state_idx))
        states: Tensor = super().update_recurrent_state(recurrent_states, layer_idx, state_idx, **others)
        return states

    def update(self, *values: Any, **named: Any) -> tuple[Tensor, Tensor]:
        """See `Cache`."""
        for call in self._running:
            call.has_attention = True
        keys, values_seen = super().update(*values, **named)
        return keys, values_seen

    def layout(self) -> StateLayout:
        """The tensors that the pass has left."""
        tensors: dict[StateKey, tuple[tuple[int, ...], torch.dtype]] = {}
        for index, layer in enumerate(self.layers):
            if not isinstance(layer, LinearAttentionCacheLayerMixin):
                continue
            for number, conv in layer.conv_states.items():
                if conv is not None:
                    tensors["conv", index, number] = tuple(conv.shape[1:]), conv.dtype
            for number, recurrent in layer.recurrent_states.items():
                if recurrent is not None:
                    tensors["recurrent", index, number] = tuple(recurrent.shape[1:]), recurrent.dtype
        return StateLayout(tensors)


def _cache_name(architecture: str, seen: _Call, cache: object) -> str:
    """The parameter by which the module takes its cache. Raises `ModelRefused`."""
    names = [name for name, value in seen.arguments.items() if value is cache]
    if len(names) != 1 or seen.has_attention:
        raise ModelRefused(
            f"{architecture}: {type(seen.module).__name__} mixes a recurrent state with attention or with the whole "
            "model, so tiller cannot run it in batches; serve it with transformers"
        )
    return names[0]


def _is_stepwise(original: Callable[..., Any], cache_name: str, seen: _Call, layout: StateLayout) -> bool:
    """True when some state that changes the output for one token does not change it for two."""
    example = next(value for value in seen.arguments.values() if isinstance(value, Tensor))
    own = StateLayout({key: layout.tensors[key] for key in seen.keys if key in layout.tensors})
    states = RecurrentStates(own, 2, example.device)
    generator = torch.Generator(example.device).manual_seed(0)

    def outputs(num_tokens: int) -> list[Tensor]:
        arguments = {name: _first(value, num_tokens, example.shape[:2]) for name, value in seen.arguments.items()}
        results = []
        for slot in (0, 1):
            cache = StateCache(states, torch.tensor([slot], device=example.device), is_fresh=False)
            output = original(**(arguments | {cache_name: cache}))
            parts = output if isinstance(output, tuple) else (output,)
            results.append(torch.cat([part.flatten() for part in parts if isinstance(part, Tensor)]))
        return results

    def matters(key: StateKey, num_tokens: int) -> bool:
        for tensor in states.tensors.values():
            tensor.copy_(torch.randn(tensor[:1].shape, generator=generator, device=example.device))
        states.tensors[key][1].add_(torch.ones_like(states.tensors[key][1]))
        one, other = outputs(num_tokens)
        return not torch.equal(one, other)

    with torch.inference_mode():
        return any(matters(key, 1) and not matters(key, 2) for key in states.tensors)


def _first(value: Any, num_tokens: int, leading: torch.Size) -> Any:
    """The first tokens of an argument that has one entry per token."""
    if isinstance(value, tuple):
        return tuple(_first(part, num_tokens, leading) for part in value)
    if isinstance(value, Tensor) and value.shape[:2] == leading:
        return value[:, :num_tokens]
    return value
