"""SteeringBank: the device tensors that steering adds, shared by all running requests.

Every phase of a plan (see `plan.py`), in each part of the response, collapses into one **row**: at each (site, layer)
the sum of its shifts, and the list of its changes of components (see `vectors/operations.py`). Rows live in
`[layers, rows, hidden]` float32 tensors, one per site in use. Equal rows are shared by reference count; row 0 is zero.
A step then needs only one row number per token, so its cost does not depend on how many different vectors run together.

The engine acquires and releases rows; `hooks.py` applies them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from server.steering.plan import PlanEntry, SteeringPlan
from vectors.applied import change_at
from vectors.operations import PlaceChange, restore_norm
from vectors.positions import Phase
from vectors.vocabulary import PARTS, Part, Place, Site

_INITIAL_ROWS = 8


@dataclass(frozen=True, slots=True)
class PlanRows:
    """The bank rows of one running plan, by phase and part; 0 where it is unsteered.

    `branches`: one row for each of `branch_plans`.
    """

    prompt: int
    boundary: Mapping[Part, int]
    response: Mapping[Part, int]
    branches: tuple[int, ...] = ()
    branch_plans: tuple[SteeringPlan, ...] = ()


@dataclass(slots=True)
class _Row:
    """A row in use: how many plans hold it, and which places it touches."""

    fingerprint: bytes
    num_holders: int
    add_places: frozenset[Place]
    low_rank_places: frozenset[Place]


@dataclass(slots=True)
class _BranchRows:
    """The rows of a set of branches, held together, and by how many running plans."""

    rows: tuple[int, ...]
    num_holders: int


class LowRankOperations:
    """What all rows do at one place beyond their shift: changes of components, in order of `slot`, and of the norm.

    Each is `h += (offset - gain * (h·unit)) * unit`, and does nothing where a row has fewer changes. `units` is float32
    `[slots, rows, hidden]`, `gains` and `offsets` `[slots, rows]`, `preserves_norm` bool `[rows]`. There are as many
    slots as the row with the most changes needs, because every steered token pays for each.
    """

    def __init__(self, num_rows: int, hidden_size: int, device: torch.device) -> None:
        self.units = torch.zeros(1, num_rows, hidden_size, device=device)
        self.gains = torch.zeros(1, num_rows, device=device)
        self.offsets = torch.zeros(1, num_rows, device=device)
        self.preserves_norm = torch.zeros(num_rows, dtype=torch.bool, device=device)
        self._num_changes: dict[int, int] = {}

    def grow_rows(self, num_rows: int) -> None:
        """Make room for `num_rows` rows, keeping the existing ones."""
        self.units = _resized(self.units, 1, num_rows)
        self.gains = _resized(self.gains, 1, num_rows)
        self.offsets = _resized(self.offsets, 1, num_rows)
        self.preserves_norm = _resized(self.preserves_norm, 0, num_rows)

    def write(self, row: int, change: PlaceChange) -> None:
        """Set `row` to what `change` does beyond its shift."""
        self.clear(row)
        self._num_changes[row] = len(change.components)
        self._resize()
        for slot, component in enumerate(change.components):
            self.units[slot, row] = component.unit
            self.gains[slot, row] = component.gain
            self.offsets[slot, row] = component.offset
        self.preserves_norm[row] = change.preserves_norm

    def clear(self, row: int) -> None:
        """Make `row` do nothing."""
        self.gains[:, row] = 0
        self.offsets[:, row] = 0
        self.units[:, row] = 0
        self.preserves_norm[row] = False
        self._num_changes.pop(row, None)
        self._resize()

    def _resize(self) -> None:
        """Have the slots that the rows need, and one at least."""
        num_slots = max([1, *self._num_changes.values()])
        if num_slots != self.units.shape[0]:
            self.units, self.gains, self.offsets = (
                _resized(tensor, 0, num_slots) for tensor in (self.units, self.gains, self.offsets)
            )

    def apply(self, steered: Tensor, before: Tensor, rows: Tensor) -> Tensor:
        """`steered` (after the shifts), `before` (untouched), float32 `[tokens, hidden]` -> the final activations."""
        for units, gains, offsets in zip(self.units, self.gains, self.offsets, strict=True):
            unit = units.index_select(0, rows)
            component = (steered * unit).sum(-1)
            change = offsets.index_select(0, rows) - gains.index_select(0, rows) * component
            steered = steered + change.unsqueeze(-1) * unit
        keeps_norm = self.preserves_norm.index_select(0, rows).unsqueeze(-1)
        return torch.where(keeps_norm, restore_norm(steered, before), steered)


def _resized(tensor: Tensor, dim: int, size: int) -> Tensor:
    """A copy of `size` along `dim`: what there was, as far as it fits, and zeros."""
    shape = list(tensor.shape)
    shape[dim] = size
    resized = tensor.new_zeros(shape)
    kept = min(size, tensor.shape[dim])
    resized.narrow(dim, 0, kept).copy_(tensor.narrow(dim, 0, kept))
    return resized


class SteeringBank:
    """Reference-counted steering rows; see the module. Used only by the engine's thread."""

    def __init__(self, num_layers: int, hidden_size: int, device: torch.device) -> None:
        self._num_layers = num_layers
        self._hidden_size = hidden_size
        self._device = device
        self._capacity = _INITIAL_ROWS
        self._adds: dict[Site, Tensor] = {}
        self._low_rank: dict[Place, LowRankOperations] = {}
        self._rows: dict[int, _Row] = {}
        self._row_of: dict[bytes, int] = {}
        self._branches: dict[tuple[SteeringPlan, ...], _BranchRows] = {}
        self._free = list(range(_INITIAL_ROWS - 1, 0, -1))
        self._uses_of_adds: Counter[Place] = Counter()
        self._uses_of_low_rank: Counter[Place] = Counter()

    @property
    def num_rows_in_use(self) -> int:
        """Rows held by running plans, not counting row 0."""
        return len(self._rows)

    def acquire(self, plan: SteeringPlan, branches: tuple[SteeringPlan, ...] = ()) -> PlanRows:
        """Rows for every phase and part of `plan` and the boundary of each branch; `release` them once.

        The cost is that of writing the rows that are new; that of branches which are held already does not grow with
        their number.
        """
        rows: list[int] = []
        try:
            rows.append(self._acquire_scope(plan, Phase.PROMPT, "content"))
            for phase in (Phase.BOUNDARY, Phase.RESPONSE):
                for part in PARTS:
                    rows.append(self._acquire_scope(plan, phase, part))
            held = self._branches.get(branches)
            if held is None:
                for branch in branches:
                    rows.append(self._acquire_scope(branch, Phase.BOUNDARY, "content"))
        except BaseException:
            self._release_rows(rows)
            raise
        prompt, *others = rows
        boundary = dict(zip(PARTS, others, strict=False))
        response = dict(zip(PARTS, others[len(PARTS) :], strict=False))
        if held is None:
            held = self._branches[branches] = _BranchRows(tuple(others[2 * len(PARTS) :]), 0)
        held.num_holders += 1
        return PlanRows(prompt, boundary, response, held.rows, branches)

    def release(self, rows: PlanRows) -> None:
        """Release the rows that `acquire` returned."""
        self._release_rows((rows.prompt, *rows.boundary.values(), *rows.response.values()))
        held = self._branches[rows.branch_plans]
        held.num_holders -= 1
        if held.num_holders == 0:
            del self._branches[rows.branch_plans]
            self._release_rows(held.rows)

    def _release_rows(self, rows: Sequence[int]) -> None:
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

    def low_rank_places(self) -> Iterable[Place]:
        """The places where `low_rank` has operations."""
        return self._low_rank.keys() & self._uses_of_low_rank.keys()

    def low_rank(self, place: Place) -> LowRankOperations | None:
        """The low-rank operations at `place`, or None when no running plan has any there."""
        return self._low_rank[place] if place in self._uses_of_low_rank else None

    def has_low_rank(self, row: int) -> bool:
        """True when `row` takes the second path somewhere."""
        return row != 0 and bool(self._rows[row].low_rank_places)

    @property
    def is_idle(self) -> bool:
        """True when nothing is steered."""
        return not self._rows

    def _acquire_scope(self, plan: SteeringPlan, phase: Phase, part: Part) -> int:
        fingerprint = plan.fingerprint(phase, part)
        if not fingerprint:
            return 0
        row = self._row_of.get(fingerprint)
        if row is None:
            row = self._write(fingerprint, plan.in_scope(phase, part))
        self._rows[row].num_holders += 1
        return row

    def _write(self, fingerprint: bytes, entries: Sequence[PlanEntry]) -> int:
        if not self._free:
            self._grow()
        row = self._free[-1]  # removed last, so that a failed write leaves it free
        applied = [entry.applied for entry in entries]
        adds: set[Place] = set()
        low_rank: set[Place] = set()
        try:
            for place in {place for one in applied for place in one.places}:
                change = change_at(applied, place)
                if change.shift is not None:
                    adds.add(place)
                    self._tensor_of(place[0])[place[1], row] = change.shift.to(self._device)
                if change.components or change.preserves_norm:
                    low_rank.add(place)
                    self._low_rank_at(place).write(row, change)
        except BaseException:
            self._clear(row, adds, low_rank)  # the next plan in this row may act at other places
            raise
        self._free.pop()
        self._rows[row] = _Row(fingerprint, 0, frozenset(adds), frozenset(low_rank))
        self._row_of[fingerprint] = row
        self._uses_of_adds.update(adds)
        self._uses_of_low_rank.update(low_rank)
        return row

    def _release_row(self, number: int) -> None:
        row = self._rows[number]
        row.num_holders -= 1
        if row.num_holders:
            return
        self._clear(number, row.add_places, row.low_rank_places)
        _drop_uses(self._uses_of_adds, row.add_places)
        for place in _drop_uses(self._uses_of_low_rank, row.low_rank_places):
            del self._low_rank[place]
        del self._rows[number], self._row_of[row.fingerprint]
        self._free.append(number)

    def _clear(self, number: int, add_places: Iterable[Place], low_rank_places: Iterable[Place]) -> None:
        for site, layer in add_places:
            self._tensor_of(site)[layer, number] = 0
        for place in low_rank_places:
            self._low_rank_at(place).clear(number)

    def _tensor_of(self, site: Site) -> Tensor:
        tensor = self._adds.get(site)
        if tensor is None:
            tensor = torch.zeros(self._num_layers, self._capacity, self._hidden_size, device=self._device)
            self._adds[site] = tensor
        return tensor

    def _low_rank_at(self, place: Place) -> LowRankOperations:
        operations = self._low_rank.get(place)
        if operations is None:
            operations = LowRankOperations(self._capacity, self._hidden_size, self._device)
            self._low_rank[place] = operations
        return operations

    def _grow(self) -> None:
        capacity = self._capacity * 2
        for site, tensor in self._adds.items():
            self._adds[site] = _resized(tensor, 1, capacity)
        for operations in self._low_rank.values():
            operations.grow_rows(capacity)
        self._free.extend(range(capacity - 1, self._capacity - 1, -1))
        self._capacity = capacity


def _drop_uses(uses: Counter[Place], places: frozenset[Place]) -> list[Place]:
    """Count one use less at `places`; return the places that are no longer in use."""
    unused = []
    for place in places:
        uses[place] -= 1
        if uses[place] == 0:
            del uses[place]
            unused.append(place)
    return unused
