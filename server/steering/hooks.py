"""The forward hooks: apply the bank's rows to the activations, and capture activations.

They are installed once on every site module of the model. A step, given as row numbers and token indices, is set in a
context that cannot nest and is cleared when the step ends. Outside such a context the hooks do nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from server.steering.bank import LowRankOperations, SteeringBank
from server.steering.plan import entry_block
from vectors.sites import ModelSites, activation_of
from vectors.vocabulary import Place


@dataclass
class StepActivations:
    """One step's steering and capture.

    `row_of_token`: int64 `[tokens]` on the model's device, or None when no token is steered.
    `low_rank_tokens`: int64 indices of the tokens whose row takes the low-rank path, or None.
    `captures`: place -> int64 indices of the tokens to capture; `captured` receives float32 `[indices, hidden]`.
    `by_block`: the same for blocks that compute only some of the step's tokens. A block's output goes by the next one.
    """

    row_of_token: Tensor | None = None
    low_rank_tokens: Tensor | None = None
    captures: Mapping[Place, Tensor] = field(default_factory=dict)
    captured: dict[Place, Tensor] = field(default_factory=dict)
    by_block: Mapping[int, StepActivations] = field(default_factory=dict)

    def of_tokens(self, tokens: npt.NDArray[np.int64]) -> StepActivations:
        """The step for a block that computes only `tokens`, ascending indices; it captures into the same dictionary."""
        rows = self.row_of_token
        return StepActivations(
            row_of_token=None if rows is None else rows.index_select(0, torch.from_numpy(tokens).to(rows.device)),
            low_rank_tokens=None if self.low_rank_tokens is None else _found_in(tokens, self.low_rank_tokens),
            captures={place: _found_in(tokens, captured) for place, captured in self.captures.items()},
            captured=self.captured,
        )


def _found_in(tokens: npt.NDArray[np.int64], wanted: Tensor) -> Tensor:
    """Where in `tokens` those that are `wanted` are; both ascending."""
    own = wanted.cpu().numpy()
    places = np.searchsorted(tokens, own[np.isin(own, tokens)])
    return torch.from_numpy(places).to(wanted.device)


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
        block = entry_block(place)

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if self._step is None:
                return
            change_and_capture(place, self._bank, self._step.by_block.get(block, self._step), activation_of(output))

        return hook


def change_and_capture(place: Place, bank: SteeringBank, step: StepActivations, activation: Tensor) -> None:
    """Steer `activation` `[..., tokens, hidden]`, which is that of `place`, in place, and capture what is asked for."""
    if step.row_of_token is not None:
        _steer(place, bank, step, step.row_of_token, activation)
    if place in step.captures:
        flat = activation.reshape(-1, activation.shape[-1])
        step.captured[place] = flat.index_select(0, step.captures[place]).to(torch.float32)


def _steer(place: Place, bank: SteeringBank, step: StepActivations, row_of_token: Tensor, activation: Tensor) -> None:
    adds = bank.adds(place)
    low_rank = bank.low_rank(place) if step.low_rank_tokens is not None else None
    if adds is None and low_rank is None:
        return
    flat = activation.reshape(-1, activation.shape[-1])
    exact = None
    if low_rank is not None:
        assert step.low_rank_tokens is not None
        exact = _low_rank_activations(flat, adds, low_rank, step.low_rank_tokens, row_of_token)
    if adds is not None:
        flat.add_(adds.index_select(0, row_of_token))
    if exact is not None:
        assert step.low_rank_tokens is not None
        flat.index_copy_(0, step.low_rank_tokens, exact)
    if flat.untyped_storage().data_ptr() != activation.untyped_storage().data_ptr():
        activation.copy_(flat.view_as(activation))  # its layout allowed no view, so `flat` is a copy


def _low_rank_activations(
    flat: Tensor, adds: Tensor | None, low_rank: LowRankOperations, tokens: Tensor, row_of_token: Tensor
) -> Tensor:
    """Final activations of `tokens`, computed in float32 from the unsteered ones and cast back once."""
    rows = row_of_token.index_select(0, tokens)
    before = flat.index_select(0, tokens).to(torch.float32)
    steered = before if adds is None else before + adds.index_select(0, rows)
    return low_rank.apply(steered, before, rows).to(flat.dtype)
