"""Other threads reach the loop in order, with few wake-ups, and nothing is lost between a delivery and the next."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from server.api.generation.mailbox import Mailbox, mailbox

NUM_THREADS, NUM_CALLS = 4, 5_000


class CountingLoop(asyncio.SelectorEventLoop):
    """A loop that counts how often other threads wake it."""

    num_wakeups = 0

    def call_soon_threadsafe(self, callback: Callable[..., object], *arguments: Any, **named: Any) -> asyncio.Handle:  # type: ignore[override]  # of typed tuples
        """Count, and wake."""
        self.num_wakeups += 1
        return super().call_soon_threadsafe(callback, *arguments, **named)


def test_what_arrives_before_the_loop_gets_to_it_costs_one_wakeup() -> None:
    with asyncio.Runner(loop_factory=CountingLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, CountingLoop)
        found: list[int] = []

        async def run() -> int:
            before = loop.num_wakeups
            for number in range(100):
                mailbox().put(found.append, number)
            assert found == []
            await asyncio.sleep(0)
            return loop.num_wakeups - before

        assert runner.run(run()) == 1
    assert found == list(range(100))


def test_threads_are_heard_in_their_order_and_nothing_is_lost() -> None:
    found: list[tuple[int, int]] = []

    async def run() -> None:
        box, everything = mailbox(), asyncio.Event()
        assert mailbox() is box

        def take(argument: tuple[int, int]) -> None:
            found.append(argument)
            if len(found) == NUM_THREADS * NUM_CALLS:
                everything.set()

        def work(thread: int) -> None:
            for number in range(NUM_CALLS):
                box.put(take, (thread, number))

        threads = [threading.Thread(target=work, args=(thread,)) for thread in range(NUM_THREADS)]
        for thread in threads:
            thread.start()
        async with asyncio.timeout(60):
            await everything.wait()
        for thread in threads:
            thread.join()

    asyncio.run(run())
    for thread in range(NUM_THREADS):
        assert [number for owner, number in found if owner == thread] == list(range(NUM_CALLS))


class LateCalls(deque[Any]):
    """Calls to deliver, to which one is added at the very moment in which a delivery finds nothing more."""

    def __init__(self, add: Callable[[], object]) -> None:
        super().__init__()
        self._add: Callable[[], object] | None = add

    def __bool__(self) -> bool:
        """False when there is nothing more; the first time, something is added right then."""
        if len(self):
            return True
        add, self._add = self._add, None
        if add is not None:
            add()
        return False


def test_what_is_put_while_a_delivery_ends_is_heard_without_another_call() -> None:
    found: list[str] = []

    async def run() -> None:
        box = mailbox()
        box._calls = LateCalls(lambda: box.put(found.append, "late"))
        box.put(found.append, "early")
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    asyncio.run(run())
    assert found == ["early", "late"]


def test_a_closed_loop_is_left_alone() -> None:
    loop = asyncio.new_event_loop()
    box = Mailbox(loop)
    loop.close()
    box.put(print, "nobody hears this")
