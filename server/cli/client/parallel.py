"""Several requests to a server at once, so that it can compute them in one batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

NUM_AT_ONCE = 8

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def in_parallel(
    work: Callable[[_Item], _Result], items: Sequence[_Item], report: Callable[[int], None]
) -> list[_Result]:
    """`work` of every item, in the order of the items; `report` gets how many are done.

    The first failure is raised, and what has not begun then is not begun.
    """
    executor = ThreadPoolExecutor(NUM_AT_ONCE)
    try:
        futures = [executor.submit(work, item) for item in items]
        for num_done, future in enumerate(as_completed(futures), 1):
            future.result()
            report(num_done)
        return [future.result() for future in futures]
    finally:
        executor.shutdown(cancel_futures=True)
