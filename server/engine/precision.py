"""Chooses the dtype in which a checkpoint of 16 bits is computed on a CPU: its own, or float32 where that is faster.

A processor without instructions for a 16-bit dtype multiplies its matrices many times slower than those of float32,
and float32 holds every number of both 16-bit dtypes. So the choice is measured, and takes twice the memory.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable

import torch

from server.engine.free_memory import free_bytes

_log = logging.getLogger(__name__)

MIN_SLOWNESS = 2.0
"""How many times slower than float32 a dtype must be: so much that two starts on one machine agree."""

_ROWS, _SIZE, _REPEATS = 64, 512, 5


def cpu_dtype(stored: torch.dtype, count_parameters: Callable[[], int]) -> torch.dtype:
    """The dtype for a checkpoint whose weights are `stored`, on this machine's CPU; logs what it decides.

    float32 in place of a 16-bit dtype that is `MIN_SLOWNESS` times slower here, if the weights then take at most half
    of the free memory.
    """
    if stored not in (torch.bfloat16, torch.float16):
        return stored
    slowness = slowness_of(stored)
    if slowness < MIN_SLOWNESS:
        return stored
    name = str(stored).removeprefix("torch.")
    num_bytes = torch.float32.itemsize * count_parameters()
    free = free_bytes(torch.device("cpu"))
    if num_bytes > free // 2:
        _log.warning(
            "%s is %.1f times slower than float32 on this processor, but float32 weights would need %.1f GiB of the "
            "%.1f GiB that are free; they stay as they are",
            name, slowness, num_bytes / 2**30, free / 2**30,
        )  # fmt: skip
        return stored
    _log.info("the weights are widened to float32: %s is %.1f times slower on this processor", name, slowness)
    return torch.float32


@functools.cache
def slowness_of(dtype: torch.dtype) -> float:
    """How many times longer a product of matrices takes in `dtype` than in float32 on one core of this processor."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads that wait for each other on a busy machine would be measured instead
    try:
        return _seconds(dtype) / _seconds(torch.float32)
    finally:
        torch.set_num_threads(num_threads)


def _seconds(dtype: torch.dtype) -> float:
    """The shortest of several products, of the size of a short prompt; the first one prepares."""
    rows, weight = torch.ones(_ROWS, _SIZE, dtype=dtype), torch.ones(_SIZE, _SIZE, dtype=dtype)
    times = []
    for _ in range(_REPEATS + 1):
        started = time.perf_counter()
        torch.nn.functional.linear(rows, weight)
        times.append(time.perf_counter() - started)
    return min(times[1:])
