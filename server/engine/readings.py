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

    What is read of the prompt must not come from the prefix cache, so every position is wanted from the first on that a
    probe or gate covers, or from the last prompt token on, which chooses the response's first token.
    """

    def __init__(self, plan: SteeringPlan, num_prompt: int) -> None:
        self._coverage: list[Coverage] = [coverage_of(probe.positions, num_prompt) for probe in plan.probes]
        self._num_prompt = num_prompt
        gated = [coverage_of(entry.applied.positions, num_prompt) for entry in plan.gated]
        self._first = min(num_prompt - 1, *(coverage.first for coverage in (*self._coverage, *gated)))
        self._num_open = np.zeros(len(gated), dtype=np.int64)
        self._num_gated = np.zeros(len(gated), dtype=np.int64)
        self._opened_at: list[int | None] = [None] * len(gated)
        self.latched = [
            number
            for number, entry in enumerate(plan.gated, start=len(plan.probes))
            if entry.gate is not None and entry.gate.latch == "rest"
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
        gates = new[:, len(self._coverage) :]
        self._num_gated += (gates >= 0).sum(0)
        self._num_open += (gates > 0.5).sum(0)
        for gate, opened_at in enumerate(self._opened_at):
            is_open = gates[:, gate] > 0.5
            if opened_at is None and is_open.any():
                self._opened_at[gate] = missing + int(is_open.argmax())
        self._rows.extend(np.clip(new, -_LARGEST, _LARGEST))

    def is_latched(self, number: int, position: int) -> bool:
        """True when reading `number`, a latched gate, was opened before `position`."""
        opened_at = self._opened_at[number - len(self._coverage)]
        return opened_at is not None and opened_at < position

    def told(self, *, is_token: bool) -> TokenReadings:
        """What the event of the latest position tells; the first one also tells of the prompt."""
        scores: tuple[float | None, ...] = ()
        if is_token:
            position = self._first + len(self._rows) - 1
            latest = self._rows[-1].tolist()
            scores = tuple(
                score if position in coverage.response else None
                for score, coverage in zip(latest, self._coverage, strict=False)
            )
        gates = tuple(zip(self._num_open.tolist(), self._num_gated.tolist(), strict=True))
        if self._has_told_prompt or not any(coverage.prompt for coverage in self._coverage):
            return TokenReadings(scores, gates=gates)
        self._has_told_prompt = True
        return TokenReadings(scores, tuple(self._of_prompt(*each) for each in enumerate(self._coverage)), gates)

    def _of_prompt(self, number: int, coverage: Coverage) -> tuple[float | None, ...] | None:
        """What a probe has read of each token of the prompt; None if it reads none."""
        if not coverage.prompt:
            return None
        return tuple(
            float(self._rows[position - self._first][number]) if position in coverage.prompt else None
            for position in range(self._num_prompt)
        )
