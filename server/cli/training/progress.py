"""Shows the progress of a training on standard error: a bar on a terminal, otherwise a log line every few seconds."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Iterator
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn
from rich.text import Text

from vectors.training.progress import Progress as Step

SECONDS_BETWEEN_LINES = 5.0

_log = logging.getLogger(__name__)


class Display(Protocol):
    """Receives the progress of a training."""

    def report(self, step: Step) -> None:
        """Progress within a phase; a phase of unknown length has a total of 0."""
        ...

    def note(self, text: str) -> None:
        """Something that happened."""
        ...


@contextlib.contextmanager
def display_progress(*, can_draw: bool = True) -> Iterator[Display]:
    """A display until the end of the context; with `can_draw` and a terminal, a bar that vanishes then."""
    console = Console(stderr=True, highlight=False)
    if not can_draw or not console.is_terminal:
        yield _Lines()
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[counts]}", markup=False),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield _Bar(progress, progress.add_task("starting", total=None, counts=""))


class _Bar:
    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def report(self, step: Step) -> None:
        if step.note is not None:
            self.note(step.note)
            return
        self._progress.update(
            self._task,
            description=step.phase,
            completed=step.num_done,
            total=step.num_total or None,
            counts=step.counts,
        )

    def note(self, text: str) -> None:
        self._progress.console.print(Text(text))


class _Lines:
    def __init__(self) -> None:
        self._phase = ""
        self._told_at = -math.inf

    def report(self, step: Step) -> None:
        if step.note is not None:
            self.note(step.note)
            return
        now = time.monotonic()
        if step.phase == self._phase and now - self._told_at < SECONDS_BETWEEN_LINES:
            return
        self._phase, self._told_at = step.phase, now
        _log.info("%s", f"{step.phase}: {step.counts}" if step.counts else step.phase)

    def note(self, text: str) -> None:
        _log.info("%s", text)
