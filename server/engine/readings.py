"""SequenceReadings: what the probes of one request have read of its tokens so far."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from server.engine.request import TokenReadings
from server.steering.plan import SteeringPlan
from vectors.positions import Coverage, coverage_of

_LARGEST = float(np.finfo(np.float32).max)


class SequenceReadings:
    """The readings by position, from the first that is wanted on. They outlive the sequence's pages.

    A probe of the prompt wants every position, so none of them may come from the prefix cache; one of the response
    wants those from the last prompt token on, which chooses its first token.
    """

    def __init__(self, plan: SteeringPlan, num_prompt: int) -> None:
        self._coverage: list[Coverage] = [coverage_of(probe.positions) for probe in plan.probes]
        self._num_prompt = num_prompt
        self._first = 0 if any(coverage.prompt for coverage in self._coverage) else num_prompt - 1
        self._rows: list[npt.NDArray[np.float32]] = []
        self._has_told_prompt = False

    @property
    def first_missing(self) -> int:
        """The first position that is still to be read."""
        return self._first + len(self._rows)

    def note(self, first: int, values: npt.NDArray[np.float32]) -> None:
        """Note `values` `[tokens, probes]` of the tokens from position `first` on."""
        assert first <= self.first_missing, "a position was left out"
        self._rows.extend(np.clip(values[self.first_missing - first :], -_LARGEST, _LARGEST))

    def told(self, *, is_token: bool) -> TokenReadings:
        """What the event of the latest position tells; the first one also tells of the prompt."""
        scores: tuple[float | None, ...] = ()
        if is_token:
            latest = self._rows[-1].tolist()
            scores = tuple(
                score if coverage.response else None for score, coverage in zip(latest, self._coverage, strict=True)
            )
        if self._has_told_prompt or self._first > 0:
            return TokenReadings(scores)
        self._has_told_prompt = True
        columns = np.stack(self._rows[: self._num_prompt], axis=1)
        return TokenReadings(
            scores,
            tuple(
                tuple(column.tolist()) if coverage.prompt else None
                for column, coverage in zip(columns, self._coverage, strict=True)
            ),
        )
