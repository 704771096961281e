"""What signals do to a command: while it loads, one ends it at once, with one line and the usual status.

It imports next to nothing, so that it is in force as early as can be.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

_CLEARED_LINE = "\r\x1b[K\x1b[?25h"
"""Removes what a progress bar has drawn, and shows the cursor again."""

_ENDING = (signal.SIGINT, signal.SIGTERM)


def status_of(number: int) -> int:
    """The exit status of a process that a signal ended, as shells give it: 130 for SIGINT, 143 for SIGTERM."""
    return 128 + number


def end_at_once(number: int, frame: FrameType | None = None) -> None:
    """End the process without unwinding: an exception could come up in the middle of anything, and be swallowed there.

    What is written at that moment is written as if the process were killed.
    """
    text = "tiller: interrupted\n" if number == signal.SIGINT else "tiller: terminated\n"
    with contextlib.suppress(Exception):  # it may have been interrupted in its own middle
        sys.stdout.flush()
    with contextlib.suppress(OSError):
        os.write(2, (f"{_CLEARED_LINE}{text}" if os.isatty(2) else text).encode())
    os._exit(status_of(number))


@contextlib.contextmanager
def ending_at_once() -> Iterator[None]:
    """Within, SIGINT and SIGTERM end the process at once; for the main thread, elsewhere it does nothing."""
    with handling(dict.fromkeys(_ENDING, end_at_once)):
        yield


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Within, SIGINT raises `KeyboardInterrupt` again, for a command that has something to do then."""
    with handling({signal.SIGINT: signal.default_int_handler}):
        yield


@contextlib.contextmanager
def handling(handlers: dict[signal.Signals, Callable[[int, FrameType | None], object]]) -> Iterator[None]:
    """Within, signals have `handlers`. Only the main thread can set them: elsewhere nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
