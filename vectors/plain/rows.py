"""RowHooks: steers each row of a batch in its own way, and reads activations, on a plain transformers model.

Without a context the hooks do nothing. The arithmetic of a place is in float32 and cast back once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from vectors.applied import AppliedVector, change_at
from vectors.operations import PlaceChange
from vectors.positions import Phase, coverage_of
from vectors.sites import ModelSites, activation_of
from vectors.vocabulary import Place, Site

RowChanges: TypeAlias = Mapping[Place, Mapping[Phase, PlaceChange]]
"""What a steering does at each place, by the phase of the tokens there."""


@dataclass(frozen=True, slots=True)
class Row:
    """How one row of a batch is steered. Its prompt has `num_prompt` tokens; its first token is at position `first`."""

    changes: RowChanges
    num_prompt: int
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


def changes_of(applied: Sequence[AppliedVector], device: torch.device) -> RowChanges:
    """The combined effect of the vectors at each place they change; directions are moved to `device`."""
    found: dict[Place, dict[Phase, PlaceChange]] = {}
    for place in dict.fromkeys(place for one in applied if one.is_active for place in one.places):
        found[place] = {}
        for phase in Phase:
            here = [one for one in applied if coverage_of(one.positions).covers(phase)]
            change = change_at(here, place)
            if not change.is_nothing:
                found[place][phase] = change.to(device)
    return found


def _steer(activation: Tensor, row: Row, changes: Mapping[Phase, PlaceChange]) -> None:
    """Change a row's activations `[tokens, hidden]` in place."""
    length = activation.shape[0]
    bounds = [0, row.num_prompt - 1, row.num_prompt, row.first + length]
    for phase, change in changes.items():
        first, last = (min(max(bounds[phase + side] - row.first, 0), length) for side in (0, 1))
        if first < last:
            part = activation[first:last]
            part.copy_(change.to(part.device).apply(part.to(torch.float32)))
