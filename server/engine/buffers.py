"""A step's arrays on the device, each at an address that no step changes.

A CUDA graph reads its inputs from the addresses at which they were recorded. So each array has one buffer, allocated
once for the longest step, and a step's tensors are views of the first elements.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from server.engine.step import Int64Array, StepBatch


@dataclass(frozen=True, slots=True)
class StepInputs:
    """The arrays of a `StepBatch` on the device, int64; valid until the next step is written."""

    tokens: Tensor
    positions: Tensor
    slots: tuple[Tensor, ...]
    wanted: Tensor
    row_of_token: Tensor | None
    slot_tokens: Tensor | None
    vocabulary: Tensor | None


class StepBuffers:
    """The inputs of steps of at most `max_tokens` tokens on `device`, whose KV is in `num_groups` groups of pages."""

    def __init__(self, max_tokens: int, num_groups: int, device: torch.device) -> None:
        self._device = device
        self._tokens = IndexBuffer(max_tokens, device)
        self._positions = IndexBuffer(max_tokens, device)
        self._slots = [IndexBuffer(max_tokens, device) for _ in range(num_groups)]
        self._wanted = IndexBuffer(max_tokens, device)
        self._row_of_token = IndexBuffer(max_tokens, device)
        self._slot_tokens = IndexBuffer(max_tokens, device)

    def write(self, batch: StepBatch) -> StepInputs:
        """Copy `batch` to the device, overwriting the previous step."""
        return StepInputs(
            tokens=self._tokens.write(batch.tokens),
            positions=self._positions.write(batch.positions),
            slots=tuple(buffer.write(own) for buffer, own in zip(self._slots, batch.slots, strict=True)),
            wanted=self._wanted.write(batch.wanted),
            row_of_token=None if batch.row_of_token is None else self._row_of_token.write(batch.row_of_token),
            slot_tokens=(None if batch.slot_tokens is None else self._slot_tokens.write(batch.slot_tokens)),
            vocabulary=None if batch.vocabulary is None else torch.from_numpy(batch.vocabulary).to(self._device),
        )


class IndexBuffer:
    """Up to `capacity` int64 numbers on `device`, written from the host."""

    def __init__(self, capacity: int, device: torch.device) -> None:
        self._on_host = torch.zeros(capacity, dtype=torch.int64, pin_memory=device.type == "cuda")
        self._array = self._on_host.numpy()
        # on a CPU both are the same memory, so nothing is copied
        self._on_device = self._on_host if device.type == "cpu" else self._on_host.to(device)

    def write(self, numbers: Int64Array) -> Tensor:
        """Overwrite the first `len(numbers)` and return a view of them. The previous step must have finished."""
        length = len(numbers)
        self._array[:length] = numbers
        view = self._on_device[:length]
        if self._on_device is not self._on_host:
            view.copy_(self._on_host[:length], non_blocking=True)
        return view
