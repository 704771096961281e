"""Places: worker threads for what may take long, few at a time, so that they are left over for everything else."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

from anyio.to_thread import run_sync

from server.errors import Overloaded
from server.fair_queue import FairQueue

Result = TypeVar("Result")


class Places:
    """Runs `num_running` tasks at a time; up to `num_waiting` more wait. Used only on the event loop.

    The owners of tasks take turns. None has all places, so that one is free for others however long its tasks take,
    and none fills the queue: a full one takes tasks of an owner who has less than a fair share of it.
    """

    def __init__(self, num_running: int, num_waiting: int) -> None:
        self._num_running = num_running
        self._num_waiting = num_waiting
        self._most_of_one = max(1, num_running - 1)
        self._held: Counter[str] = Counter()
        self._waiting: FairQueue[_Turn] = FairQueue(lambda turn: turn.owner)

    async def run(self, task: Callable[[], Result], owner: str) -> Result:
        """Run `task` on another thread. Raises `Overloaded` when too many wait, and what the task raises."""
        if not self._waiting.has_room_for(owner, self._num_waiting):
            raise Overloaded("too many schemas are being compiled; retry later", headers={"Retry-After": "5"})
        turn = _Turn(owner)
        self._waiting.add(turn)
        self._start_next()
        try:
            await turn.has_come.wait()
            return await run_sync(task)
        finally:
            if turn.has_come.is_set():
                self._held -= Counter([owner])  # and forget who holds none
                self._start_next()
            else:
                self._waiting.remove(turn)

    def _start_next(self) -> None:
        while self._held.total() < self._num_running:
            turn = next((each for each in self._waiting.firsts if self._held[each.owner] < self._most_of_one), None)
            if turn is None:
                return
            self._waiting.take(turn)
            self._held[turn.owner] += 1
            turn.has_come.set()


class _Turn:
    """A task of `owner` that waits for its turn."""

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self.has_come = asyncio.Event()
