"""SteeringBank: the device tensors that steering adds, shared by all running requests.

Every scope of a plan (see `plan.py`) collapses into one **row**: at each (site, layer) the sum of its shifts, and the
slots that follow them (see `vectors/operations.py`). The shifts live in `[layers, rows, hidden]` float32 tensors, one
per site in use; the slots in `slots.py`, and what is read in `readings.py`. Equal rows are shared by reference count;
row 0 is zero. A step then needs only one row number per token, so its cost does not depend on how many different
vectors run together.

The engine acquires and releases rows; `hooks.py` applies them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from server.steering.plan import Scope, SteeringPlan, Zones, decisive_length
from server.steering.readings import NUM_FIXED_COLUMNS, PlaceReadings, RowReading
from server.steering.slots import ALWAYS, PlaceSlots, RowSlots, resized
from vectors.applied import change_at
from vectors.operations import Shift, Slots, as_slots, reading_of
from vectors.vocabulary import Part, Place, Site

_INITIAL_ROWS = 8

_BranchKey: TypeAlias = tuple[tuple[SteeringPlan, ...], int]
"""Branches, and the length of the prompt as far as it matters to them."""


@dataclass(frozen=True, slots=True)
class PlanRows:
    """The bank rows of one running plan: of each scope of its `zones`; 0 where it is unsteered.

    `branches`: one row for each branch, held under `branch_key`.
    """

    zones: Zones
    by_scope: Mapping[Scope, int]
    branches: tuple[int, ...]
    branch_key: _BranchKey

    def of_tokens(self, start: int, end: int, parts: Sequence[Part] | None) -> npt.NDArray[np.int64]:
        """The row of each of positions `start … end-1`, int64; `parts` as in `Zones.runs`."""
        rows = np.empty(end - start, dtype=np.int64)
        for scope, first, last in self.zones.runs(start, end, parts):
            rows[first - start : last - start] = self.by_scope[scope]
        return rows


@dataclass(slots=True)
class _Row:
    """A row in use: how many plans hold it, and which places it touches."""

    fingerprint: bytes
    num_holders: int
    add_places: frozenset[Place]
    slot_places: frozenset[Place]
    readings: Mapping[Place, Sequence[RowReading]]


@dataclass(slots=True)
class _BranchRows:
    """The rows of a set of branches, held together, and by how many running plans."""

    rows: tuple[int, ...]
    num_holders: int


class SteeringBank:
    """Reference-counted steering rows; see the module. Used only by the engine's thread."""

    def __init__(self, num_layers: int, hidden_size: int, device: torch.device) -> None:
        self._num_layers = num_layers
        self._hidden_size = hidden_size
        self._device = device
        self._capacity = _INITIAL_ROWS
        self._adds: dict[Site, Tensor] = {}
        self._slots: dict[Place, PlaceSlots] = {}
        self._readings: dict[Place, PlaceReadings] = {}
        self._rows: dict[int, _Row] = {}
        self._row_of: dict[bytes, int] = {}
        self._branches: dict[_BranchKey, _BranchRows] = {}
        self._num_columns = NUM_FIXED_COLUMNS
        self._free = list(range(_INITIAL_ROWS - 1, 0, -1))
        self._uses_of_adds: Counter[Place] = Counter()
        self._uses_of_slots: Counter[Place] = Counter()
        self._uses_of_readings: Counter[Place] = Counter()

    @property
    def num_rows_in_use(self) -> int:
        """Rows held by running plans, not counting row 0."""
        return len(self._rows)

    def acquire(self, zones: Zones, branches: tuple[SteeringPlan, ...] = ()) -> PlanRows:
        """Rows for every scope of `zones` and the last prompt token of each branch; `release` them once.

        The cost is that of writing the rows that are new; that of branches which are held already does not grow with
        their number.
        """
        key = branches, min(zones.num_prompt, decisive_length(branches))
        by_scope: dict[Scope, int] = {}
        rows: list[int] = []
        try:
            for scope in zones.scopes:
                by_scope[scope] = self._acquire_scope(scope)
            held = self._branches.get(key)
            if held is None:
                for branch in branches:
                    rows.append(self._acquire_scope(branch.at_boundary(zones.num_prompt)))
        except BaseException:
            self._release_rows([*by_scope.values(), *rows])
            raise
        if held is None:
            held = self._branches[key] = _BranchRows(tuple(rows), 0)
        held.num_holders += 1
        return PlanRows(zones, by_scope, held.rows, key)

    def release(self, rows: PlanRows) -> None:
        """Release the rows that `acquire` returned."""
        self._release_rows(rows.by_scope.values())
        held = self._branches[rows.branch_key]
        held.num_holders -= 1
        if held.num_holders == 0:
            del self._branches[rows.branch_key]
            self._release_rows(held.rows)

    def _release_rows(self, rows: Iterable[int]) -> None:
        for row in rows:
            if row != 0:
                self._release_row(row)

    def adds(self, place: Place) -> Tensor | None:
        """`[rows, hidden]` float32 to add at `place`, or None when no running plan adds there."""
        if place not in self._uses_of_adds:
            return None
        return self._adds[place[0]][place[1]]

    def addresses_of_adds(self) -> Iterator[tuple[Place, int]]:
        """Each place where a running plan adds, with where in memory `adds` of it begins, for the compiled kernels."""
        for site, layer in self._uses_of_adds:
            rows = self._adds[site]
            yield (site, layer), rows.data_ptr() + layer * rows.stride(0) * rows.element_size()

    def slot_places(self) -> Iterable[Place]:
        """The places where `slots` or `readings` has something."""
        return (self._slots.keys() & self._uses_of_slots.keys()) | self._readings.keys()

    def slots(self, place: Place) -> PlaceSlots | None:
        """The slots at `place`, or None when no running plan has any there."""
        return self._slots[place] if place in self._uses_of_slots else None

    def readings(self, place: Place) -> PlaceReadings | None:
        """What is read at `place`, or None when no running plan reads there."""
        return self._readings.get(place)

    def has_latch(self, place: Place) -> bool:
        """True when a gate that is read at `place` stays open once it is."""
        own = self._readings.get(place)
        return own is not None and (own.before.has_latch or own.after.has_latch)

    def has_slots(self, row: int) -> bool:
        """True when `row` does more than shift somewhere: it has slots, or reads."""
        return row != 0 and bool(self._rows[row].slot_places or self._rows[row].readings)

    @property
    def num_columns(self) -> int:
        """How many columns a step has for readings (`readings.py`). It does not shrink before the bank is idle."""
        return self._num_columns

    @property
    def is_idle(self) -> bool:
        """True when nothing is steered."""
        return not self._rows

    def _acquire_scope(self, scope: Scope) -> int:
        fingerprint = scope.row_fingerprint
        if not fingerprint:
            return 0
        row = self._row_of.get(fingerprint)
        if row is None:
            row = self._write(fingerprint, scope)
        self._rows[row].num_holders += 1
        return row

    def _write(self, fingerprint: bytes, scope: Scope) -> int:
        if not self._free:
            self._grow()
        row = self._free[-1]  # removed last, so that a failed write leaves it free
        readings = _readings_of(scope)
        adds: set[Place] = set()
        slots: set[Place] = set()
        try:
            for place in {place for entry in scope.entries for place in entry.applied.places}:
                shift, own_slots = _changes_at(place, scope)
                if shift is not None:
                    adds.add(place)
                    self._tensor_of(place[0])[place[1], row] = shift.to(self._device)
                if own_slots.slots or own_slots.norm_gates:
                    slots.add(place)
                    self._slots_at(place).write(row, own_slots)
            for place, own in readings.items():
                self._readings_at(place).write(row, own)
        except BaseException:
            self._clear(row, adds, slots, readings)  # the next plan in this row may act at other places
            raise
        self._free.pop()
        self._rows[row] = _Row(fingerprint, 0, frozenset(adds), frozenset(slots), readings)
        self._row_of[fingerprint] = row
        self._uses_of_adds.update(adds)
        self._uses_of_slots.update(slots)
        self._uses_of_readings.update(readings.keys())
        self._num_columns = max([self._num_columns, *(1 + one.column for own in readings.values() for one in own)])
        return row

    def _release_row(self, number: int) -> None:
        row = self._rows[number]
        row.num_holders -= 1
        if row.num_holders:
            return
        self._clear(number, row.add_places, row.slot_places, row.readings)
        _drop_uses(self._uses_of_adds, row.add_places)
        for place in _drop_uses(self._uses_of_slots, row.slot_places):
            del self._slots[place]
        for place in _drop_uses(self._uses_of_readings, row.readings):
            del self._readings[place]
        del self._rows[number], self._row_of[row.fingerprint]
        if not self._rows:
            self._num_columns = NUM_FIXED_COLUMNS
        self._free.append(number)

    def _clear(self, number: int, adds: Iterable[Place], slots: Iterable[Place], readings: Iterable[Place]) -> None:
        for site, layer in adds:
            self._tensor_of(site)[layer, number] = 0
        for place in slots:
            self._slots_at(place).clear(number)
        for place in readings:
            self._readings_at(place).write(number, ())

    def _tensor_of(self, site: Site) -> Tensor:
        tensor = self._adds.get(site)
        if tensor is None:
            tensor = torch.zeros(self._num_layers, self._capacity, self._hidden_size, device=self._device)
            self._adds[site] = tensor
        return tensor

    def _slots_at(self, place: Place) -> PlaceSlots:
        slots = self._slots.get(place)
        if slots is None:
            slots = self._slots[place] = PlaceSlots(self._capacity, self._hidden_size, self._device)
        return slots

    def _readings_at(self, place: Place) -> PlaceReadings:
        readings = self._readings.get(place)
        if readings is None:
            readings = self._readings[place] = PlaceReadings(self._capacity, self._hidden_size, self._device)
        return readings

    def _grow(self) -> None:
        capacity = self._capacity * 2
        for site, tensor in self._adds.items():
            self._adds[site] = resized(tensor, 1, capacity)
        for slots in self._slots.values():
            slots.grow_rows(capacity)
        for readings in self._readings.values():
            readings.grow_rows(capacity)
        self._free.extend(range(capacity - 1, self._capacity - 1, -1))
        self._capacity = capacity


def _changes_at(place: Place, scope: Scope) -> tuple[Tensor | None, RowSlots]:
    """What `scope` does at `place`: the shift without a gate, then shifts that have one, then the others."""
    here = [
        (entry, number)
        for entry, number in zip(scope.entries, scope.gates, strict=True)
        if place in entry.applied.places
    ]
    shift = change_at([entry.applied for entry, number in here if number is None], place).shift
    gated_shifts: list[tuple[Slots, int]] = []
    slots: list[tuple[Slots, int]] = []
    norm_gates: list[int] = []
    for entry, number in here:
        column = ALWAYS if number is None else NUM_FIXED_COLUMNS + number
        change = change_at([entry.applied], place)
        if number is not None and change.shift is not None:
            gated_shifts.append((as_slots(Shift(change.shift)), column))
        slots += [(own, column) for own in change.slots]
        norm_gates += [column] if change.preserves_norm else []
    return shift, RowSlots((*gated_shifts, *slots), tuple(dict.fromkeys(norm_gates)))


def _readings_of(scope: Scope) -> dict[Place, list[RowReading]]:
    """What the scope's probes and gates read, by place."""
    found: dict[Place, list[RowReading]] = {}
    for number, probe in scope.probes:
        one = RowReading(NUM_FIXED_COLUMNS + number, reading_of(probe.feature), probe.is_before)
        found.setdefault(probe.place, []).append(one)
    for entry, gate_number in zip(scope.entries, scope.gates, strict=True):
        if (gate := entry.gate) is not None and gate_number is not None:
            column = NUM_FIXED_COLUMNS + gate_number
            found.setdefault(gate.place, []).append(RowReading(column, reading_of(gate.feature), gate.is_before, gate))
    return found


def _drop_uses(uses: Counter[Place], places: Iterable[Place]) -> list[Place]:
    """Count one use less at `places`; return the places that are no longer in use."""
    unused = []
    for place in places:
        uses[place] -= 1
        if uses[place] == 0:
            del uses[place]
            unused.append(place)
    return unused
