"""Finds out whether a model's blocks allow late entry, and whether its head can be computed for a few tokens only.

No family is known by name. Packs of two lengths show which arguments of a block vary with the tokens. Then the last
token of a prompt, changed at the input of every block in turn, is computed from the embedding on, and again from that
block on; both must give the same logits. A model whose blocks pass on more than one stream (several streams, keys that
later layers share) fails this, and each branch then computes all of its blocks.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from server.engine.attention.function import attention_step
from server.engine.attention.interface import NO_SLOT, LayerAttention, PagedAttention, Segment, Stretches, page_groups
from server.engine.entry_points import EntryPoints
from server.engine.late_entry import (
    BlockLayout,
    Stages,
    install_late_entry,
    late_entry_step,
    leaves_of,
    plan_stages,
)
from vectors.sites import activation_of

_log = logging.getLogger(__name__)

Forward = Callable[..., Tensor]
"""A packed pass in an `attention_step`: tokens, positions, wanted, and the wanted `vocabulary` -> logits."""

_ROWS_PER_BLOCK = 5
_TOLERANCES = {torch.float32: 0.005, torch.float16: 0.03, torch.bfloat16: 0.1}
"""Several times the rounding of a whole pass; a row that goes on from a wrong stream differs by half and more."""


@dataclass(frozen=True)
class EntryProbe:
    """Runs `prompt`, int64 `[tokens]`, with `forward` and an `attention` for `layers`, whose KV has `dtype`.

    The prompt has at least two tokens. `rounding`: how much more room than others the model's arithmetic needs.
    """

    forward: Forward
    blocks: Sequence[nn.Module]
    attention: type[PagedAttention]
    layers: Sequence[LayerAttention | None]
    prompt: Tensor
    dtype: torch.dtype
    rounding: float = 1.0

    def has_partial_head(self) -> bool:
        """True when `forward` gives the same logits for a few tokens of the vocabulary as for all of it."""
        vocabulary = torch.unique(self.prompt)
        try:
            with self._kv() as kv:
                whole, part = (self._read(kv, len(self.prompt), given) for given in (None, vocabulary))
            return part.shape[-1] == len(vocabulary) and self._agree(part, whole[:, vocabulary])
        except Exception as error:  # the model's own code may raise anything
            _log.debug("the head is always computed whole: %s", error)
            return False

    def install(self) -> bool:
        """Put the hooks of late entry on the blocks; False when they do not allow it, and then none are left."""
        remove: Callable[[], None] | None = None
        try:
            layouts = self._find_layouts()
            if layouts is not None:
                remove = install_late_entry(self.blocks, layouts)
                if self._enters_exactly():
                    return True
        except Exception as error:  # the model's own code may raise anything
            _log.debug("every branch computes all blocks: %s", error)
        if remove is not None:
            remove()
        return False

    def _find_layouts(self) -> list[BlockLayout] | None:
        """The layout of each block; None if an argument varies with the tokens in an unclear way."""
        seen: list[list[tuple[list[Any], Tensor]]] = [[] for _ in self.blocks]

        def look(block: int) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
                seen[block].append((leaves_of((args, kwargs)), activation_of(output)))

            return hook

        handles = [
            module.register_forward_hook(look(block), with_kwargs=True) for block, module in enumerate(self.blocks)
        ]
        try:
            with self._kv() as kv:
                for length in (len(self.prompt), len(self.prompt) - 1):
                    self._read(kv, length)
        finally:
            for handle in handles:
                handle.remove()
        layouts = []
        for (longer, output), (shorter, shorter_output) in seen:
            dims = [_token_dims(*leaves) for leaves in zip(longer, shorter, strict=True)]
            output_dims = _token_dims(output, shorter_output)
            if len(output_dims) != 1 or any(len(each) > 1 for each in dims):
                return None
            layouts.append(BlockLayout(tuple(each[0] if each else None for each in dims), output_dims[0]))
        return layouts

    def _enters_exactly(self) -> bool:
        """Compare rows that enter at every block with rows that compute all."""
        first_blocks = np.repeat(np.arange(1, len(self.blocks) + 1), _ROWS_PER_BLOCK)
        first_blocks = np.concatenate([[0], first_blocks])
        with self._kv() as kv:
            self._read(kv, len(self.prompt) - 1)
            whole, late = (self._branch(kv, first_blocks, enters_late=enters) for enters in (False, True))
        return all(
            self._agree(late[first_blocks == block], whole[first_blocks == block]) for block in np.unique(first_blocks)
        )

    def _read(self, kv: PagedAttention, length: int, vocabulary: Tensor | None = None) -> Tensor:
        """Logits of the first `length` tokens, whose KV is kept from slot 0 on."""
        slots = torch.arange(length, device=self.prompt.device)
        segment = Segment(0, length, 0, self._stretches(length))
        step = kv.plan([segment], [slots] * self._num_groups)
        with torch.inference_mode(), attention_step(step):
            return self.forward(self.prompt[:length], slots, slots, vocabulary)

    def _branch(self, kv: PagedAttention, first_blocks: npt.NDArray[np.int64], *, enters_late: bool) -> Tensor:
        """Logits of the last token, once for each of `first_blocks`, each changed at the input of that block."""
        num_rows, num_past, device = len(first_blocks), len(self.prompt) - 1, self.prompt.device
        segment = Segment(0, num_rows, num_past, self._stretches(num_past), is_branching=True)
        slots = [torch.full((num_rows,), NO_SLOT, device=device)] * self._num_groups
        entries = first_blocks if enters_late else np.zeros_like(first_blocks)
        stages = Stages(entries, [segment], EntryPoints(len(self.blocks)))
        handles = [
            module.register_forward_hook(_change(stages, block + 1, np.flatnonzero(first_blocks == block + 1)))
            for block, module in enumerate(self.blocks)
        ]
        try:
            with torch.inference_mode(), late_entry_step(stages), attention_step(plan_stages(kv, stages, slots)):
                tokens = self.prompt[-1:].repeat(num_rows)
                rows = torch.arange(num_rows, device=device)
                return self.forward(tokens, torch.full_like(tokens, num_past), rows, None)
        finally:
            for handle in handles:
                handle.remove()

    @contextlib.contextmanager
    def _kv(self) -> Iterator[PagedAttention]:
        kv = self.attention(
            self.layers,
            num_pages=[1] * self._num_groups,
            page_size=len(self.prompt),
            dtype=self.dtype,
            device=self.prompt.device,
        )
        with contextlib.closing(kv):
            yield kv

    def _stretches(self, length: int) -> tuple[Stretches, ...]:
        return (Stretches(((0, length),)),) * self._num_groups

    @property
    def _num_groups(self) -> int:
        return len(page_groups(self.layers))

    def _agree(self, found: Tensor, expected: Tensor) -> bool:
        """The median row, since a router that is undecided may send a few elsewhere."""
        found, expected = found.float(), expected.float()
        sizes = (expected - expected.mean(-1, keepdim=True)).abs().sum(-1)
        shares = (found - expected).abs().sum(-1) / sizes.clamp_min(torch.finfo(torch.float32).tiny)
        return bool(shares.median() <= _TOLERANCES[self.dtype] * self.rounding)


def _change(stages: Stages, block: int, rows: npt.NDArray[np.int64]) -> Callable[[nn.Module, Any, Any], None]:
    """A hook that changes `rows` of what `block` is given, each in a direction of its own."""
    places = np.searchsorted(stages.of_point(block).tokens, rows)

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        activation = activation_of(output)
        flat = activation.reshape(-1, activation.shape[-1])
        generator = torch.Generator().manual_seed(block)
        noise = torch.randn(len(rows), flat.shape[-1], generator=generator).to(flat)
        flat[torch.from_numpy(places).to(flat.device)] += noise * flat[0].square().mean().sqrt()
        activation.copy_(flat.view_as(activation))

    return hook


def _token_dims(longer: Any, shorter: Any) -> list[int]:
    """The dimensions in which two arguments differ, which is one if it counts tokens; several if they are unlike."""
    if not isinstance(longer, Tensor) or not isinstance(shorter, Tensor):
        return [] if isinstance(longer, Tensor) == isinstance(shorter, Tensor) else [-1, -1]
    if longer.ndim != shorter.ndim:
        return [-1, -1]
    return [dim for dim, sizes in enumerate(zip(longer.shape, shorter.shape, strict=True)) if sizes[0] != sizes[1]]
