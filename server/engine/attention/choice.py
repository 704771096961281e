"""Which implementation of attention a model gets."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from server.engine.attention.compiled import CompiledAttention
from server.engine.attention.interface import LayerAttention, PagedAttention
from server.engine.attention.stretches import StretchAttention

ATTENTIONS: tuple[type[PagedAttention], ...] = (CompiledAttention, StretchAttention)
"""Every implementation, the fastest first; the last one supports everything."""


def attention_for(
    layers: Sequence[LayerAttention | None], dtype: torch.dtype, device: torch.device, *, is_compiled: bool
) -> type[PagedAttention]:
    """The first of `ATTENTIONS` that supports `layers` in `dtype` on `device`; `is_compiled`: may be a compiled one."""
    return next(
        attention
        for attention in ATTENTIONS
        if (is_compiled or attention is not CompiledAttention) and attention.supports(layers, dtype, device)
    )
