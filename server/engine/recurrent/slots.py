"""Which slot holds whose recurrent state: one for each running sequence, the others for snapshots. It uses no tensors.

A snapshot is the state at the end of a page, under the key of that page. The prefix cache needs both: the KV of the
pages before it, and the state. Snapshots that have not been used for longest make room for new ones.
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
        self._used: set[bytes] = set()
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
        self._used.add(key)
        self._copies.append((self._snapshots[key], slot))

    def save(self, key: bytes, slot: int, *, replaces: bytes | None = None) -> bool:
        """Copy a sequence's slot to a new snapshot of `key`; False when there is one already.

        It takes the place of the snapshot `replaces` if nobody has used that, else of the least recently used.
        """
        if replaces is not None and replaces != key and replaces not in self._used:
            self.forget(replaces)
        if key in self._snapshots:
            self._snapshots.move_to_end(key)
            return False
        if not self._free_snapshots and self._snapshots:
            self.forget(next(iter(self._snapshots)))
        if self._free_snapshots:
            self._snapshots[key] = self._free_snapshots.pop()
            self._copies.append((slot, self._snapshots[key]))
        return True

    def forget(self, key: bytes) -> None:
        """Drop the snapshot of `key`, if there is one."""
        slot = self._snapshots.pop(key, None)
        if slot is not None:
            self._free_snapshots.append(slot)
            self._used.discard(key)

    def take_copies(self) -> list[tuple[int, int]]:
        """The copies (source, target) noted since the last call, to be made in this order."""
        copies, self._copies = self._copies, []
        return copies
