"""ProgressLog: a training's progress as events of its job, at most about one per second."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from server.jobs.database import JobDatabase
from server.jobs.records import Event
from server.jobs.trainer import Progress

SECONDS_BETWEEN_METRICS = 1.0

_FARTHEST_SECONDS = 10 * 365 * 86400


class ProgressLog:
    """The events of one run of a job; used on the training thread.

    `clock` gives seconds that never go back. `on_change` is called after each change of the job.
    """

    def __init__(
        self, database: JobDatabase, job: str, on_change: Callable[[], None], clock: Callable[[], float]
    ) -> None:
        self._database = database
        self._job = job
        self._on_change = on_change
        self._clock = clock
        self._phase: str | None = None
        self._waiting: Progress | None = None
        self._told_at = -math.inf

    def report(self, progress: Progress) -> None:
        """Always record a phase's start and its last figures; record figures in between at most once per second."""
        if progress.note is not None:
            self._tell([Event(progress.note)], progress)
            return
        if progress.phase != self._phase:
            events = self._last_of_phase()
            self._phase = progress.phase
            self._told_at = -math.inf
            self._tell([*events, Event(f"{progress.phase} begins")], progress)
        now = self._clock()
        if now - self._told_at < SECONDS_BETWEEN_METRICS and progress.num_done < progress.num_total:
            self._waiting = progress
            return
        self._waiting = None
        self._told_at = now
        self._tell([_metrics(progress)], progress)

    def finish(self) -> list[Event]:
        """The events still to be recorded when the run is over; the caller records them."""
        return self._last_of_phase()

    def _last_of_phase(self) -> list[Event]:
        waiting, self._waiting = self._waiting, None
        return [] if waiting is None else [_metrics(waiting)]

    def _tell(self, events: list[Event], progress: Progress) -> None:
        seconds = _finite(progress.seconds_left)
        is_known = seconds is not None and 0 <= seconds < _FARTHEST_SECONDS
        finish = int(time.time() + seconds) if seconds is not None and is_known else None
        self._database.change_job(self._job, events=events, estimated_finish=finish)
        self._on_change()


def _metrics(progress: Progress) -> Event:
    data = {
        "phase": progress.phase,
        "num_done": progress.num_done,
        "num_total": progress.num_total,
        "best": _finite(progress.best),
        "seconds_left": _finite(progress.seconds_left),
    }
    return Event(f"{progress.phase}: {progress.num_done} of {progress.num_total}", type="metrics", data=data)


def _finite(number: float | None) -> float | None:
    """None for NaN and infinity, which JSON does not have."""
    return float(number) if number is not None and math.isfinite(number) else None
