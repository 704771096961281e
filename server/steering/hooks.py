"""The forward hooks: apply the bank's rows to the activations, and capture activations.

They are installed once on every site module of the model. A step, given as row numbers and token indices, is set in a
context that cannot nest and is cleared when the step ends. Outside such a context the hooks do nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from server.kernels.library import load_kernels
from server.kernels.structures import PlaceSteering, SteeredPack
from server.steering.bank import SteeringBank
from server.steering.readings import PlaceReadings, Readings, latch
from server.steering.slots import PlaceSlots
from vectors.sites import ModelSites, activation_of
from vectors.vocabulary import Place


@dataclass
class StepActivations:
    """One step's steering and capture.

    `row_of_token`: int64 `[tokens]` on the model's device, or None when no token is steered.
    `slot_tokens`: int64 indices of the tokens whose row has slots somewhere, or None.
    `captures`: place -> int64 indices of the tokens to capture; `captured` receives float32 `[indices, hidden]`.
    `readings`: float32 `[slot tokens, columns]`, which receives what is read of them (`readings.py`).
    `latches`: the rows of `readings` of each sequence with several tokens, and the columns of its latched gates.
    `by_point`: the same for each point (`server/engine/entry_points.py`) of a pass that tokens enter late; else empty.
    """

    row_of_token: Tensor | None = None
    slot_tokens: Tensor | None = None
    captures: Mapping[Place, Tensor] = field(default_factory=dict)
    captured: dict[Place, Tensor] = field(default_factory=dict)
    by_point: Sequence[StepActivations] = ()
    readings: Tensor | None = None
    latches: Sequence[tuple[slice, Sequence[int]]] = ()
    reading_rows: Tensor | None = None
    """The rows of `readings` that belong to the slot tokens; None: all of them, in order."""

    _pack: SteeredPack | None = None

    @cached_property
    def slot_rows(self) -> Tensor:
        """The bank rows of the slot tokens."""
        assert self.row_of_token is not None
        assert self.slot_tokens is not None
        return self.row_of_token.index_select(0, self.slot_tokens)

    def pack_of(self, hidden_size: int) -> SteeredPack:
        """The slot tokens for the compiled kernels; all tensors are on the CPU."""
        if self._pack is None:
            assert self.row_of_token is not None
            assert self.slot_tokens is not None
            assert self.readings is not None
            indices = (self.row_of_token, self.slot_tokens, self.reading_rows)
            assert all(one is None or one.is_contiguous() for one in (*indices, self.readings))
            addresses = (None if one is None else one.data_ptr() for one in indices)
            sizes = (len(self.row_of_token), len(self.slot_tokens), hidden_size, self.readings.shape[1])
            self._pack = SteeredPack(*addresses, self.readings.data_ptr(), *sizes)
        return self._pack

    def own_readings(self) -> Tensor:
        """The rows of `readings` that belong to the slot tokens; a copy unless they are all of them."""
        assert self.readings is not None
        return self.readings if self.reading_rows is None else self.readings.index_select(0, self.reading_rows)

    def of_tokens(self, tokens: npt.NDArray[np.int64]) -> StepActivations:
        """The step where only `tokens` are computed, ascending indices; it captures into the same dictionary."""
        rows = self.row_of_token
        return StepActivations(
            row_of_token=None if rows is None else rows.index_select(0, torch.from_numpy(tokens).to(rows.device)),
            slot_tokens=None if self.slot_tokens is None else _found_in(tokens, self.slot_tokens),
            captures={place: _found_in(tokens, captured) for place, captured in self.captures.items()},
            captured=self.captured,
            readings=self.readings,
            latches=self.latches,
            reading_rows=None if self.slot_tokens is None else _kept_of(self.slot_tokens, tokens),
        )


def _found_in(tokens: npt.NDArray[np.int64], wanted: Tensor) -> Tensor:
    """Where in `tokens` those that are `wanted` are; both ascending."""
    own = wanted.cpu().numpy()
    places = np.searchsorted(tokens, own[np.isin(own, tokens)])
    return torch.from_numpy(places).to(wanted.device)


def _kept_of(wanted: Tensor, tokens: npt.NDArray[np.int64]) -> Tensor:
    """Which of those that are `wanted` are in `tokens`, by their indices."""
    return torch.from_numpy(np.flatnonzero(np.isin(wanted.cpu().numpy(), tokens))).to(wanted.device)


class ActivationHooks:
    """The hooks on one model; `close` removes them."""

    def __init__(self, sites: ModelSites, bank: SteeringBank) -> None:
        self._bank = bank
        self._step: StepActivations | None = None
        self._handles = [
            module.register_forward_hook(self._hook((site, layer)))
            for site, modules in sites.modules.items()
            for layer, module in enumerate(modules)
        ]

    @contextmanager
    def step(self, activations: StepActivations) -> Iterator[None]:
        """Steer and capture every forward pass within; does not nest."""
        assert self._step is None, "a step is already running"
        self._step = activations
        try:
            yield
        finally:
            self._step = None

    def close(self) -> None:
        """Remove the hooks from the model."""
        for handle in self._handles:
            handle.remove()

    def _hook(self, place: Place) -> Callable[[nn.Module, Any, Any], None]:
        site, layer = place
        point = layer + (site == "residual")  # what a block passes on is that of the next one's tokens

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if self._step is None:
                return
            step = self._step.by_point[point] if self._step.by_point else self._step
            change_and_capture(place, self._bank, step, activation_of(output))

        return hook


def change_and_capture(place: Place, bank: SteeringBank, step: StepActivations, activation: Tensor) -> None:
    """Steer `activation` `[..., tokens, hidden]`, which is that of `place`, in place, and capture what is asked for."""
    if step.row_of_token is not None:
        _steer(place, bank, step, activation)
    if place in step.captures:
        flat = activation.reshape(-1, activation.shape[-1])
        step.captured[place] = flat.index_select(0, step.captures[place]).to(torch.float32)


def _steer(place: Place, bank: SteeringBank, step: StepActivations, activation: Tensor) -> None:
    adds = bank.adds(place)
    slots = readings = None
    if step.slot_tokens is not None:
        slots, readings = bank.slots(place), bank.readings(place)
    if adds is None and slots is None and readings is None:
        return
    flat = activation.reshape(-1, activation.shape[-1])
    if not _steer_compiled(flat, adds, slots, readings, step):
        _steer_by_torch(flat, adds, slots, readings, step)
    if flat.untyped_storage().data_ptr() != activation.untyped_storage().data_ptr():
        activation.copy_(flat.view_as(activation))  # its layout allowed no view, so `flat` is a copy


def _steer_by_torch(
    flat: Tensor, adds: Tensor | None, slots: PlaceSlots | None, readings: PlaceReadings | None, step: StepActivations
) -> None:
    """Steer `flat` `[tokens, hidden]` in place, and read of it."""
    assert step.row_of_token is not None
    if readings is not None and readings.before.is_used:
        _read(readings.before, flat, step)
    exact = None if slots is None else _after_slots(flat, adds, slots, step)
    if adds is not None:
        flat.add_(adds.index_select(0, step.row_of_token))
    if exact is not None:
        assert step.slot_tokens is not None
        flat.index_copy_(0, step.slot_tokens, exact)
    if readings is not None and readings.after.is_used:
        _read(readings.after, flat, step)


def _steer_compiled(
    flat: Tensor, adds: Tensor | None, slots: PlaceSlots | None, readings: PlaceReadings | None, step: StepActivations
) -> bool:
    """The same by a compiled kernel, of float32 activations on the CPU; False, with nothing done, where it cannot."""
    if step.slot_tokens is None or flat.dtype is not torch.float32 or flat.device.type != "cpu":
        return False
    if not flat.is_contiguous() or (kernels := load_kernels()) is None:
        return False
    before, after = (None, None) if readings is None else (readings.before, readings.after)
    if before is not None and before.has_latch and step.latches:
        return False  # its gates are to be latched before they are used
    steering = place_steering(None if adds is None else adds.data_ptr(), slots, readings)
    kernels.steer(step.pack_of(flat.shape[-1]), steering, flat)
    if after is not None and after.has_latch:
        assert step.readings is not None
        latch(step.readings, step.latches)
    return True


def place_steering(adds: int | None, slots: PlaceSlots | None, readings: PlaceReadings | None) -> PlaceSteering:
    """What is done at a place, for the compiled kernels, until the bank's rows change; `adds` is an address."""
    before, after = (None, None) if readings is None else (readings.before.layout, readings.after.layout)
    return PlaceSteering.of(adds, before, None if slots is None else slots.layout, after)


def _after_slots(flat: Tensor, adds: Tensor | None, slots: PlaceSlots, step: StepActivations) -> Tensor:
    """Final activations of the slot tokens, computed in float32 from the unsteered ones and cast back once."""
    assert step.slot_tokens is not None
    before = flat.index_select(0, step.slot_tokens).to(torch.float32)
    steered = before if adds is None else before + adds.index_select(0, step.slot_rows)
    return slots.apply(steered, before, step.slot_rows, step.own_readings()).to(flat.dtype)


def _read(readings: Readings, flat: Tensor, step: StepActivations) -> None:
    """Read the slot tokens of `flat` into the step's readings."""
    assert step.slot_tokens is not None
    assert step.readings is not None
    found = step.own_readings()
    readings.read(flat.index_select(0, step.slot_tokens).to(torch.float32), step.slot_rows, found)
    if step.reading_rows is not None:
        step.readings.index_copy_(0, step.reading_rows, found)
    if readings.has_latch:
        latch(step.readings, step.latches)
