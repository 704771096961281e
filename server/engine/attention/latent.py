"""Multi-head latent attention (MLA): keep the latent of a token instead of the keys and values that it expands to.

In MLA a token's keys without position and its values are two linear functions of one short latent, and its rotary key
is the same for all heads (DeepSeek-V2, Liu et al. 2024, section 2.1). So attention can run on latents: the queries
absorb the function of the keys, and the outputs go through that of the values. To the engine such a layer has one KV
head, whose key is the latent followed by the rotary key, and whose value is the latent.

A layer is recognised by what it computes: one of its linear modules gives, head by head, the keys and the values that
the attention function is called with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

_latents: WeakKeyDictionary[nn.Module, LatentProjection] = WeakKeyDictionary()


class LatentProjection:
    """The linear module of a layer that expands latents, `[tokens, rank]`, for `num_heads` heads.

    Its weight is `[heads * (key_dim + value_dim), rank]`, where `key_dim` counts the dimensions without position.
    """

    def __init__(self, linear: nn.Linear, num_heads: int, value_dim: int) -> None:
        self._linear = linear
        self._num_heads = num_heads
        self._value_dim = value_dim
        self._latent: Tensor | None = None
        self._handle = linear.register_forward_pre_hook(self._note)

    def close(self) -> None:
        """Stop watching the linear module."""
        self._handle.remove()

    def _note(self, linear: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._latent = inputs[0].reshape(-1, inputs[0].shape[-1])

    def take_latent(self) -> Tensor:
        """The latest latents, `[tokens, rank]`; each pass gives them once."""
        latent, self._latent = self._latent, None
        assert latent is not None, "the layer attends before it has expanded its latents"
        return latent

    @property
    def weights(self) -> tuple[Tensor, Tensor]:
        """What gives the keys without position, `[heads, key_dim, rank]`, and the values, `[heads, value_dim, rank]`"""
        weight = self._linear.weight.view(self._num_heads, -1, self._linear.in_features)
        return weight[:, : -self._value_dim], weight[:, -self._value_dim :]


@dataclass(frozen=True, slots=True)
class LatentCall:
    """The arguments of one call of the attention function, on latents.

    `queries` `[heads, tokens, rank + rotary_dim]`, `keys` `[1, tokens, rank + rotary_dim]`, `values`
    `[1, tokens, rank]`.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    _value_weight: Tensor

    def expand(self, output: Tensor) -> Tensor:
        """Attention's output on latents, `[heads, tokens, rank]` -> `[heads, tokens, value_dim]`."""
        return output @ self._value_weight.transpose(1, 2)


def as_latent(module: nn.Module, queries: Tensor, keys: Tensor) -> LatentCall | None:
    """The call of the layer's `module` on latents; None when the layer keeps keys and values.

    `queries` and `keys`: `[heads, tokens, key_dim + rotary_dim]`.
    """
    projection = _latents.get(module)
    if projection is None:
        return None
    key_weight, value_weight = projection.weights
    key_dim = key_weight.shape[1]
    latent = projection.take_latent().unsqueeze(0)
    absorbed = queries[..., :key_dim] @ key_weight
    return LatentCall(
        queries=torch.cat([absorbed, queries[..., key_dim:]], dim=-1),
        keys=torch.cat([latent, keys[:1, :, key_dim:]], dim=-1),
        values=latent,
        _value_weight=value_weight,
    )


@dataclass(frozen=True, slots=True)
class LatentSizes:
    """What a token's key on latents consists of: `rank` numbers of the latent and `rotary_dim` of the rotary key."""

    rank: int
    rotary_dim: int


class LatentProbe:
    """Watches one forward pass of `model` for layers with latents, as a context manager; forgets those found before."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._passed: dict[nn.Linear, tuple[Tensor, Tensor]] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> LatentProbe:
        for module in self._model.modules():
            if (projection := _latents.pop(module, None)) is not None:
                projection.close()
            # a subclass may be quantised: only a plain weight can be absorbed
            if type(module) is nn.Linear and [name for name, _ in module.named_parameters()] == ["weight"]:
                self._handles.append(module.register_forward_hook(self._note))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._passed.clear()

    def _note(self, linear: nn.Linear, inputs: tuple[Any, ...], output: Any) -> None:
        self._passed[linear] = (inputs[0], output)

    def find(self, module: nn.Module, keys: Tensor, values: Tensor) -> LatentSizes | None:
        """The sizes of the latents of the layer's `module`, which `as_latent` uses from now on; None without any.

        `keys` and `values` `[heads, tokens, dim]`: what it calls the attention function with.
        """
        num_heads, num_tokens, value_dim = values.shape
        for linear in module.children():
            if not isinstance(linear, nn.Linear) or linear not in self._passed:
                continue
            latent, output = self._passed[linear]
            rank, rest = latent.shape[-1], linear.out_features - num_heads * value_dim
            if latent.numel() != num_tokens * rank or rest <= 0 or rest % num_heads or keys.shape[0] != num_heads:
                continue
            expanded = output.reshape(num_tokens, num_heads, -1).transpose(0, 1)
            key_dim = rest // num_heads
            rotary = keys[..., key_dim:]
            if (
                torch.equal(expanded[..., key_dim:], values)
                and torch.equal(expanded[..., :key_dim], keys[..., :key_dim])
                and torch.equal(rotary, rotary[:1].expand_as(rotary))
                and rank + rotary.shape[-1] < num_heads * (keys.shape[-1] + value_dim)
            ):
                _latents[module] = LatentProjection(linear, num_heads, value_dim)
                return LatentSizes(rank, rotary.shape[-1])
        return None
