"""Work that can be told to stop: whoever starts it says how it is asked, and its loops ask.

The question belongs to the context (`contextvars`) in which the work runs, so that no function has to hand it on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar


class Cancelled(Exception):
    """The work is no longer wanted."""


_is_cancelled: ContextVar[Callable[[], bool] | None] = ContextVar("is_cancelled", default=None)


@contextlib.contextmanager
def cancellable(is_cancelled: Callable[[], bool]) -> Iterator[None]:
    """Within, `check_cancelled` raises `Cancelled` once `is_cancelled()` is True."""
    token = _is_cancelled.set(is_cancelled)
    try:
        yield
    finally:
        _is_cancelled.reset(token)


def check_cancelled() -> None:
    """Raise `Cancelled` if the work around is to stop. Cheap: for loops over rows and items."""
    is_cancelled = _is_cancelled.get()
    if is_cancelled is not None and is_cancelled():
        raise Cancelled
