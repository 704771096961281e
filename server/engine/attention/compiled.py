"""Attention by the compiled kernels, in float32 on a CPU: one call a layer for all tokens of a step.

Keys are kept in blocks of 16 slots with the slots beside each other, so that 16 logits are computed at once; values are
kept row by row. A token's result is summed in the order of positions, whatever else is in the step.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from server.engine.attention.interface import (
    AttentionArguments,
    AttentionStep,
    LayerAttention,
    PagedAttention,
    Reach,
    Segment,
    groups_of_layers,
)
from server.kernels.library import Kernels, load_kernels
from server.kernels.structures import WIDTH, CacheLayout, Views

_TILE = 8
"""Query tokens of a chunk that are computed together; each costs the keys that only the others see."""

_BRANCHES = 24
"""Branches that are computed together: they see the same past, so more cost nothing, and fewer leave threads work."""


class CompiledAttention(PagedAttention):
    """The KV of each layer as `CacheLayout` describes it."""

    @classmethod
    def supports(cls, layers: Sequence[LayerAttention | None], dtype: torch.dtype, device: torch.device) -> bool:
        """True in float32 on a CPU where the kernels are, without latents; see `PagedAttention.supports`."""
        if (
            dtype is not torch.float32
            or device.type != "cpu"
            or any(layer is not None and layer.is_latent for layer in layers)
        ):
            return False
        return load_kernels() is not None

    @classmethod
    def numbers_per_token(cls, layer: LayerAttention) -> int:
        """See `PagedAttention.numbers_per_token`; values are padded to whole tiles."""
        return 0 if layer.shares is not None else layer.kv_heads * (layer.key_dim + _width(layer.value_dim))

    def __init__(
        self,
        layers: Sequence[LayerAttention | None],
        *,
        num_pages: Sequence[int],
        page_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        kernels = load_kernels()
        assert kernels is not None
        self._kernels = kernels
        self._layers, self._groups = tuple(layers), groups_of_layers(layers)
        self._kept: list[Tensor] = []
        self._layouts: list[CacheLayout | None] = []
        for layer, group in zip(layers, self._groups, strict=True):
            if layer is None or group is None:
                self._layouts.append(None)
            elif layer.shares is not None:
                self._layouts.append(self._layouts[layer.shares])
            else:
                self._layouts.append(self._allocate(layer, -(-num_pages[group] * page_size // WIDTH)))

    def _allocate(self, layer: LayerAttention, num_blocks: int) -> CacheLayout:
        width = _width(layer.value_dim)
        keys = torch.zeros(layer.kv_heads, num_blocks, layer.key_dim, WIDTH)
        values = torch.zeros(layer.kv_heads, num_blocks * WIDTH, width)
        self._kept += [keys, values]
        return CacheLayout(
            keys.data_ptr(), values.data_ptr(), num_blocks, layer.kv_heads, layer.key_dim, layer.value_dim, width
        )

    def plan(self, segments: Sequence[Segment], slots: Sequence[Tensor]) -> AttentionStep:
        """See `PagedAttention.plan`."""
        return CompiledStep(self._kernels, self._layers, self._groups, self._layouts, segments, slots)

    def close(self) -> None:
        """See `PagedAttention.close`."""
        self._kept, self._layouts = [], []


class CompiledStep(AttentionStep):
    """A step over the KV of `CompiledAttention`."""

    def __init__(
        self,
        kernels: Kernels,
        layers: Sequence[LayerAttention | None],
        groups: Sequence[int | None],
        layouts: Sequence[CacheLayout | None],
        segments: Sequence[Segment],
        slots: Sequence[Tensor],
    ) -> None:
        self._kernels = kernels
        self._layers = layers
        self._groups = groups
        self._layouts = layouts
        self._segments = segments
        self._slots = slots
        self._views: dict[tuple[int, Reach], Views] = {}

    def write(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """See `AttentionStep.write`."""
        if self._about(layer).shares is None:
            self._kernels.write(self.layout(layer), keys, values, self.views(layer).slots)

    def attend(
        self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, arguments: AttentionArguments
    ) -> Tensor:
        """See `AttentionStep.attend`."""
        sinks = None if arguments.sinks is None else arguments.sinks.detach().float().contiguous()
        output = self._kernels.attend(
            self.layout(layer), queries, keys, values, self.views(layer), arguments.scale, arguments.softcap, sinks
        )
        return output.transpose(0, 1)

    def views(self, layer: int) -> Views:
        """What the step's tokens see in `layer`, for the kernels."""
        group = self._groups[layer]
        assert group is not None, f"layer {layer} has no attention"
        reach = self._about(layer).reach
        views = self._views.get((group, reach))
        if views is None:
            views = self._views[group, reach] = _views_of(self._segments, group, reach, self._slots[group])
        return views

    def layout(self, layer: int) -> CacheLayout:
        """Where the KV of `layer` is, for the kernels."""
        layout = self._layouts[layer]
        assert layout is not None, f"layer {layer} has no attention"
        return layout

    def _about(self, layer: int) -> LayerAttention:
        about = self._layers[layer]
        assert about is not None, f"layer {layer} has no attention"
        return about


def _views_of(segments: Sequence[Segment], group: int, reach: Reach, slots: Tensor) -> Views:
    """What every token of the step sees in layers of `group` that see as far as `reach`."""
    ranges: list[tuple[int, int]] = []
    tiles = [0]
    num_tokens = segments[-1].end
    views = np.empty((num_tokens, 6), dtype=np.int64)
    for segment in segments:
        kept = segment.stretches[group]
        own = views[segment.start : segment.end]
        own[:, 0], own[:, 1], own[:, 2] = len(ranges), len(ranges) + len(kept.slots), kept.start
        ranges += kept.slots
        if segment.is_branching:
            own[:, 3], own[:, 4] = reach.first_seen(segment.num_past), segment.num_past
            own[:, 5] = np.arange(segment.start, segment.end)
            tiles += range(segment.start + _BRANCHES, segment.end, _BRANCHES)
            tiles.append(segment.end)
        else:
            positions = np.arange(segment.num_past, segment.num_past + segment.num_new)
            own[:, 3], own[:, 4], own[:, 5] = _first_seen(reach, positions), positions + 1, -1
            tiles += range(segment.start + _TILE, segment.end, _TILE)
            tiles.append(segment.end)
    own_tokens = int((views[:, 5] >= 0).any())
    longest = int((views[:, 4] - views[:, 3]).max()) + _TILE + own_tokens
    return Views(
        torch.tensor(ranges, dtype=torch.int64).reshape(-1, 2),
        torch.from_numpy(views),
        torch.tensor(tiles, dtype=torch.int64),
        slots.contiguous(),
        longest,
    )


def _first_seen(reach: Reach, positions: NDArray[np.int64]) -> NDArray[np.int64]:
    """`Reach.first_seen` of many positions."""
    if reach.chunk is not None:
        return positions - positions % reach.chunk
    return np.zeros_like(positions) if reach.window is None else np.maximum(0, positions + 1 - reach.window)


def _width(value_dim: int) -> int:
    return -(-value_dim // WIDTH) * WIDTH
