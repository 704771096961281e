"""Shows progress of the start on standard error: a bar with the elapsed time, or plain log lines."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def progress_of(title: str, num_phases: int, *, can_draw: bool) -> Iterator[Callable[[str], None]]:
    """A function to call with each of `num_phases` phases as it begins.

    With `can_draw` and a terminal, a bar that vanishes at the end; otherwise one log line per phase.
    """
    console = Console(stderr=True)
    if not can_draw or not console.is_terminal:
        yield lambda phase: _log.info("%s: %s", title, phase)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(title, total=num_phases)
        num_begun = 0

        def begin(phase: str) -> None:
            nonlocal num_begun
            progress.update(task, completed=min(num_begun, num_phases), description=f"{title}: {phase}")
            num_begun += 1

        yield begin


def quiet_libraries(*, is_debugging: bool) -> None:
    """Hide transformers' own progress bars and advice; download bars stay."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    if not is_debugging:
        transformers_logging.set_verbosity_error()
        warnings.simplefilter("ignore")
