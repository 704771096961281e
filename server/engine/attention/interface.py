"""What the engine asks of an attention implementation: hold the KV, plan a step, write new KV, attend.

The model runs on packed batches: the new tokens of several sequences, one after the other. For each step the runner
calls `PagedAttention.plan` with the step's segments; every layer of the model then calls `write` and `attend` of the
`AttentionStep` that it returns. The layout of the KV in memory belongs to the implementation; the rest of the engine
sees only page and slot numbers. Layers that see equally far form a group, and each group has pages of its own: those
of a sliding window are needed for a while only.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

NO_SLOT = -1
"""The slot of a token whose KV is not kept."""


@dataclass(frozen=True, slots=True)
class Stretches:
    """Where one group keeps a sequence: the slots `[first, last)` of its tokens from position `start` on, in order.

    Each begins at the first slot of a page, so they are the sequence's page table with adjacent pages run together.
    """

    slots: tuple[tuple[int, int], ...]
    start: int = 0

    def since(self, position: int) -> Iterator[tuple[int, int]]:
        """The slots `[first, last)` of the tokens from `position` of the sequence on, which must be kept."""
        position -= self.start
        for first, last in self.slots:
            if position < last - first:
                yield first + position, last
            position = max(0, position - (last - first))


@dataclass(frozen=True, slots=True)
class Segment:
    """The new tokens of one sequence in a step: pack positions `[start, end)`, after `num_past` tokens in the KV.

    `stretches`: for each group the slots that hold what it still sees of the past **and** the new tokens. New tokens
    that are branching see the past and themselves but not each other, and are not kept: `stretches` hold only the past.
    """

    start: int
    end: int
    num_past: int
    stretches: tuple[Stretches, ...]
    is_branching: bool = False

    @property
    def num_new(self) -> int:
        """The number of tokens that this step adds."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Reach:
    """How far tokens see: all those before them and themselves, with a `window` the last `window` of them, with a
    `chunk` those from the latest multiple of `chunk` on."""

    window: int | None = None
    chunk: int | None = None

    @property
    def num_tokens(self) -> int | None:
        """The most tokens that one sees; None without a limit."""
        return min((limit for limit in (self.window, self.chunk) if limit is not None), default=None)

    def first_seen(self, position: int) -> int:
        """The first position that a token at `position` sees."""
        if self.chunk is not None:
            return position - position % self.chunk
        return 0 if self.window is None else max(0, position + 1 - self.window)


@dataclass(frozen=True, slots=True)
class LayerAttention:
    """What one layer of a model asks of its attention.

    A token's keys are `[kv_heads, key_dim]`, its values `[kv_heads, value_dim]`. `reach`: what a token sees.
    `softcap`: the bound on the logits; None for no bound. `has_sinks`: True when each head has a sink, a logit that
    takes part in the softmax and has no value.

    `is_latent`: a token's values are the first `value_dim` of its keys, so they are not kept again. `shares`: the
    earlier layer whose keys and values this layer is given, so that it keeps none; None when it has its own.
    """

    kv_heads: int
    key_dim: int
    value_dim: int
    reach: Reach = Reach()
    softcap: float | None = None
    has_sinks: bool = False
    is_latent: bool = False
    shares: int | None = None

    @property
    def numbers_per_token(self) -> int:
        """How many numbers the layer keeps of a token."""
        if self.shares is not None:
            return 0
        return self.kv_heads * (self.key_dim + (0 if self.is_latent else self.value_dim))


def page_groups(layers: Sequence[LayerAttention | None]) -> tuple[Reach, ...]:
    """The groups of `layers`: how far each group sees, the farthest first; at least one."""
    reaches = {reach for reach in _reaches_of_pages(layers) if reach is not None}
    return tuple(sorted(reaches or {Reach()}, key=lambda reach: -(reach.num_tokens or sys.maxsize)))


def groups_of_layers(layers: Sequence[LayerAttention | None]) -> tuple[int | None, ...]:
    """The index in `page_groups` of each layer's group; None for a layer without attention."""
    groups = page_groups(layers)
    return tuple(None if reach is None else groups.index(reach) for reach in _reaches_of_pages(layers))


def _reaches_of_pages(layers: Sequence[LayerAttention | None]) -> list[Reach | None]:
    """How long each layer's KV is needed: as long as a layer that reads it sees it."""
    owners = [index if layer is None or layer.shares is None else layer.shares for index, layer in enumerate(layers)]
    read: dict[int, set[Reach]] = {}
    for layer, owner in zip(layers, owners, strict=True):
        if layer is not None:
            read.setdefault(owner, set()).add(layer.reach)
    kept = {owner: next(iter(reaches)) if len(reaches) == 1 else Reach() for owner, reaches in read.items()}
    return [kept.get(owner) for owner in owners]


@dataclass(frozen=True, slots=True)
class AttentionArguments:
    """How a layer attends: logits are `scale * query . key`, then `softcap * tanh(logits / softcap)`.

    `sinks`: one logit per head, `[heads]`, or None. What a token sees is in the layer's `LayerAttention`.
    """

    scale: float
    softcap: float | None = None
    sinks: Tensor | None = None


class AttentionStep(ABC):
    """The attention of one forward pass. Each layer calls `write`, then `attend`, once."""

    @abstractmethod
    def write(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Keep the new `keys` `[kv_heads, tokens, key_dim]` and `values` `[kv_heads, tokens, value_dim]` in the slots
        that the step was planned with."""

    @abstractmethod
    def attend(
        self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, arguments: AttentionArguments
    ) -> Tensor:
        """Attend to the past and, causally, to the new tokens: queries `[heads, tokens, key_dim]` ->
        `[heads, tokens, value_dim]`, in the queries' dtype.

        Query heads share a KV head in groups, in order. `keys` and `values` are what `write` was given.
        """

    def of_point(self, point: int) -> AttentionStep:
        """What computes the tokens of a pass from `point` of `EntryPoints` on, where they are not all of its tokens."""
        return self


class PagedAttention(ABC):
    """The KV of one model, in pages of `page_size` tokens, and attention over it.

    Slot `s` of a group is token `s % page_size` of its page `s // page_size`, in every layer of the group.
    """

    @classmethod
    @abstractmethod
    def supports(cls, layers: Sequence[LayerAttention | None], dtype: torch.dtype, device: torch.device) -> bool:
        """True when this implementation computes all of `layers` exactly, in `dtype` on `device`."""

    @classmethod
    def numbers_per_token(cls, layer: LayerAttention) -> int:
        """How many numbers this implementation keeps of a token in `layer`."""
        return layer.numbers_per_token

    @classmethod
    def bytes_per_token(cls, layers: Sequence[LayerAttention | None], dtype: torch.dtype) -> tuple[int, ...]:
        """Bytes of KV per token, over all layers of each group of `page_groups(layers)`."""
        numbers = [0] * len(page_groups(layers))
        for layer, group in zip(layers, groups_of_layers(layers), strict=True):
            if layer is not None and group is not None:
                numbers[group] += cls.numbers_per_token(layer)
        return tuple(number * dtype.itemsize for number in numbers)

    @abstractmethod
    def __init__(
        self,
        layers: Sequence[LayerAttention | None],
        *,
        num_pages: Sequence[int],
        page_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Allocate the KV: `num_pages` for each group of `page_groups(layers)`.

        Raises `MemoryError` or `RuntimeError` when it does not fit.
        """

    @abstractmethod
    def plan(self, segments: Sequence[Segment], slots: Sequence[Tensor]) -> AttentionStep:
        """Prepare a step on the pack that `segments` cover, in order and without gaps.

        `slots` int64 `[tokens]` on the device, for each group: where each new token's KV goes; `NO_SLOT` where it is
        not kept.
        """

    @abstractmethod
    def close(self) -> None:
        """Free the KV. No step may follow."""
