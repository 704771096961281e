"""PlaceReadings: what the rows of the bank read from the activations at one place, as device tensors.

Every reading of a plan has a column of its own in the step's readings, `[tokens, columns]`: what it read of each token.
Two columns belong to nobody: `ALWAYS` is 1, and rows with fewer readings than others write what they do not want to
`UNUSED`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from server.steering.slots import resized
from vectors.operations import Reading

ALWAYS, UNUSED = 0, 1
NUM_FIXED_COLUMNS = 2

_NUM_NUMBERS = 5
"""Per reading: slope, bias, the least that the activation leaves, and flags of sigmoid and step."""


@dataclass(frozen=True, slots=True)
class RowReading:
    """One reading of a row at a place: its column, what it reads (rank 1), and whether before the steering there."""

    column: int
    reading: Reading
    is_before: bool


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
        self._has_sigmoid = self._has_step = False

    def grow_rows(self, num_rows: int) -> None:
        """Make room for `num_rows` rows, keeping the existing ones."""
        self._units, self._numbers = (resized(tensor, 0, num_rows) for tensor in (self._units, self._numbers))
        self._columns = resized(self._columns - UNUSED, 0, num_rows) + UNUSED

    def write(self, row: int, readings: Sequence[RowReading]) -> None:
        """Have `row` read this; nothing if empty."""
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
            self._numbers[row, place] = _numbers_of(one.reading)
            self._columns[row, place] = one.column
        activations = {one.reading.activation for own in self._by_row.values() for one in own}
        self._has_sigmoid, self._has_step = "sigmoid" in activations, "step" in activations

    @property
    def is_used(self) -> bool:
        """True when a row reads something here."""
        return bool(self._by_row)

    def read(self, activations: Tensor, rows: Tensor, found: Tensor) -> None:
        """Read float32 `[tokens, hidden]` of tokens with these bank rows into `found` `[tokens, columns]`."""
        units, numbers, columns = (
            tensor.index_select(0, rows) for tensor in (self._units, self._numbers, self._columns)
        )
        slope, bias, floor, is_sigmoid, is_step = numbers.unbind(-1)
        values = torch.addcmul(bias, (activations.unsqueeze(1) * units).sum(-1), slope)
        if self._has_sigmoid:
            values = torch.where(is_sigmoid > 0, values.sigmoid(), values)
        if self._has_step:
            values = torch.where(is_step > 0, (values > 0).to(values.dtype), values)
        found.scatter_(1, columns, torch.maximum(values, floor))


def _numbers_of(reading: Reading) -> Tensor:
    """`[5]`"""
    floor = 0.0 if reading.activation == "relu" else -math.inf
    flags = (reading.activation == "sigmoid", reading.activation == "step")
    return torch.tensor([float(reading.slope[0]), float(reading.bias[0]), floor, *map(float, flags)])
