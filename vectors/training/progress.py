"""The progress of long work, and an estimate of the time left.

Phases have names and units; a unit of one phase may weigh more than one of another.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TextIO


@dataclass(frozen=True, slots=True)
class Progress:
    """`num_done` of `num_total` units of `phase`; `best`: the best accuracy so far; `seconds_left` until the end.

    `note` is a sentence to tell, once; then the rest says nothing new.
    """

    phase: str
    num_done: int
    num_total: int
    best: float | None = None
    seconds_left: float | None = None
    note: str | None = None

    @property
    def counts(self) -> str:
        """`120 of 400, best so far 63.2 %, about 0:45 left`, as far as known; a phase may be of unknown length."""
        parts = []
        if self.num_total:
            parts.append(f"{self.num_done} of {self.num_total}")
        if self.best is not None:
            parts.append(f"best so far {100 * self.best:.1f} %")
        if self.seconds_left is not None and self.num_total:
            parts.append(f"about {_duration(self.seconds_left)} left")
        return ", ".join(parts)


Report = Callable[[Progress], None]
"""Receives progress; must return at once."""


@contextlib.contextmanager
def progress_line(stream: TextIO) -> Iterator[Report]:
    """A report that rewrites one line of `stream` and clears it at the end; silent unless `stream` is a terminal."""
    if not stream.isatty():
        yield lambda progress: None
        return
    width = 0

    def rewrite(progress: Progress) -> None:
        nonlocal width
        if progress.note is not None:
            stream.write(f"\r{'':<{width}}\r{progress.note}\n")
            return
        line = f"{progress.phase}: {progress.counts}"
        stream.write(f"\r{line:<{width}}")
        stream.flush()
        width = len(line)

    try:
        yield rewrite
    finally:
        stream.write(f"\r{'':<{width}}\r")
        stream.flush()


class WorkPlan:
    """Phases with their expected amounts of work, so that the time left can be estimated from the first one on."""

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


def _duration(seconds: float) -> str:
    """`0:45`, `1:02:03`."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
