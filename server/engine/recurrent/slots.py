"""Which slot holds whose recurrent state: one for each running sequence, the others for snapshots. It uses no tensors.

A snapshot is the state at the end of a page, under the key of that page. The prefix cache needs both: the KV of the
pages before it, and the state. Those that have not been used for longest make room for new ones.
"""

from __future__ import annotations

from collections import OrderedDict


class StateSlots:
    """`num_sequences` slots for sequences and `num_snapshots` for snapshots, numbered in this order.

    Copies between slots are noted, and made by whoever has the tensors before the next step.
    """

    def __init__(self, num_sequences: int, num_snapshots: int) -> None:
        self.num_slots = num_sequences + num_snapshots
        self._free = list(range(num_sequences - 1, -1, -1))
        self._num_sequences = num_sequences
        self._free_snapshots = list(range(self.num_slots - 1, num_sequences - 1, -1))
        self._snapshots: OrderedDict[bytes, int] = OrderedDict()
        self._kept: set[bytes] = set()
        self._copies: list[tuple[int, int]] = []

    @property
    def num_held(self) -> int:
        """Slots that sequences hold."""
        return self._num_sequences - len(self._free)

    @property
    def num_snapshots(self) -> int:
        """Snapshots that are kept now."""
        return len(self._snapshots)

    def take(self) -> int:
        """A slot for a sequence; there is one for each that may run."""
        return self._free.pop()

    def release(self, slot: int) -> None:
        """Take back the slot of a sequence."""
        assert slot not in self._free
        self._free.append(slot)

    def has(self, key: bytes) -> bool:
        """True when there is a snapshot at the end of the page `key`."""
        return key in self._snapshots

    def restore(self, key: bytes, slot: int) -> None:
        """Copy the snapshot of `key` to a sequence's slot."""
        self._snapshots.move_to_end(key)
        self._kept.add(key)
        self._copies.append((self._snapshots[key], slot))

    def save(self, key: bytes, slot: int) -> None:
        """Copy a sequence's slot to a snapshot of `key`, unless there is one, for other sequences to begin with."""
        if key in self._snapshots:
            self._snapshots.move_to_end(key)
            self._kept.add(key)
        elif self._copy_to_snapshot(key, slot, next(iter(self._snapshots), None)):
            self._kept.add(key)

    def move(self, previous: bytes | None, key: bytes, slot: int) -> bool:
        """The same for a sequence's latest page, in place of `previous` unless others began with that.

        Makes no room at the cost of what `save` has saved. False when there is no new snapshot.
        """
        if previous is not None and previous != key and previous not in self._kept:
            self.forget(previous)
        return key not in self._snapshots and self._copy_to_snapshot(key, slot, None)

    def _copy_to_snapshot(self, key: bytes, slot: int, last_victim: bytes | None) -> bool:
        """Drops the least recently used snapshot that was not saved for others, else `last_victim`, to make room."""
        if not self._free_snapshots:
            victim = next((other for other in self._snapshots if other not in self._kept), last_victim)
            if victim is None:
                return False
            self.forget(victim)
        self._snapshots[key] = self._free_snapshots.pop()
        self._copies.append((slot, self._snapshots[key]))
        return True

    def forget(self, key: bytes) -> None:
        """Drop the snapshot of `key`, if there is one."""
        slot = self._snapshots.pop(key, None)
        if slot is not None:
            self._free_snapshots.append(slot)
            self._kept.discard(key)

    def take_copies(self) -> list[tuple[int, int]]:
        """The copies (source, target) noted since the last call, to be made in this order."""
        copies, self._copies = self._copies, []
        return copies
