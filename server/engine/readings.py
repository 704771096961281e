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

    A probe or gate of the prompt wants every position, so none of them may come from the prefix cache; one of the
    response wants those from the last prompt token on, which chooses its first token.
    """

    def __init__(self, plan: SteeringPlan, num_prompt: int) -> None:
        self._coverage: list[Coverage] = [coverage_of(probe.positions) for probe in plan.probes]
        self._num_prompt = num_prompt
        gated = [coverage_of(entry.applied.positions) for entry in plan.gated]
        self._first = 0 if any(coverage.prompt for coverage in (*self._coverage, *gated)) else num_prompt - 1
        self._num_open = [0] * len(gated)
        self._num_gated = [0] * len(gated)
        self._opened_at: list[int | None] = [None] * len(gated)
        self.latched = [
            plan.number_of_gate(entry) for entry in plan.gated if entry.gate is not None and entry.gate.latch == "rest"
        ]
        """The numbers of the readings that are latched gates."""
        self._num_read = 0
        self._latest: Sequence[float] = ()
        self._rows: list[Sequence[float]] = []  # until they are told
        self._tells_response = [coverage.response for coverage in self._coverage]
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
            scores = tuple(
                [score if told else None for score, told in zip(self._latest, self._tells_response, strict=False)]
            )
        gates = tuple(zip(self._num_open, self._num_gated, strict=True))
        if self._has_told_prompt:
            return TokenReadings(scores, gates=gates)
        self._has_told_prompt = True
        columns = zip(*self._rows[: self._num_prompt], strict=True)
        self._rows = []
        return TokenReadings(
            scores,
            tuple(
                tuple(column) if coverage.prompt else None
                for column, coverage in zip(columns, self._coverage, strict=False)
            ),
            gates,
        )
