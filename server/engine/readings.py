"""SequenceReadings: what the probes and the gates of one request have read of its tokens so far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from server.engine.request import TokenReadings
from server.steering.plan import SteeringPlan
from vectors.positions import Coverage, coverage_of

Rows: TypeAlias = Sequence[Sequence[float]]
"""What was read of some tokens: for each the values of the plan's readings, which JSON can have unless they are NaN."""


class SequenceReadings:
    """What has been read, from the first position that is wanted on. It outlives the sequence's pages.

    What is read of the prompt must not come from the prefix cache, so every position is wanted from the first on that a
    probe or gate covers, or from the last prompt token on, which chooses the response's first token.
    """

    def __init__(self, plan: SteeringPlan, num_prompt: int) -> None:
        self._coverage: list[Coverage] = [coverage_of(probe.positions, num_prompt) for probe in plan.probes]
        self._num_prompt = num_prompt
        gated = [coverage_of(entry.applied.positions, num_prompt) for entry in plan.gated]
        self._first = min(num_prompt - 1, *(coverage.first for coverage in (*self._coverage, *gated)))
        self._num_open = [0] * len(gated)
        self._num_gated = [0] * len(gated)
        self._opened_at: list[int | None] = [None] * len(gated)
        self.latched = [
            number
            for number, entry in enumerate(plan.gated, start=len(plan.probes))
            if entry.gate is not None and entry.gate.latch == "rest"
        ]
        """The numbers of the readings that are latched gates."""
        self._num_read = 0
        self._latest: Sequence[float] = ()
        self._rows: list[Sequence[float]] = []  # until they are told
        self._has_told_prompt = not any(coverage.prompt for coverage in self._coverage)

    @property
    def first_missing(self) -> int:
        """The first position that is still to be read."""
        return self._first + self._num_read

    def note(self, first: int, values: Rows) -> None:
        """Note `values` of the tokens from position `first` on."""
        assert first <= self.first_missing, "a position was left out"
        missing = self.first_missing
        new = values[missing - first :]
        self._num_read += len(new)
        if new:
            self._latest = new[-1]
        if not self._has_told_prompt:
            self._rows.extend(new)
        for gate, opened_at in enumerate(self._opened_at):
            column = len(self._coverage) + gate
            for position, row in enumerate(new, missing):
                self._num_gated[gate] += row[column] >= 0
                if row[column] > 0.5:
                    self._num_open[gate] += 1
                    opened_at = position if opened_at is None else opened_at
            self._opened_at[gate] = opened_at

    def is_latched(self, number: int, position: int) -> bool:
        """True when reading `number`, a latched gate, was opened before `position`."""
        opened_at = self._opened_at[number - len(self._coverage)]
        return opened_at is not None and opened_at < position

    def told(self, *, is_token: bool) -> TokenReadings:
        """What the event of the latest position tells; the first one also tells of the prompt."""
        scores: tuple[float | None, ...] = ()
        if is_token:
            position = self._first + self._num_read - 1
            scores = tuple(
                [
                    score if position in coverage.response else None
                    for score, coverage in zip(self._latest, self._coverage, strict=False)
                ]
            )
        gates = tuple(zip(self._num_open, self._num_gated, strict=True))
        if self._has_told_prompt:
            return TokenReadings(scores, gates=gates)
        self._has_told_prompt = True
        told = tuple(self._of_prompt(*each) for each in enumerate(self._coverage))
        self._rows = []
        return TokenReadings(scores, told, gates)

    def _of_prompt(self, number: int, coverage: Coverage) -> tuple[float | None, ...] | None:
        """What a probe has read of each token of the prompt; None if it reads none."""
        if not coverage.prompt:
            return None
        return tuple(
            self._rows[position - self._first][number] if position in coverage.prompt else None
            for position in range(self._num_prompt)
        )
