"""SequenceReadings: what the probes and the gates of one request have read of its tokens so far."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from server.engine.request import TokenReadings
from server.steering.plan import SteeringPlan
from vectors.positions import Coverage, coverage_of

_LARGEST = float(np.finfo(np.float32).max)


class SequenceReadings:
    """The readings by position, from the first that is wanted on. They outlive the sequence's pages.

    A probe or gate of the prompt wants every position, so none of them may come from the prefix cache; one of the
    response wants those from the last prompt token on, which chooses its first token.
    """

    def __init__(self, plan: SteeringPlan, num_prompt: int) -> None:
        self._coverage: list[Coverage] = [coverage_of(probe.positions) for probe in plan.probes]
        self._num_prompt = num_prompt
        gated = [coverage_of(entry.applied.positions) for entry in plan.gated]
        self._first = 0 if any(coverage.prompt for coverage in (*self._coverage, *gated)) else num_prompt - 1
        self._num_open = np.zeros(len(gated), dtype=np.int64)
        self._num_gated = np.zeros(len(gated), dtype=np.int64)
        self._opened_at: list[int | None] = [None] * len(gated)
        self.latched = [
            plan.number_of_gate(entry) for entry in plan.gated if entry.gate is not None and entry.gate.latch == "rest"
        ]
        """The numbers of the readings that are latched gates."""
        self._rows: list[npt.NDArray[np.float32]] = []
        self._has_told_prompt = False

    @property
    def first_missing(self) -> int:
        """The first position that is still to be read."""
        return self._first + len(self._rows)

    def note(self, first: int, values: npt.NDArray[np.float32]) -> None:
        """Note `values` `[tokens, readings]` of the tokens from position `first` on."""
        assert first <= self.first_missing, "a position was left out"
        missing = self.first_missing
        new = values[missing - first :]
        if self._opened_at:
            self._note_gates(missing, new[:, len(self._coverage) :])
        self._rows.extend(new)

    def _note_gates(self, first: int, gates: npt.NDArray[np.float32]) -> None:
        """Count `gates` `[tokens, gates]`, from position `first` on."""
        is_open = gates > 0.5
        self._num_gated += (gates >= 0).sum(0)
        self._num_open += is_open.sum(0)
        for gate, opened_at in enumerate(self._opened_at):
            if opened_at is None and is_open[:, gate].any():
                self._opened_at[gate] = first + int(is_open[:, gate].argmax())

    def is_latched(self, number: int, position: int) -> bool:
        """True when reading `number`, a latched gate, was opened before `position`."""
        opened_at = self._opened_at[number - len(self._coverage)]
        return opened_at is not None and opened_at < position

    def told(self, *, is_token: bool) -> TokenReadings:
        """What the event of the latest position tells; the first one also tells of the prompt."""
        scores: tuple[float | None, ...] = ()
        if is_token:
            latest = _finite(self._rows[-1])
            scores = tuple(
                score if coverage.response else None for score, coverage in zip(latest, self._coverage, strict=False)
            )
        gates = tuple(zip(self._num_open.tolist(), self._num_gated.tolist(), strict=True)) if self._opened_at else ()
        if self._has_told_prompt or not any(coverage.prompt for coverage in self._coverage):
            return TokenReadings(scores, gates=gates)
        self._has_told_prompt = True
        columns = np.stack(self._rows[: self._num_prompt], axis=1)
        return TokenReadings(
            scores,
            tuple(
                tuple(_finite(column)) if coverage.prompt else None
                for column, coverage in zip(columns, self._coverage, strict=False)
            ),
            gates,
        )


def _finite(values: npt.NDArray[np.float32]) -> list[float]:
    """The values as JSON can have them."""
    found: list[float] = values.tolist()
    return [max(-_LARGEST, min(_LARGEST, value)) for value in found]
