"""WorkerSteering: the banks of one worker, the hooks that apply them, and what is captured.

The hooks are tensor code on buffers that live as long as the model, so torch.compile traces them once and CUDA graphs
replay them: a step only rewrites the buffers. At each place there are `[rows, hidden]` float32 for shifts, and a fixed
number of slots (see `vectors/operations.py`), each of a vector with one direction. Row 0 does nothing.

An eager model skips what no row does at present; a compiled one cannot, and computes it for every token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from server.engine.vllm.messages import Chunk, Row
from server.steering.slots import NUM_NUMBERS, numbers_of
from vectors.operations import PlaceChange, restore_norm
from vectors.vocabulary import Place

if TYPE_CHECKING:
    from server.engine.vllm.sites import WorkerSites


class PlaceBank(nn.Module):
    """What every row does at one place: buffers, so that compiled code finds them by name.

    `row_of_token`, int64 `[max tokens]`, and `capture_index`, int64 `[captures]`, are shared by all places.
    """

    shifts: Tensor
    reads: Tensor
    writes: Tensor
    numbers: Tensor
    keeps_norm: Tensor
    captured: Tensor
    row_of_token: Tensor
    capture_index: Tensor

    def __init__(self, num_rows: int, hidden_size: int, num_slots: int, row_of_token: Tensor, index: Tensor) -> None:
        super().__init__()
        device = row_of_token.device
        for name, shape in {
            "shifts": (num_rows, hidden_size),
            "reads": (num_slots, num_rows, hidden_size),
            "writes": (num_slots, num_rows, hidden_size),
            "numbers": (num_slots, num_rows, NUM_NUMBERS),
            "captured": (len(index), hidden_size),
        }.items():
            self.register_buffer(name, torch.zeros(shape, device=device), persistent=False)
        self.register_buffer("keeps_norm", torch.zeros(num_rows, dtype=torch.bool, device=device), persistent=False)
        self.register_buffer("row_of_token", row_of_token, persistent=False)
        self.register_buffer("capture_index", index, persistent=False)
        self.shifting: set[int] = set()
        """The rows that shift here."""
        self.bending: set[int] = set()
        """The rows that have slots or keep the norm here."""

    def write(self, row: int, change: PlaceChange | None) -> None:
        """Make `row` do what `change` says; None: nothing."""
        self.shifts[row] = 0
        self.numbers[:, row] = 0  # a slot of strength 0 does nothing
        self.keeps_norm[row] = False
        self.shifting.discard(row)
        self.bending.discard(row)
        if change is None:
            return
        if change.shift is not None:
            self.shifts[row] = change.shift.to(self.shifts.device)
            self.shifting.add(row)
        for number, slots in enumerate(change.slots):
            assert slots.rank == 1, "a vector with several directions was let through"
            self.reads[number, row] = slots.reading.unit[0].to(self.reads.device)
            self.writes[number, row] = slots.write[0].to(self.writes.device)
            self.numbers[number, row] = numbers_of(slots)[0].to(self.numbers.device)
        self.keeps_norm[row] = change.preserves_norm
        if change.slots or change.preserves_norm:
            self.bending.add(row)

    def shift(self, num_tokens: int) -> Tensor:
        """What the shifts alone add to each token, float32 `[tokens, hidden]`."""
        return self.shifts.index_select(0, self.row_of_token[:num_tokens])

    def delta(self, stream: Tensor) -> Tensor:
        """What is added to each token of the activations `stream`; both float32 `[tokens, hidden]`."""
        rows = self.row_of_token[: stream.shape[0]]
        delta = self.shifts.index_select(0, rows)
        for slot in range(self.numbers.shape[0]):
            read, write, numbers = (
                tensor[slot].index_select(0, rows) for tensor in (self.reads, self.writes, self.numbers)
            )
            slope, bias, floor, low, high, strength, is_sigmoid, is_step = numbers.unbind(-1)
            found = torch.addcmul(bias, ((stream + delta) * read).sum(-1), slope)
            found = torch.where(is_sigmoid > 0, found.sigmoid(), found)
            found = torch.where(is_step > 0, (found > 0).to(found.dtype), found)
            found = torch.maximum(found, floor)
            change = (torch.clamp(found, low, high) - found) * strength
            delta = delta + change.unsqueeze(-1) * write
        kept = restore_norm(stream + delta, stream) - stream
        return torch.where(self.keeps_norm.index_select(0, rows).unsqueeze(-1), kept, delta)

    def capture(self, stream: Tensor) -> None:
        """Copy the tokens of `capture_index` out of `stream` `[tokens, hidden]`."""
        self.captured.copy_(stream.index_select(0, self.capture_index))


class WorkerSteering:
    """The steering of the part of the model that one worker holds.

    `is_compiled`: nothing may be skipped. `num_captures`: the most tokens that a step captures.
    """

    def __init__(
        self,
        sites: WorkerSites,
        *,
        num_rows: int,
        num_slots: int,
        num_captures: int,
        max_tokens: int,
        device: torch.device,
        is_compiled: bool,
    ) -> None:
        self._row_of_token = torch.zeros(max_tokens, dtype=torch.int64, device=device)
        self._capture_index = torch.zeros(num_captures, dtype=torch.int64, device=device)
        self._is_compiled = is_compiled
        self._is_clean = True
        self._num_captured = 0
        self._captures: list[str] = []
        self._places: dict[int, set[Place]] = {}
        self._banks: dict[Place, PlaceBank] = {}
        for site, modules in sites.modules.items():
            for layer, module in modules.items():
                bank = PlaceBank(num_rows, sites.hidden_size, num_slots, self._row_of_token, self._capture_index)
                setattr(module, f"tiller_{site}", bank)
                self._banks[site, layer] = bank
                is_pair = site == "residual" and sites.is_deferred
                module.register_forward_hook(self._pair_hook(bank) if is_pair else self._hook(bank))

    def write(self, rows: Mapping[int, Row]) -> None:
        """Make each row do what it says, and nothing elsewhere.."""
        for number, row in rows.items():
            for place in self._places.get(number, set()) | set(row):
                if place in self._banks:
                    self._banks[place].write(number, row.get(place))
            self._places[number] = set(row)

    def begin_step(self, names: Sequence[str], counts: Mapping[str, int], chunks: Mapping[str, Chunk]) -> None:
        """Set the row of each token of a step: `counts[name]` tokens of each of `names`, one after the other."""
        rows = np.zeros(len(self._row_of_token), dtype=np.int64)
        captured: list[int] = []
        self._captures = []
        start = 0
        for name in names:
            chunk = chunks.get(name)
            if chunk is not None and chunk.rows is not None:
                rows[start : start + len(chunk.rows)] = chunk.rows
            if chunk is not None and chunk.captured:
                captured += [start + index for index in chunk.captured]
                self._captures += [name] * len(chunk.captured)
            start += counts[name]
        if rows.any() or not self._is_clean:
            self._row_of_token.copy_(torch.from_numpy(rows))
        self._is_clean = not rows.any()
        self._num_captured = len(captured)
        if captured:
            index = np.zeros(len(self._capture_index), dtype=np.int64)  # a shorter step must not be read beyond its end
            index[: len(captured)] = captured
            self._capture_index.copy_(torch.from_numpy(index))

    def end_step(self) -> None:
        """Forget the rows and captures of the step, so that what vLLM runs for itself is untouched."""
        if not self._is_clean:
            self._row_of_token.zero_()
            self._is_clean = True
        if self._num_captured:
            self._capture_index.zero_()
            self._num_captured = 0

    def captured(self) -> dict[str, dict[Place, Tensor]]:
        """What the step captured for each request: float32 `[captured, hidden]` (CPU) of each place."""
        if not self._num_captured:
            return {}
        found = {place: bank.captured[: self._num_captured].cpu() for place, bank in self._banks.items()}
        owners = np.array(self._captures)
        return {
            name: {place: rows[torch.from_numpy(owners == name)] for place, rows in found.items()}
            for name in dict.fromkeys(self._captures)
        }

    def _hook(self, bank: PlaceBank) -> Callable[[nn.Module, Any, Any], Any]:
        """For a module whose output is the activation, or a tuple that begins with it."""

        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            activation = output[0] if isinstance(output, tuple) else output
            changed = activation
            if self._is_compiled or bank.bending:
                stream = activation.to(torch.float32)
                changed = (stream + bank.delta(stream)).to(activation.dtype)
            elif bank.shifting:
                changed = (activation + bank.shift(activation.shape[0])).to(activation.dtype)
            if self._is_compiled or self._num_captured:
                bank.capture(changed.to(torch.float32))
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        return hook

    def _pair_hook(self, bank: PlaceBank) -> Callable[[nn.Module, Any, Any], Any]:
        """For a block whose output is `(hidden, residual)`, the sum of which is the stream; the residual is changed."""

        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            hidden, residual, *others = output
            if self._is_compiled or bank.bending:
                stream = hidden.to(torch.float32) + residual.to(torch.float32)
                residual = (residual + bank.delta(stream)).to(residual.dtype)
            elif bank.shifting:
                residual = (residual + bank.shift(residual.shape[0])).to(residual.dtype)
            if self._is_compiled or self._num_captured:
                bank.capture(hidden.to(torch.float32) + residual.to(torch.float32))
            return (hidden, residual, *others)

        return hook
