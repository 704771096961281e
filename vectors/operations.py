"""The operations: what each does to an activation along a direction. One closed table, `RULES`.

With the activation `h`, the stored direction `v` and its unit `v̂ = v / ‖v‖`, in float32:

    operation   result                          at scale 0
    add         h + scale·v                     nothing
    ablate      h - scale·(h·v̂)·v̂               nothing
    clamp       h - (h·v̂)·v̂ + scale·‖v‖·v̂       removes the component

Each comes down to one of two kinds of **change**. Shifts at a place are one sum; changes of a component depend on `h`
and follow the shifts in the order listed. The plain model and the engine's rows handle the two kinds, never an
operation's name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias, assert_never

import torch
from torch import Tensor

from vectors.vocabulary import OPERATIONS, Operation


@dataclass(frozen=True, slots=True)
class Shift:
    """`h + by`; `by` is float32 `[hidden]`."""

    by: Tensor


@dataclass(frozen=True, slots=True)
class ComponentChange:
    """`h + (offset - gain·(h·unit))·unit`; `unit` is float32 `[hidden]` of norm 1."""

    unit: Tensor
    gain: float
    offset: float


Change: TypeAlias = Shift | ComponentChange
"""What an operation does with one direction at one scale."""


@dataclass(frozen=True, slots=True)
class OperationRule:
    """One row of the table.

    `change` makes the change of a stored direction `[hidden]` at a scale; `is_shift` tells its kind beforehand.
    """

    is_shift: bool
    does_nothing_at_zero: bool
    change: Callable[[Tensor, float], Change]


@dataclass(frozen=True, slots=True)
class PlaceChange:
    """All that is done at one place: the sum of the shifts, the changes of components in order, then the norm.

    `shift` is float32 `[hidden]`, or None without any.
    """

    shift: Tensor | None
    components: tuple[ComponentChange, ...]
    preserves_norm: bool

    @property
    def is_nothing(self) -> bool:
        """True when nothing is changed."""
        return self.shift is None and not self.components and not self.preserves_norm

    def apply(self, activations: Tensor) -> Tensor:
        """Activations, float32 `[…, hidden]`, as they are after the change. Differentiable, not in place."""
        changed = activations if self.shift is None else activations + self.shift
        for component in self.components:
            found = (changed * component.unit).sum(-1, keepdim=True)
            changed = changed + (component.offset - component.gain * found) * component.unit
        return restore_norm(changed, activations) if self.preserves_norm else changed

    def to(self, device: torch.device) -> PlaceChange:
        """The same change on `device`."""
        return PlaceChange(
            None if self.shift is None else self.shift.to(device),
            tuple(ComponentChange(one.unit.to(device), one.gain, one.offset) for one in self.components),
            self.preserves_norm,
        )


def combine(changes: Iterable[Change], *, preserves_norm: bool) -> PlaceChange:
    """The combined effect of `changes`, in the order listed, at one place."""
    shift: Tensor | None = None
    components: list[ComponentChange] = []
    for change in changes:
        match change:
            case Shift(by):
                shift = by if shift is None else shift + by
            case ComponentChange():
                components.append(change)
            case _:
                assert_never(change)
    return PlaceChange(shift, tuple(components), preserves_norm)


def restore_norm(changed: Tensor, before: Tensor) -> Tensor:
    """`changed`, rescaled to the norms of `before`; both float32 `[…, hidden]`. A zero stays zero.

    Exact for all of float32: squares that would overflow or vanish are never formed.
    """
    relative, norm = _norms(changed)[1:]
    largest, _, wanted = _norms(before)
    restored: Tensor = relative * (largest * (wanted / norm.clamp_min(1.0)))
    return restored


def _norms(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each row's largest magnitude, the row relative to it, and the norm of that: 1 to √hidden, or 0 for zeros."""
    largest = rows.detach().abs().amax(dim=-1, keepdim=True)
    relative = rows / largest.clamp_min(torch.finfo(torch.float32).tiny)
    return largest, relative, relative.norm(dim=-1, keepdim=True)


def _shift(direction: Tensor, scale: float) -> Change:
    return Shift(direction.to(torch.float32) * scale)


def _remove_component(direction: Tensor, scale: float) -> Change:
    unit, _ = _unit_and_norm(direction)
    return ComponentChange(unit, gain=scale, offset=0.0)


def _set_component(direction: Tensor, scale: float) -> Change:
    unit, norm = _unit_and_norm(direction)
    return ComponentChange(unit, gain=1.0, offset=scale * norm)


def _unit_and_norm(direction: Tensor) -> tuple[Tensor, float]:
    direction = direction.to(torch.float64)  # in float32 the squares of a norm may vanish
    norm = float(direction.norm())
    return (direction / norm).to(torch.float32), norm


def _rule_of(operation: Operation) -> OperationRule:
    match operation:
        case "add":
            return OperationRule(is_shift=True, does_nothing_at_zero=True, change=_shift)
        case "ablate":
            return OperationRule(is_shift=False, does_nothing_at_zero=True, change=_remove_component)
        case "clamp":
            return OperationRule(is_shift=False, does_nothing_at_zero=False, change=_set_component)
        case _:
            assert_never(operation)


RULES: Mapping[Operation, OperationRule] = MappingProxyType({name: _rule_of(name) for name in OPERATIONS})
"""The table: every operation's rule."""
