"""The states of recurrent layers, a row for each slot, and the cache by which a module of transformers reaches them.

A recurrent module keeps what it knows of a sequence's past in a few tensors of fixed size: the last inputs of a
convolution, the state of a linear attention. It reads and writes them through its cache only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

StateKey = tuple[Literal["conv", "recurrent"], int, int]
"""Names one tensor of a state: its kind, the layer, and its number in the layer."""


@dataclass(frozen=True, slots=True)
class StateLayout:
    """The tensors that make up the state of one sequence: the shape and dtype of each. Empty without recurrent layers.

    `conv` tensors end with the dimension of time.
    """

    tensors: Mapping[StateKey, tuple[tuple[int, ...], torch.dtype]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.tensors)

    @property
    def num_bytes(self) -> int:
        """Bytes of one sequence's state."""
        return sum(torch.Size(shape).numel() * dtype.itemsize for shape, dtype in self.tensors.values())


class RecurrentStates:
    """`num_slots` states of `layout` on `device`: a tensor `[slots, …]` for each key. A new one holds nothing."""

    def __init__(self, layout: StateLayout, num_slots: int, device: torch.device) -> None:
        self.tensors = {
            key: torch.zeros(num_slots, *shape, dtype=dtype, device=device)
            for key, (shape, dtype) in layout.tensors.items()
        }

    def copy(self, copies: Iterable[tuple[int, int]]) -> None:
        """Copy states from slot to slot, in order: each of `copies` is (source, target)."""
        for source, target in copies:
            for tensor in self.tensors.values():
                tensor[target].copy_(tensor[source])

    def close(self) -> None:
        """Free the states."""
        self.tensors = {}


class StateCache:
    """What a recurrent module takes for transformers' cache: the states of `slots`, in a batch.

    `slots` int64 `[batch]`. Sequences that begin (`is_fresh`) have no states before the first update. What the module
    writes reaches the slots by `write_back`.
    """

    def __init__(self, states: RecurrentStates, slots: Tensor, *, is_fresh: bool) -> None:
        self._states = states
        self._slots = slots
        self._is_fresh = is_fresh
        self._batch: dict[StateKey, Tensor] = {}

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        """The last inputs of a convolution, `[batch, channels, kernel]`, or None; may be changed in place."""
        return self._read(("conv", layer_idx, state_idx))

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        """The state `[batch, …]`, or None; may be changed in place."""
        return self._read(("recurrent", layer_idx, state_idx))

    def update_conv_state(
        self, conv_states: Tensor, layer_idx: int, state_idx: int = 0, conv_kernel_size: int | None = None
    ) -> Tensor:
        """Append inputs `[batch, channels, time]` and keep the last; returns the earlier ones and these, in order."""
        key: StateKey = ("conv", layer_idx, state_idx)
        stored = self._states.tensors[key]
        size = stored.shape[-1]
        assert conv_kernel_size is None or conv_kernel_size == size, f"kernel of {conv_kernel_size}, state of {size}"
        earlier = self._read(key)
        inputs = conv_states if earlier is None else torch.cat([earlier, conv_states], dim=-1)
        if inputs.shape[-1] < size:
            inputs = torch.nn.functional.pad(inputs, (size - inputs.shape[-1], 0))
        self._batch[key] = inputs[..., -size:].to(stored.dtype)
        return inputs

    def update_recurrent_state(self, recurrent_states: Tensor, layer_idx: int, state_idx: int = 0) -> Tensor:
        """Replace the state `[batch, …]`; returns it as it is stored."""
        key: StateKey = ("recurrent", layer_idx, state_idx)
        self._batch[key] = recurrent_states.to(self._states.tensors[key].dtype)
        return self._batch[key]

    def has_previous_state(self, layer_idx: int, state_idx: int = 0) -> bool:
        """True when the layer has a state."""
        return not self._is_fresh or any(key[1:] == (layer_idx, state_idx) for key in self._batch)

    def is_recording_past(self, layer_idx: int) -> bool:
        """False: earlier states are not kept."""
        return False

    def write_back(self) -> None:
        """Store what was changed in the slots, which must differ from each other."""
        for key, batch in self._batch.items():
            self._states.tensors[key].index_copy_(0, self._slots, batch)

    def _read(self, key: StateKey) -> Tensor | None:
        if key not in self._batch and not self._is_fresh:
            self._batch[key] = self._states.tensors[key].index_select(0, self._slots)
        return self._batch.get(key)
