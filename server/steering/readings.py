"""PlaceReadings: what the rows of the bank read from the activations at one place, as device tensors.

Every reading of a plan has a column of its own in the step's readings, `[tokens, columns]`: what it read of each token.
Three columns belong to nobody: the first is 1, the second 0 (`slots.py`), and rows with fewer readings than others
write what they do not want to `UNUSED`. A reading may be a **gate**: then its column holds how far it is open, from 0
to 1. Before it is read a column holds `UNREAD`, and that of a latched gate which an earlier token has opened `LATCHED`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from server.kernels.structures import ReadingsLayout
from server.steering.plan import PlanGate
from server.steering.slots import resized
from vectors.operations import Reading

UNUSED = 2
NUM_FIXED_COLUMNS = 3
UNREAD, LATCHED = -1.0, -2.0
"""What stands for gates that are not read; a gate is never negative."""

_NUM_NUMBERS = 10
"""Per reading: slope, bias, the least that the activation leaves, flags of sigmoid and step; of a gate the sign, the
threshold, the sharpness, and flags of a gate and of a latch.
"""


@dataclass(frozen=True, slots=True)
class RowReading:
    """One reading of a row at a place: its column, what it reads (rank 1), and whether before the steering there.

    `gate`: how far a gate is open at what is read; None: it is a probe.
    """

    column: int
    reading: Reading
    is_before: bool
    gate: PlanGate | None = None


class PlaceReadings:
    """The readings of all rows at one place, before and after the steering there."""

    def __init__(self, num_rows: int, hidden_size: int, device: torch.device) -> None:
        self.before = Readings(num_rows, hidden_size, device)
        self.after = Readings(num_rows, hidden_size, device)

    def grow_rows(self, num_rows: int) -> None:
        """Make room for `num_rows` rows, keeping the existing ones."""
        self.before.grow_rows(num_rows)
        self.after.grow_rows(num_rows)

    def write(self, row: int, readings: Sequence[RowReading]) -> None:
        """Have `row` read this; nothing if empty."""
        self.before.write(row, [one for one in readings if one.is_before])
        self.after.write(row, [one for one in readings if not one.is_before])


class Readings:
    """The readings of all rows at one place and one time."""

    def __init__(self, num_rows: int, hidden_size: int, device: torch.device) -> None:
        self._units = torch.zeros(num_rows, 0, hidden_size, device=device)
        self._numbers = torch.zeros(num_rows, 0, _NUM_NUMBERS, device=device)
        self._columns = torch.zeros(num_rows, 0, dtype=torch.int64, device=device)
        self._by_row: dict[int, Sequence[RowReading]] = {}
        self._has_sigmoid = self._has_step = self._has_gate = self._has_soft_gate = self.has_latch = False
        self._layout: ReadingsLayout | None = None

    @property
    def layout(self) -> ReadingsLayout | None:
        """The same for the compiled kernels, until the readings are changed; they are on the CPU. None if unused."""
        if self._layout is None and self.is_used:
            tensors = (self._units, self._numbers, self._columns)
            assert all(tensor.is_contiguous() for tensor in tensors)
            self._layout = ReadingsLayout(*(tensor.data_ptr() for tensor in tensors), self._columns.shape[1])
        return self._layout

    def grow_rows(self, num_rows: int) -> None:
        """Make room for `num_rows` rows, keeping the existing ones."""
        self._layout = None
        self._units, self._numbers = (resized(tensor, 0, num_rows) for tensor in (self._units, self._numbers))
        self._columns = resized(self._columns - UNUSED, 0, num_rows) + UNUSED

    def write(self, row: int, readings: Sequence[RowReading]) -> None:
        """Have `row` read this; nothing if empty."""
        self._layout = None
        self._by_row.pop(row, None)
        if readings:
            self._by_row[row] = readings
        width = max(map(len, self._by_row.values()), default=0)
        if width != self._columns.shape[1]:
            self._units, self._numbers = (resized(tensor, 1, width) for tensor in (self._units, self._numbers))
            self._columns = resized(self._columns - UNUSED, 1, width) + UNUSED
        for tensor in (self._units, self._numbers):
            tensor[row] = 0
        self._columns[row] = UNUSED
        for place, one in enumerate(readings):
            self._units[row, place] = one.reading.unit[0]
            self._numbers[row, place] = _numbers_of(one)
            self._columns[row, place] = one.column
        activations = {one.reading.activation for own in self._by_row.values() for one in own}
        self._has_sigmoid, self._has_step = "sigmoid" in activations, "step" in activations
        gates = [one.gate for own in self._by_row.values() for one in own if one.gate is not None]
        self._has_gate = bool(gates)
        self._has_soft_gate = any(gate.sharpness is not None for gate in gates)
        self.has_latch = any(gate.latch == "rest" for gate in gates)

    @property
    def is_used(self) -> bool:
        """True when a row reads something here."""
        return bool(self._by_row)

    def read(self, activations: Tensor, rows: Tensor, found: Tensor) -> None:
        """Read float32 `[tokens, hidden]` of tokens with these bank rows into `found` `[tokens, columns]`."""
        units, numbers, columns = (
            tensor.index_select(0, rows) for tensor in (self._units, self._numbers, self._columns)
        )
        slope, bias, floor, is_sigmoid, is_step, *gate = numbers.unbind(-1)
        values = torch.addcmul(bias, (activations.unsqueeze(1) * units).sum(-1), slope)
        if self._has_sigmoid:
            values = torch.where(is_sigmoid > 0, values.sigmoid(), values)
        if self._has_step:
            values = torch.where(is_step > 0, (values > 0).to(values.dtype), values)
        values = torch.maximum(values, floor)
        if self._has_gate:
            values = self._gated(values, columns, found, gate)
        found.scatter_(1, columns, values)

    def _gated(self, values: Tensor, columns: Tensor, found: Tensor, gate: list[Tensor]) -> Tensor:
        """The scores, or how far their gates are open."""
        sign, threshold, sharpness, is_gate, is_latched = gate
        beyond = sign * (values - threshold)
        opened = (beyond > 0).to(values.dtype)
        if self._has_soft_gate:
            opened = torch.where(sharpness > 0, (beyond * sharpness).sigmoid(), opened)
        if self.has_latch:
            stays = (is_latched > 0) & (found.gather(1, columns) == LATCHED)
            opened = opened.masked_fill(stays, 1.0)
        return torch.where(is_gate > 0, opened, values)


def latch(found: Tensor, spans: Sequence[tuple[slice, Sequence[int]]]) -> None:
    """Keep latched gates open after the token that opens them: in `found` `[tokens, columns]`, in each span of a
    sequence's tokens its latched columns. What is not read stays so.
    """
    for tokens, columns in spans:
        values = found[tokens][:, columns]
        is_open = (values > 0.5).to(torch.float32)
        is_after = (is_open.cumsum(0) - is_open > 0) & (values >= 0)
        found[tokens, columns] = values.masked_fill(is_after, 1.0)


def _numbers_of(one: RowReading) -> Tensor:
    """`[10]`"""
    reading = one.reading
    floor = 0.0 if reading.activation == "relu" else -math.inf
    flags = (reading.activation == "sigmoid", reading.activation == "step")
    numbers = [float(reading.slope[0]), float(reading.bias[0]), floor, *map(float, flags)]
    if one.gate is None:
        return torch.tensor([*numbers, *[0.0] * (_NUM_NUMBERS - len(numbers))])
    gate = one.gate
    shape = (1 if gate.is_above else -1, gate.threshold, gate.sharpness or 0.0, True, gate.latch == "rest")
    return torch.tensor([*numbers, *map(float, shape)])
