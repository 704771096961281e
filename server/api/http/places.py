"""Places: worker threads for what may take long, few at a time, so that they are left over for everything else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from anyio.to_thread import run_sync

from server.errors import Overloaded

Result = TypeVar("Result")


class Places:
    """Runs `num_running` tasks at a time; up to `num_waiting` more wait. Used only on the event loop."""

    def __init__(self, num_running: int, num_waiting: int) -> None:
        self._free = asyncio.Semaphore(num_running)
        self._num_left = num_running + num_waiting

    async def run(self, task: Callable[[], Result]) -> Result:
        """Run `task` on another thread. Raises `Overloaded` when too many wait, and what the task raises."""
        if self._num_left == 0:
            raise Overloaded("too many schemas are being compiled; retry later", headers={"Retry-After": "5"})
        self._num_left -= 1
        try:
            async with self._free:
                return await run_sync(task)
        finally:
            self._num_left += 1
