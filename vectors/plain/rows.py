"""RowHooks: steers each row of a batch in its own way, and reads activations, on a plain transformers model.

Without a context the hooks do nothing. The arithmetic of a place is in float32 and cast back once.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from vectors.applied import AppliedVector, change_at
from vectors.operations import PlaceChange
from vectors.positions import MAX_POSITION, coverage_of
from vectors.sites import ModelSites, activation_of
from vectors.vocabulary import Place, Site

RowChanges: TypeAlias = Mapping[Place, Sequence[tuple[range, PlaceChange]]]
"""What a steering does at each place, and to the tokens of which positions."""


@dataclass(frozen=True, slots=True)
class Row:
    """How one row of a batch is steered. Its first token is at position `first`."""

    changes: RowChanges
    first: int = 0


@dataclass(frozen=True, slots=True)
class _Pass:
    """What the forward passes of a context do: `rows` by place, with their numbers in the batch."""

    num_rows: int
    rows: Mapping[Place, Sequence[tuple[int, Row]]]
    captured: dict[Place, Tensor]
    wanted: frozenset[Site]


class RowHooks:
    """Hooks on every site of a model; `close` removes them. Contexts do not nest."""

    def __init__(self, sites: ModelSites) -> None:
        self._hidden_size = sites.hidden_size
        self._pass: _Pass | None = None
        self._handles = [
            module.register_forward_hook(self._hook((site, layer)))
            for site, modules in sites.modules.items()
            for layer, module in enumerate(modules)
        ]

    def close(self) -> None:
        """Remove the hooks from the model."""
        for handle in self._handles:
            handle.remove()

    @contextlib.contextmanager
    def rows(self, rows: Sequence[Row], capture: Sequence[Site] = ()) -> Iterator[Mapping[Place, Tensor]]:
        """Steer every forward pass within the context, each of a batch of `rows`.

        Yields what the last pass gave at the sites of `capture`: the steered activations of every row's last token,
        float32 `[rows, hidden]` on the model's device.
        """
        assert self._pass is None, "a pass is already under way"
        at: dict[Place, list[tuple[int, Row]]] = {}
        for number, row in enumerate(rows):
            for place in row.changes:
                at.setdefault(place, []).append((number, row))
        self._pass = _Pass(len(rows), at, {}, frozenset(capture))
        try:
            yield self._pass.captured
        finally:
            self._pass = None

    def _hook(self, place: Place) -> Callable[[nn.Module, Any, Any], Any]:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            now = self._pass
            if now is None:
                return None
            rows = now.rows.get(place, ())
            activation = activation_of(output)
            if rows:
                activation = activation.clone(memory_format=torch.contiguous_format)
                for number, row in rows:
                    _steer(activation.view(now.num_rows, -1, self._hidden_size)[number], row, row.changes[place])
            if place[0] in now.wanted:
                now.captured[place] = activation.reshape(now.num_rows, -1, self._hidden_size)[:, -1].float()
            if not rows:
                return None
            return (activation, *output[1:]) if isinstance(output, tuple) else activation

        return hook


class Changes:
    """What vectors do together. The change of each place is made once, however many prompts it is used with."""

    def __init__(self, applied: Sequence[AppliedVector], device: torch.device) -> None:
        self._applied = [one for one in applied if one.is_active]
        self._device = device
        self._made: dict[tuple[Place, tuple[bool, ...]], PlaceChange] = {}

    @property
    def may_touch_prompt(self) -> bool:
        """False when no token before the last one of a prompt is changed."""
        return any(coverage_of(one.positions, MAX_POSITION).prompt for one in self._applied)

    def of_prompt(self, num_prompt: int) -> RowChanges:
        """The changes where a prompt has `num_prompt` tokens; directions are on the device."""
        covered = [coverage_of(one.positions, num_prompt) for one in self._applied]
        spans = [span for own in covered for span in (own.prompt, own.response)]
        edges = sorted({edge for span in spans for edge in (span.start, span.stop)})
        found: dict[Place, list[tuple[range, PlaceChange]]] = {}
        for place in dict.fromkeys(place for one in self._applied for place in one.places):
            for start, end in itertools.pairwise(edges):
                change = self._change(place, tuple(start in own for own in covered))
                if not change.is_nothing:
                    found.setdefault(place, []).append((range(start, end), change))
        return found

    def _change(self, place: Place, is_covered: tuple[bool, ...]) -> PlaceChange:
        change = self._made.get((place, is_covered))
        if change is None:
            here = [one for one, is_in in zip(self._applied, is_covered, strict=True) if is_in]
            change = self._made[place, is_covered] = change_at(here, place).to(self._device)
        return change


def _steer(activation: Tensor, row: Row, changes: Sequence[tuple[range, PlaceChange]]) -> None:
    """Change a row's activations `[tokens, hidden]` in place."""
    length = activation.shape[0]
    for span, change in changes:
        first, last = (min(max(edge - row.first, 0), length) for edge in (span.start, span.stop))
        if first < last:
            part = activation[first:last]
            part.copy_(change.to(part.device).apply(part.to(torch.float32)))
