"""The operations: what each does to an activation along a direction. One closed table, `RULES`.

A vector **reads** a number from the activation `h`, in float32: `r = φ(h·w + b)`, with its read direction `w`, its bias
`b` and its activation φ. A vector without a read direction reads along its own: with its direction `v`, `w = v / ‖v‖²`,
so that `r` counts `v`s. Then the operation changes `h` along `v`:

    operation   result                            at scale 0
    add         h + scale·v                       nothing
    ablate      h - scale·r·v                     nothing
    amplify     h + scale·r·v                     nothing
    clamp       h + (scale - r)·v                 what it reads becomes 0
    cap         h + scale·(clip(r, low, high) - r)·v   nothing

Each comes down to one of two kinds of **change**. Shifts at a place are one sum. **Slots** depend on `h` and follow the
shifts in the order listed; those of one vector all read before any of them writes. Every slot is

    h + strength·(clip(r, low, high) - r)·write

The plain model and the engine's rows handle the two kinds, never an operation's name. Sources: relu and rank 1, PSR
(arXiv 2605.03907) and ReFT-r1; identity and rank r, LoReFT (2404.03592); cap, the assistant axis (2601.10387) and
steering to a threshold (2604.08169); sigmoid, DSAS (2512.03661); step, CAST (2409.05907).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias, assert_never

import torch
from torch import Tensor

from vectors.vocabulary import OPERATIONS, Activation, Operation

_LARGEST = torch.finfo(torch.float32).max


@dataclass(frozen=True, slots=True)
class Feature:
    """What a vector has at one layer.

    `write`: the direction, `[hidden]`, or the directions `[rank, hidden]`. `read` has the same shape and `bias` is
    `[rank]`, in any dtypes; without a read direction the vector reads along its own.
    """

    write: Tensor
    read: Tensor | None = None
    bias: Tensor | None = None
    activation: Activation = "identity"


@dataclass(frozen=True, slots=True)
class Setting:
    """How an operation is applied: the scale, and the interval of `cap` in the vector's own unit."""

    scale: float
    low: float = -math.inf
    high: float = math.inf


@dataclass(frozen=True, slots=True)
class Shift:
    """`h + by`; `by` is float32 `[hidden]`."""

    by: Tensor


@dataclass(frozen=True, slots=True)
class Reading:
    """`activation(slope·(h·unit) + bias)`, float32: `unit` `[rank, hidden]` of norm 1, `slope` and `bias` `[rank]`."""

    unit: Tensor
    slope: Tensor
    bias: Tensor
    activation: Activation = "identity"

    def of(self, activations: Tensor) -> Tensor:
        """What it reads of float32 `[…, hidden]`: `[…, rank]`."""
        found = (activations.unsqueeze(-2) * self.unit).sum(-1)
        return activated(found * self.slope + self.bias, self.activation)

    def to(self, device: torch.device) -> Reading:
        """The same reading on `device`."""
        return Reading(self.unit.to(device), self.slope.to(device), self.bias.to(device), self.activation)


@dataclass(frozen=True, slots=True)
class Slots:
    """The slots of one vector: `h + strength·(clip(r, low, high) - r)·write`, with `r` of `reading`.

    `write` is float32 `[rank, hidden]` of norm 1; `low`, `high` and `strength` are `[rank]`.
    """

    reading: Reading
    write: Tensor
    low: Tensor
    high: Tensor
    strength: Tensor

    @property
    def rank(self) -> int:
        """How many there are."""
        return int(self.write.shape[0])

    def apply(self, activations: Tensor) -> Tensor:
        """Float32 `[…, hidden]` after the change. Differentiable, not in place."""
        found = self.reading.of(activations)
        changes = (torch.clamp(found, self.low, self.high) - found) * self.strength
        return activations + (changes.unsqueeze(-1) * self.write).sum(-2)

    def to(self, device: torch.device) -> Slots:
        """The same slots on `device`."""
        numbers = (self.write.to(device), self.low.to(device), self.high.to(device), self.strength.to(device))
        return Slots(self.reading.to(device), *numbers)


Change: TypeAlias = Shift | Slots
"""What an operation does at one scale."""


@dataclass(frozen=True, slots=True)
class OperationRule:
    """One row of the table.

    `change` makes the change of a feature; `is_shift` tells its kind beforehand. `takes_interval`: it needs an
    interval.
    """

    is_shift: bool
    does_nothing_at_zero: bool
    change: Callable[[Feature, Setting], Change]
    takes_interval: bool = False


@dataclass(frozen=True, slots=True)
class PlaceChange:
    """All that is done at one place: the sum of the shifts, the slots of each vector in order, then the norm.

    `shift` is float32 `[hidden]`, or None without any.
    """

    shift: Tensor | None
    slots: tuple[Slots, ...]
    preserves_norm: bool

    @property
    def is_nothing(self) -> bool:
        """True when nothing is changed."""
        return self.shift is None and not self.slots and not self.preserves_norm

    def apply(self, activations: Tensor) -> Tensor:
        """Activations, float32 `[…, hidden]`, as they are after the change. Differentiable, not in place."""
        changed = activations if self.shift is None else activations + self.shift
        for slots in self.slots:
            changed = slots.apply(changed)
        return restore_norm(changed, activations) if self.preserves_norm else changed

    def to(self, device: torch.device) -> PlaceChange:
        """The same change on `device`."""
        shift = None if self.shift is None else self.shift.to(device)
        return PlaceChange(shift, tuple(slots.to(device) for slots in self.slots), self.preserves_norm)


def combine(changes: Iterable[Change], *, preserves_norm: bool) -> PlaceChange:
    """The combined effect of `changes`, in the order listed, at one place."""
    shift: Tensor | None = None
    slots: list[Slots] = []
    for change in changes:
        match change:
            case Shift(by):
                shift = by if shift is None else shift + by
            case Slots():
                slots.append(change)
            case _:
                assert_never(change)
    return PlaceChange(shift, tuple(slots), preserves_norm)


def as_slots(shift: Shift) -> Slots:
    """The same change as a slot, whose reading is 0 and whose interval is 1: for a shift that is not always made."""
    write, norm = _units_and_norms(shift.by)
    nothing, one = torch.zeros(1), torch.ones(1)
    return Slots(Reading(torch.zeros_like(write).float(), nothing, nothing), write.float(), one, one, norm.float())


def activated(found: Tensor, activation: Activation) -> Tensor:
    """The activation of each number."""
    match activation:
        case "identity":
            return found
        case "relu":
            return found.relu()
        case "sigmoid":
            return found.sigmoid()
        case "step":
            return (found > 0).to(found.dtype)
        case _:
            assert_never(activation)


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


def reading_of(feature: Feature) -> Reading:
    """What a vector reads, in its own unit: its score as a probe."""
    return _reading_and_unit(feature, is_scaled=False)[0]


def _reading_and_unit(feature: Feature, *, is_scaled: bool) -> tuple[Reading, Tensor]:
    """The reading, and float32 `[rank]`: by how much a slot writes for each 1 that it reads.

    `is_scaled`: in units of `‖v‖` where that changes nothing else, which is exact for directions of any length.
    """
    unit, norm = _units_and_norms(feature.write)
    if feature.read is None:
        keeps_unit = is_scaled and feature.activation in ("identity", "relu")
        slope = torch.ones_like(norm) if keeps_unit else (1 / norm).clamp_max(_LARGEST)
        reading = Reading(unit.float(), slope.float(), torch.zeros(len(norm)), feature.activation)
        return reading, torch.ones(len(norm)) if keeps_unit else norm.float()
    read, slope = _units_and_norms(feature.read)
    bias = torch.zeros(len(norm)) if feature.bias is None else feature.bias.to(torch.float32).reshape(-1)
    return Reading(read.float(), slope.float(), bias, feature.activation), norm.float()


def _units_and_norms(directions: Tensor) -> tuple[Tensor, Tensor]:
    """Float64 `[rank, hidden]` of norm 1, and `[rank]`. In float32 the squares of a norm may vanish."""
    wide = directions.to(torch.float64).reshape(-1, directions.shape[-1])
    norms = wide.norm(dim=-1)
    return wide / norms.unsqueeze(-1), norms


def _slots(feature: Feature, strength: float, low: float, high: float) -> Slots:
    """Slots that move what the vector reads towards the interval, by `strength`."""
    reading, unit = _reading_and_unit(feature, is_scaled=True)
    write, norm = _units_and_norms(feature.write)
    bound = norm.float() / unit  # of the interval, which is in the vector's own unit
    full = torch.full_like(unit, strength)
    return Slots(reading, write.float(), _times(low, bound), _times(high, bound), full * unit)


def _times(number: float, norms: Tensor) -> Tensor:
    """`number·norms`; an open end stays open."""
    return torch.full_like(norms, number) if math.isinf(number) else norms * number


def _shift(feature: Feature, setting: Setting) -> Change:
    return Shift(feature.write.to(torch.float32) * setting.scale)


def _remove(feature: Feature, setting: Setting) -> Change:
    return _slots(feature, setting.scale, 0.0, 0.0)


def _amplify(feature: Feature, setting: Setting) -> Change:
    return _slots(feature, -setting.scale, 0.0, 0.0)


def _set(feature: Feature, setting: Setting) -> Change:
    return _slots(feature, 1.0, setting.scale, setting.scale)


def _cap(feature: Feature, setting: Setting) -> Change:
    return _slots(feature, setting.scale, setting.low, setting.high)


def _rule_of(operation: Operation) -> OperationRule:
    match operation:
        case "add":
            return OperationRule(is_shift=True, does_nothing_at_zero=True, change=_shift)
        case "ablate":
            return OperationRule(is_shift=False, does_nothing_at_zero=True, change=_remove)
        case "clamp":
            return OperationRule(is_shift=False, does_nothing_at_zero=False, change=_set)
        case "cap":
            return OperationRule(is_shift=False, does_nothing_at_zero=True, change=_cap, takes_interval=True)
        case "amplify":
            return OperationRule(is_shift=False, does_nothing_at_zero=True, change=_amplify)
        case _:
            assert_never(operation)


RULES: Mapping[Operation, OperationRule] = MappingProxyType({name: _rule_of(name) for name in OPERATIONS})
"""The table: every operation's rule."""
