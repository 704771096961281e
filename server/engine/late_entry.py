"""Late entry: rows of a pack that compute only what comes after some point, and go on from another row's numbers.

A pass begins with the rows that compute every block. At each point (`entry_points.py`) the rows that enter there join
them, with the numbers of their base row; see `branches.py`. The rows between two points are a **stage**. Fused blocks
compute stage by stage (`fused_blocks.py`). A model's own code stays as it is, and is entered between blocks: hooks give
each block the tokens of its stage, by narrowing all that varies with the number of tokens, and widen its output for the
next.

Which of a block's arguments these are is found by running packs of two lengths (`entry_probe.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from server.engine.attention.interface import AttentionArguments, AttentionStep, PagedAttention, Segment
from server.engine.current import Current
from server.engine.entry_points import EntryPoints
from vectors.sites import activation_of

_Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class BlockLayout:
    """Which dimension counts tokens, of each argument of one block, in the order of `leaves_of`, and of its output.

    None: it does not depend on the tokens.
    """

    arguments: tuple[int | None, ...]
    output: int


@dataclass(frozen=True, slots=True)
class Stage:
    """The part of a pack that is computed from one point to another.

    `tokens` int64 `[stage]`: indices in the pack, ascending. `sources` int64 `[stage]`: where in the stage before each
    finds its stream, which is its own row or, if it enters here, its base's.
    """

    tokens: _Int64Array
    sources: _Int64Array


class Stages:
    """The stages of one pass. `entries` `[tokens]`: at which of `points` each token enters, ascending in each of
    `segments`, whose first token is the base of those that enter late and computes every block.
    """

    def __init__(self, entries: _Int64Array, segments: Sequence[Segment], points: EntryPoints) -> None:
        self.num_tokens, self.points = len(entries), points
        base = np.repeat([segment.start for segment in segments], [segment.num_new for segment in segments])
        firsts = np.unique(entries)
        assert firsts[0] == 0
        self.begins: list[int] = firsts.tolist()
        numbers = np.searchsorted(firsts, np.arange(points.num_points + 1), side="right") - 1
        self.number_of_point: list[int] = numbers.tolist()
        self.stages: list[Stage] = []
        place = np.arange(self.num_tokens)  # of each token in the stage before
        before = 0
        for first in firsts:
            tokens = np.flatnonzero(entries <= first)
            is_old = entries[tokens] <= before
            self.stages.append(Stage(tokens, place[np.where(is_old, tokens, base[tokens])]))
            place = np.full(self.num_tokens, -1)
            place[tokens] = np.arange(len(tokens))
            before = first
        self._segments = segments

    def of_point(self, point: int) -> Stage:
        """What is computed from `point` on; at the last one all tokens are there."""
        return self.stages[self.number_of_point[point]]

    def segments_of(self, stage: Stage) -> list[Segment]:
        """The segments of the pack, with those of their tokens that are in `stage`."""
        found = []
        edges = np.searchsorted(stage.tokens, [edge for each in self._segments for edge in (each.start, each.end)])
        for segment, start, end in zip(self._segments, edges[0::2].tolist(), edges[1::2].tolist(), strict=True):
            found.append(replace(segment, start=start, end=end))
        return found


def plan_stages(attention: PagedAttention, stages: Stages, slots: Sequence[Tensor]) -> AttentionStep:
    """A step of `attention` on the pack of `stages`; `slots` as in `PagedAttention.plan`."""
    steps = []
    for stage in stages.stages:
        tokens = torch.from_numpy(stage.tokens).to(slots[0].device)
        steps.append(attention.plan(stages.segments_of(stage), [own.index_select(0, tokens) for own in slots]))
    return _StagedAttention(stages, steps)


class _StagedAttention(AttentionStep):
    """The attention of a pass in stages: `steps[number]` is that of a stage."""

    def __init__(self, stages: Stages, steps: Sequence[AttentionStep]) -> None:
        self._step_of_point = [steps[number] for number in stages.number_of_point]
        self._points = stages.points

    def write(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """See `AttentionStep.write`."""
        self._of_layer(layer).write(layer, keys, values)

    def attend(
        self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, arguments: AttentionArguments
    ) -> Tensor:
        """See `AttentionStep.attend`."""
        return self._of_layer(layer).attend(layer, queries, keys, values, arguments)

    def of_point(self, point: int) -> AttentionStep:
        """See `AttentionStep.of_point`."""
        return self._step_of_point[point]

    def _of_layer(self, layer: int) -> AttentionStep:
        return self._step_of_point[self._points.of_block(layer)]


_current: Current[Stages] = Current("tiller_stages")


def late_entry_step(stages: Stages) -> AbstractContextManager[Stages]:
    """Let the blocks of a model that `install_late_entry` prepared compute `stages`; does not nest."""
    return _current.set_to(stages)


def current_stages() -> Stages | None:
    """Those of the pass under way, if any."""
    return _current.get()


def install_late_entry(blocks: Sequence[nn.Module], layouts: Sequence[BlockLayout]) -> Callable[[], None]:
    """Put hooks on `blocks` that do nothing outside of a `late_entry_step`; returns what removes them."""
    handles = []
    for block, (module, layout) in enumerate(zip(blocks, layouts, strict=True)):
        hooks = _BlockHooks(block, layout)
        handles.append(module.register_forward_pre_hook(hooks.narrow, with_kwargs=True))
        handles.append(module.register_forward_hook(hooks.widen, prepend=True))

    def remove() -> None:
        for handle in handles:
            handle.remove()

    return remove


class _BlockHooks:
    def __init__(self, block: int, layout: BlockLayout) -> None:
        self._block = block
        self._layout = layout

    def narrow(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """The block's arguments for the tokens of its stage; what comes from the block before is narrow already."""
        stages = _current.get()
        if stages is None:
            return None
        tokens = stages.of_point(self._block).tokens
        if len(tokens) == stages.num_tokens:
            return None
        dims = iter(self._layout.arguments)

        def narrowed(leaf: Any) -> Any:
            dim = next(dims)
            if dim is None or leaf.shape[dim] != stages.num_tokens:
                return leaf
            return leaf.index_select(dim, torch.from_numpy(tokens).to(leaf.device))

        own_args, own_kwargs = map_leaves((args, kwargs), narrowed)
        return own_args, own_kwargs

    def widen(self, module: nn.Module, args: Any, output: Any) -> Any:
        """The block's output for the tokens of the next block's stage."""
        stages = _current.get()
        if stages is None or self._block + 1 not in stages.begins:
            return None
        activation = activation_of(output)
        sources = torch.from_numpy(stages.of_point(self._block + 1).sources).to(activation.device)
        wide = activation.index_select(self._layout.output, sources)
        return (wide, *output[1:]) if isinstance(output, tuple) else wide


def leaves_of(arguments: Any) -> list[Any]:
    """What is in nested tuples, lists and dictionaries, in order."""
    found: list[Any] = []
    map_leaves(arguments, found.append)
    return found


def map_leaves(arguments: Any, function: Callable[[Any], Any]) -> Any:
    """Nested tuples, lists and dictionaries like `arguments`, with `function` applied to what is in them, in order."""
    if isinstance(arguments, Mapping):
        return {name: map_leaves(value, function) for name, value in arguments.items()}
    if isinstance(arguments, tuple | list):
        return type(arguments)(map_leaves(value, function) for value in arguments)
    return function(arguments)
