"""RowTable: which row of the workers' banks holds which steering. Equal rows are shared by reference count.

The workers' banks have a fixed number of rows, because compiled models and CUDA graphs read them where they lie. Row 0
does nothing. A new row is written by the first step after it was acquired.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from server.engine.vllm.messages import Row
from server.steering.plan import PlanEntry, Scope, Zones
from vectors.applied import change_at
from vectors.operations import RULES
from vectors.vocabulary import Place


def most_slots(zones: Zones) -> int:
    """The most slots that a plan needs at one place."""
    numbers: Counter[tuple[Scope, Place]] = Counter()
    for scope in zones.scopes:
        for entry in scope.entries:
            if not RULES[entry.applied.operation].is_shift:
                numbers.update((scope, place) for place in entry.applied.places)
    return max(numbers.values(), default=0)


def fingerprints_of(zones: Zones) -> set[bytes]:
    """Those of the rows that a plan needs."""
    return {scope.fingerprint for scope in zones.scopes} - {b""}


def row_of(entries: Iterable[PlanEntry]) -> Row:
    """What `entries` do together, as a row."""
    applied = [entry.applied for entry in entries]
    changes = {place: change_at(applied, place) for place in {place for one in applied for place in one.places}}
    return {place: change for place, change in changes.items() if not change.is_nothing}


class RowTable:
    """Rows 1 to `num_rows - 1`. Used only by the engine's thread."""

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows
        self._free = list(range(num_rows - 1, 0, -1))
        self._row_of: dict[bytes, int] = {}
        self._num_holders: Counter[bytes] = Counter()
        self._unwritten: dict[int, Row] = {}

    @property
    def num_in_use(self) -> int:
        """Rows that are held, not counting row 0."""
        return len(self._row_of)

    def has_room_for(self, zones: Zones) -> bool:
        """True when `acquire` would find the rows."""
        return len(fingerprints_of(zones) - set(self._row_of)) <= len(self._free)

    def acquire(self, zones: Zones) -> dict[Scope, int]:
        """The row of every scope, 0 where it is unsteered; `release` the zones once. There must be room."""
        rows: dict[Scope, int] = {}
        for scope in zones.scopes:
            fingerprint = scope.fingerprint
            if not fingerprint:
                rows[scope] = 0
                continue
            row = self._row_of.get(fingerprint)
            if row is None:
                row = self._row_of[fingerprint] = self._free.pop()
                self._unwritten[row] = row_of(scope.entries)
            self._num_holders[fingerprint] += 1
            rows[scope] = row
        return rows

    def release(self, zones: Zones) -> None:
        """Give back what `acquire` gave."""
        for scope in zones.scopes:
            fingerprint = scope.fingerprint
            if fingerprint:
                self._num_holders[fingerprint] -= 1
                if not self._num_holders[fingerprint]:
                    del self._num_holders[fingerprint]
                    row = self._row_of.pop(fingerprint)
                    self._unwritten.pop(row, None)
                    self._free.append(row)

    def take_unwritten(self) -> dict[int, Row]:
        """The rows that the workers do not have yet; they are theirs to write now."""
        unwritten, self._unwritten = self._unwritten, {}
        return unwritten
