"""How far long work has come, and how long it will still take.

It does not know what the work is: phases have names and units, and a unit of one phase may weigh more than another's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """`num_done` of `num_total` units of `phase`; `best`: the best accuracy so far; `seconds_left` until the end."""

    phase: str
    num_done: int
    num_total: int
    best: float | None = None
    seconds_left: float | None = None


Report = Callable[[Progress], None]
"""Receives progress; must return at once."""


class WorkPlan:
    """Phases with their expected amounts of work, so that the time left can be told from the first of them on."""

    def __init__(self, report: Report, expected: Mapping[str, float]) -> None:
        self._report = report
        self._left = dict(expected)
        self._done = 0.0
        self._started = time.monotonic()
        self._phase_started = self._started
        self._phase = ""
        self._total = 0
        self._weight = 0.0
        self.best: float | None = None
        self.seconds: dict[str, float] = {}

    def begin(self, phase: str, num_total: int) -> None:
        """Enter `phase` of `num_total` units. A phase entered again adds to its time."""
        self._close()
        self._phase, self._total = phase, num_total
        self._weight = self._left.pop(phase, 0.0)
        self._phase_started = time.monotonic()
        self.advance(0)

    def advance(self, num_done: int) -> None:
        """`num_done` units of the phase are done."""
        part = self._weight * num_done / max(1, self._total)
        done = self._done + part
        left = sum(self._left.values()) + self._weight - part
        elapsed = time.monotonic() - self._started
        seconds_left = elapsed / done * left if done > 0 else None
        self._report(Progress(self._phase, num_done, self._total, self.best, seconds_left))

    def end(self) -> None:
        """The work is complete."""
        self._close()
        self._phase = ""

    def _close(self) -> None:
        if self._phase:
            self.seconds[self._phase] = self.seconds.get(self._phase, 0.0) + time.monotonic() - self._phase_started
            self._done += self._weight
