"""Which tokens each layer of a model may see, read from the masks that the model itself asks for.

transformers describes a mask as a function of two positions and has it built by a function that is registered for the
attention implementation. The one here also recognises what the mask says, at any distance: a probe of a few tokens
tells a window of 4096 tokens from causal attention.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import sdpa_mask

from server.engine.attention.interface import Reach
from server.engine.current import Current

MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""transformers' form: (batch, head, query position, key position), int64 tensors that broadcast -> bool."""

_NEAR = 48


Sight = Reach | str
"""What a token sees, or in words what it sees instead of that."""

CAUSAL = Reach()


class MaskLog:
    """The masks built during one forward pass. `sights`: what each layer that was given one sees, by its mask."""

    def __init__(self, context: int) -> None:
        self._context = context
        self._built: list[tuple[Tensor, Sight | None]] = []
        self.sights: dict[int, Sight] = {}

    def build(self, mask_function: MaskFunction, **sizes: Any) -> Tensor:
        """The mask `[batch, 1, queries, keys]`, True where attended to; remembers what it says."""
        sizes |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
        mask = sdpa_mask(mask_function=mask_function, **sizes)
        assert isinstance(mask, Tensor)
        mask = mask.contiguous()
        try:
            sight: Sight | None = recognise(mask_function, self._context, mask.device)
        except (IndexError, RuntimeError, TypeError):  # it depends on more than the two positions
            sight = _recognise_grid(mask[0, 0])
        self._built.append((mask, sight))
        return mask

    def sight_of(self, mask: Tensor) -> Sight | None:
        """What the mask that reached a layer says: one of those built here, whole or a part of it, or any other.

        None when it is causal as far as it goes and nothing is known of what lies beyond.
        """
        for built, sight in self._built:
            if mask.untyped_storage().data_ptr() == built.untyped_storage().data_ptr():
                return sight
        if mask.dtype != torch.bool:
            allowed = mask == 0
            if not bool((allowed | (mask <= -1e4)).all()):
                return "adds a bias of its own to the attention's logits"
            mask = allowed
        if mask.ndim != 4 or not bool((mask == mask[:1, :1]).all()):
            return "has a mask of its own for each head"
        sights = {sight for built, sight in self._built if torch.equal(built[0, 0], mask[0, 0])}
        return sights.pop() if len(sights) == 1 else _recognise_grid(mask[0, 0])


_current: Current[MaskLog] = Current("tiller_mask_log")


def logging_masks(context: int) -> AbstractContextManager[MaskLog]:
    """Masks built by `build_logged_mask` inside are remembered; a window of `context` tokens or more is no window."""
    return _current.set_to(MaskLog(context))


def current_masks() -> MaskLog:
    """The log of the pass that is running, inside `logging_masks`."""
    return _current.require()


def build_logged_mask(*, mask_function: MaskFunction, **sizes: Any) -> Tensor:
    """A function for transformers' `AttentionMaskInterface`; runs inside `logging_masks`."""
    return current_masks().build(mask_function, **sizes)


def recognise(mask_function: MaskFunction, context: int, device: torch.device) -> Sight:
    """What `mask_function` says over `context` tokens. Raises what it raises at positions that it does not know."""
    zero = torch.zeros((), dtype=torch.int64, device=device)
    everything = torch.arange(context, device=device)
    hides_first = torch.nonzero(~_at(mask_function, zero, everything, zero).expand(context))
    size = None if len(hides_first) == 0 else int(hides_first[0])
    landmarks = [0, context // 2, context - 1] if size is None else [0, size, 2 * size, 3 * size, context - 1]
    near = torch.arange(-_NEAR // 2, _NEAR // 2, device=device)
    positions = (torch.tensor(landmarks, device=device)[:, None] + near).flatten().clamp(0, context - 1)
    queries, keys = positions[:, None], positions[None, :]
    allowed = _at(mask_function, zero, queries, keys).expand(len(positions), len(positions))
    return _match(allowed, queries, keys, size)


def _at(mask_function: MaskFunction, zero: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
    return torch.as_tensor(mask_function(zero, zero, queries, keys))


def _recognise_grid(allowed: Tensor) -> Sight | None:
    """The same for a mask that is only known as bool `[queries, keys]`, from the first position on; None if causal."""
    if allowed.shape[0] != allowed.shape[1]:
        return "attends to other tokens than those of its sequence"
    positions = torch.arange(len(allowed), device=allowed.device)
    hides_first = torch.nonzero(~allowed[:, 0])
    size = None if len(hides_first) == 0 else int(hides_first[0])
    sight = _match(allowed, positions[:, None], positions[None, :], size)
    return None if sight == CAUSAL else sight


def _match(allowed: Tensor, queries: Tensor, keys: Tensor, size: int | None) -> Sight:
    """The `Sight` that gives `allowed` at these positions; `size` is the first query that does not see position 0."""
    causal = keys <= queries
    if torch.equal(allowed, causal):
        return CAUSAL
    if size is not None and size > 0:
        if torch.equal(allowed, causal & (queries - keys < size)):
            return Reach(window=size)
        if torch.equal(allowed, causal & (queries // size == keys // size)):
            return Reach(chunk=size)
    if bool((allowed & ~causal).any()):
        return "lets tokens see later ones (bidirectional attention)"
    return "has a mask that is neither causal, nor a sliding window, nor chunks"
