"""What the engine's thread hands to the event loop, with one wake-up of the loop for everything that a step makes.

Waking a loop is a system call, which costs more than the handing over; a step makes a token for each running request.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from typing import Any

from anyio.lowlevel import RunVar


class Mailbox:
    """Calls functions on one event loop for other threads, in the order in which they ask."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._calls: deque[tuple[Callable[[Any], object], Any]] = deque()
        self._is_woken = False

    def put(self, function: Callable[[Any], object], argument: Any) -> None:
        """Have `function(argument)` called on the loop; from any thread. Nothing is called once the loop is closed."""
        self._calls.append((function, argument))
        if not self._is_woken:
            self._is_woken = True  # before the wake-up: what is put after it must wake the loop again
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is waiting any more
                self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._is_woken = False  # before the calls: what is put during them is found here, or wakes the loop again
        while self._calls:
            function, argument = self._calls.popleft()
            function(argument)


_of_loop: RunVar[Mailbox] = RunVar("mailbox")


def mailbox() -> Mailbox:
    """The mailbox of the running event loop."""
    found = _of_loop.get(None)
    if found is None:
        found = Mailbox(asyncio.get_running_loop())
        _of_loop.set(found)
    return found
