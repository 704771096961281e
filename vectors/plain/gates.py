"""Gates on a plain model: entries that act only on the tokens of which a probe says so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vectors.applied import AppliedVector, SteerableModel, change_at, gate_feature
from vectors.errors import CannotSteer
from vectors.operations import Reading, reading_of, restore_norm
from vectors.plain.passes import PassPlace
from vectors.positions import Positions
from vectors.vector import SteeringVector
from vectors.vocabulary import Latch, Place

_NEVER = torch.iinfo(torch.int64).max


@dataclass(frozen=True, slots=True)
class Gate:
    """When to steer: on tokens of which `probe`, read at `layer` (None: its only one), is above or below a threshold.

    One of `above` and `below` is given, in the probe's own unit. With a `sharpness` k the vector acts at the strength
    `sigmoid(k · distance from the threshold)`. `latch` "rest": once open, the gate stays open to the end.
    """

    probe: SteeringVector
    above: float | None = None
    below: float | None = None
    layer: int | None = None
    sharpness: float | None = None
    latch: Latch = "token"

    def __post_init__(self) -> None:
        if (self.above is None) == (self.below is None):
            raise CannotSteer("when: expected either above or below", "when", "invalid_gate")
        if self.sharpness is not None and not self.sharpness > 0:
            raise CannotSteer("sharpness: expected a number above 0", "when", "invalid_gate")
        if self.latch not in ("token", "rest"):
            raise CannotSteer(f"latch: expected token or rest, got {self.latch!r:.40}", "when", "invalid_gate")


class OpenGate:
    """A gate that is read at `place`, `is_before` the steering there, and how far it is open in the pass under way."""

    def __init__(self, gate: Gate, place: Place, reading: Reading, *, is_before: bool) -> None:
        self.place = place
        self.is_before = is_before
        self.is_latched = gate.latch == "rest"
        self._gate = gate
        self._reading = reading
        self._opened: Tensor | None = None
        self._opened_at: Tensor | None = None

    @classmethod
    def of(cls, gate: Gate, applied: AppliedVector, model: SteerableModel) -> OpenGate:
        """The gate of a vector that is applied so. Raises `CannotSteer`."""
        place, feature = gate_feature(gate.probe, applied, model, gate.layer)
        return cls(gate, place, reading_of(feature), is_before=place in applied.places)

    def judge(self, activations: Tensor, tokens: PassPlace, positions: Positions) -> None:
        """Open for the tokens of a pass that `positions` covers; `activations` are `[batch · width, hidden]`."""
        found = self._reading.to(activations.device).of(activations.to(torch.float32)).view(tokens.batch, tokens.width)
        threshold = self._gate.above if self._gate.above is not None else self._gate.below
        assert threshold is not None
        beyond = found - threshold if self._gate.above is not None else threshold - found
        sharpness = self._gate.sharpness
        opened = (beyond > 0).to(torch.float32) if sharpness is None else (sharpness * beyond).sigmoid()
        covered = tokens.covered(positions).to(found.device)
        if self.is_latched:
            opened = self._latched(opened, covered, tokens)
        self._opened = torch.where(covered, opened, 0.0).flatten()

    def _latched(self, opened: Tensor, covered: Tensor, tokens: PassPlace) -> Tensor:
        """Open also after the first token of a row that opened it, in this pass or an earlier one."""
        opened_at = self._opened_at
        if opened_at is None or len(opened_at) != tokens.batch:
            opened_at = torch.full((tokens.batch,), _NEVER, dtype=torch.int64, device=opened.device)
        opened_at = torch.where(opened_at < tokens.first, opened_at, _NEVER)  # what is computed again is judged again
        numbers = torch.arange(tokens.first, tokens.first + tokens.width, device=opened.device)
        opening = torch.where((opened > 0.5) & covered, numbers, _NEVER).amin(-1)
        self._opened_at = torch.minimum(opened_at, opening)
        return torch.where(numbers > self._opened_at.unsqueeze(-1), 1.0, opened)

    def opened(self, tokens: Tensor | None) -> Tensor:
        """How far it is open, `[tokens]`, for those of these numbers in the pass; None: for all."""
        assert self._opened is not None, "a gate is read before it is needed"
        return self._opened if tokens is None else self._opened.index_select(0, tokens.to(self._opened.device))


@dataclass(frozen=True, slots=True)
class Entry:
    """A vector as it is applied, and its gate."""

    applied: AppliedVector
    gate: OpenGate | None = None

    def is_at(self, place: Place, covering: frozenset[Positions]) -> bool:
        """True where it acts at `place` on tokens that `covering` cover."""
        return place in self.applied.places and self.applied.positions in covering


def apply_gated(here: Sequence[Entry], place: Place, before: Tensor, tokens: Tensor | None) -> Tensor:
    """Float32 `[tokens, hidden]` of the tokens of these numbers after `here` at `place`: all shifts, then the others in
    order, then the norm, each as far as its gate is open.
    """
    steered = before
    made = []
    for entry in here:
        opened = None if entry.gate is None else entry.gate.opened(tokens).to(before.device).unsqueeze(-1)
        change = change_at([entry.applied], place).to(before.device)
        made.append((change, opened))
        if change.shift is not None:
            steered = steered + (change.shift if opened is None else opened * change.shift)
    for change, opened in made:
        for slots in change.slots:
            changed = slots.apply(steered)
            steered = changed if opened is None else steered + opened * (changed - steered)
    keeps_norm = torch.zeros(len(before), 1, dtype=torch.bool, device=before.device)
    for change, opened in made:
        if change.preserves_norm:
            keeps_norm |= torch.tensor(True, device=before.device) if opened is None else opened > 0
    return torch.where(keeps_norm, restore_norm(steered, before), steered)
