"""PlaceSlots: what the rows of the bank do at one place beyond a shift, as device tensors.

A row has a list of slots (`vectors/operations.py`) in **stages**: the slots of one vector, which all read before any of
them writes, share a stage. There are as many stages as the row with the most vectors needs, and as many slots in each
as the vector with the most directions, because every token pays for all. A row with fewer has slots of strength 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from server.kernels.structures import SlotsLayout
from vectors.operations import Slots, restore_norm

NUM_NUMBERS = 8
"""Per slot: slope, bias, the least that the activation leaves, low, high, strength, and flags of sigmoid and step."""


ALWAYS, NEVER = 0, 1
"""Columns of a step's readings that hold 1 and 0, for what has no gate; see `readings.py`."""


@dataclass(frozen=True, slots=True)
class RowSlots:
    """What a row does at a place after its shift: the slots of each vector, with the columns of their gates.

    `norm_gates`: the columns of which one must be open for the norm to be restored; none if it never is.
    """

    slots: tuple[tuple[Slots, int], ...]
    norm_gates: tuple[int, ...]


class PlaceSlots:
    """The slots of all rows at one place; a new or cleared row does nothing.

    `reads` and `writes` are float32 `[stages, rows, width, hidden]`, `numbers` `[stages, rows, width, 8]`. `gates`
    int64 `[stages, rows]` and `norm_gates` `[rows, gates]` are columns of the step's readings.
    """

    def __init__(self, num_rows: int, hidden_size: int, device: torch.device) -> None:
        self.reads = torch.zeros(0, num_rows, 1, hidden_size, device=device)
        self.writes = torch.zeros_like(self.reads)
        self.numbers = torch.zeros(0, num_rows, 1, NUM_NUMBERS, device=device)
        self.gates = torch.zeros(0, num_rows, dtype=torch.int64, device=device)
        self.norm_gates = torch.zeros(num_rows, 0, dtype=torch.int64, device=device)
        self._changes: dict[int, RowSlots] = {}
        self._has_sigmoid = self._has_step = self._has_gates = False
        self._layout: SlotsLayout | None = None

    @property
    def layout(self) -> SlotsLayout:
        """The same for the compiled kernels, which use it until the slots are changed; they are on the CPU."""
        if self._layout is None:
            tensors = (self.reads, self.writes, self.numbers, self.gates, self.norm_gates)
            assert all(tensor.is_contiguous() for tensor in tensors)
            pointers = (tensor.data_ptr() for tensor in tensors)
            self._layout = SlotsLayout(*pointers, *self.reads.shape[:3], self.norm_gates.shape[1])
        return self._layout

    def grow_rows(self, num_rows: int) -> None:
        """Make room for `num_rows` rows, keeping the existing ones."""
        self._layout = None
        self.reads, self.writes, self.numbers = (
            resized(tensor, 1, num_rows) for tensor in (self.reads, self.writes, self.numbers)
        )
        self.gates = resized(self.gates, 1, num_rows)
        self.norm_gates = resized(self.norm_gates - NEVER, 0, num_rows) + NEVER

    def write(self, row: int, change: RowSlots) -> None:
        """Set `row` to `change`."""
        self._changes[row] = change
        self._resize()
        self._empty(row)
        for stage, (slots, gate) in enumerate(change.slots):
            self.gates[stage, row] = gate
            self.reads[stage, row, : slots.rank] = slots.reading.unit
            self.writes[stage, row, : slots.rank] = slots.write
            self.numbers[stage, row, : slots.rank] = numbers_of(slots).to(self.numbers.device)
        self.norm_gates[row, : len(change.norm_gates)] = torch.tensor(change.norm_gates, dtype=torch.int64)

    def clear(self, row: int) -> None:
        """Make `row` do nothing."""
        self._changes.pop(row, None)
        self._empty(row)
        self._resize()

    def _empty(self, row: int) -> None:
        for tensor in (self.reads, self.writes, self.numbers, self.gates):
            tensor[:, row] = 0
        self.norm_gates[row] = NEVER

    def _resize(self) -> None:
        """Have the stages and the width that the rows need."""
        self._layout = None
        changes = self._changes.values()
        num_stages = max((len(change.slots) for change in changes), default=0)
        every = [slots for change in changes for slots, _ in change.slots]
        width = max((slots.rank for slots in every), default=1)
        for dim, size in ((0, num_stages), (2, width)):
            if size != self.reads.shape[dim]:
                self.reads, self.writes, self.numbers = (
                    resized(tensor, dim, size) for tensor in (self.reads, self.writes, self.numbers)
                )
        self.gates = resized(self.gates, 0, num_stages)
        num_norm_gates = max((len(change.norm_gates) for change in changes), default=0)
        self.norm_gates = resized(self.norm_gates - NEVER, 1, num_norm_gates) + NEVER
        self._has_gates = any(gate != ALWAYS for change in changes for _, gate in change.slots)
        self._has_sigmoid = any(slots.reading.activation == "sigmoid" for slots in every)
        self._has_step = any(slots.reading.activation == "step" for slots in every)

    def apply(self, steered: Tensor, before: Tensor, rows: Tensor, readings: Tensor) -> Tensor:
        """`steered` (after the shifts), `before` (untouched), float32 `[tokens, hidden]` -> the final activations.

        `readings` `[tokens, columns]`: what has been read of the tokens, see `readings.py`.
        """
        for stage in range(len(self.reads)):
            steered = self._applied(steered, stage, rows, readings)
        if self.norm_gates.shape[1] == 0:
            return steered
        keeps_norm = readings.gather(1, self.norm_gates.index_select(0, rows)).amax(1, keepdim=True) > 0
        return torch.where(keeps_norm, restore_norm(steered, before), steered)

    def _applied(self, steered: Tensor, stage: int, rows: Tensor, readings: Tensor) -> Tensor:
        """After one stage."""
        reads, writes, numbers = (
            tensor[stage].index_select(0, rows) for tensor in (self.reads, self.writes, self.numbers)
        )
        slope, bias, floor, low, high, strength, is_sigmoid, is_step = numbers.unbind(-1)
        found = torch.addcmul(bias, (steered.unsqueeze(1) * reads).sum(-1), slope)
        if self._has_sigmoid:
            found = torch.where(is_sigmoid > 0, found.sigmoid(), found)
        if self._has_step:
            found = torch.where(is_step > 0, (found > 0).to(found.dtype), found)
        found = torch.maximum(found, floor)
        changes = (torch.clamp(found, low, high) - found) * strength
        if self._has_gates:
            changes = changes * readings.gather(1, self.gates[stage].index_select(0, rows).unsqueeze(1))
        if changes.shape[1] == 1:
            return torch.addcmul(steered, changes, writes.squeeze(1))
        return steered + (changes.unsqueeze(-1) * writes).sum(1)


def numbers_of(slots: Slots) -> Tensor:
    """What the slots are beside their directions: float32 `[rank, NUM_NUMBERS]`."""
    reading = slots.reading
    floor, is_sigmoid, is_step = (
        torch.full_like(reading.slope, number)
        for number in (
            0.0 if reading.activation == "relu" else -math.inf,
            reading.activation == "sigmoid",
            reading.activation == "step",
        )
    )
    return torch.stack(
        [reading.slope, reading.bias, floor, slots.low, slots.high, slots.strength, is_sigmoid, is_step], dim=-1
    )


def resized(tensor: Tensor, dim: int, size: int) -> Tensor:
    """A copy of `size` along `dim`: what there was, as far as it fits, and zeros."""
    shape = list(tensor.shape)
    shape[dim] = size
    result = tensor.new_zeros(shape)
    kept = min(size, tensor.shape[dim])
    result.narrow(dim, 0, kept).copy_(tensor.narrow(dim, 0, kept))
    return result
