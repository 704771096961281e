"""Chooses what a checkpoint of 16 bits is computed in on a CPU: its own dtype, or float32 where that is faster.

A processor without instructions for a 16-bit dtype multiplies its matrices many times slower than those of float32,
which holds every number of both 16-bit dtypes. So the choice is measured on the machine at hand.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from server.engine.free_memory import free_bytes
from server.kernels.library import Kernels

_log = logging.getLogger(__name__)

MIN_SLOWNESS = 2.0
"""How many times slower a dtype must be for its weights to be widened: so much that two starts on a machine agree."""

_ROWS, _SIZE, _REPEATS = (8, 64), 512, 5
"""A step that decodes and a short prompt; a token of either counts the same."""


def is_better_in_float32(stored: torch.dtype, num_parameters: int, kernels: Kernels | None) -> bool:
    """Whether a model of `num_parameters` weights in dtype `stored` is faster in float32 on this machine's CPU.

    With `kernels`, which keep the weights as stored, it is if they are faster. Without them the dtype must be
    `MIN_SLOWNESS` times slower, and the widened weights take at most half of the free memory. Logs what it decides.
    """
    if stored not in (torch.bfloat16, torch.float16):
        return False
    name = str(stored).removeprefix("torch.")
    if kernels is not None and stored in kernels.dtypes:
        slowness = slowness_of(stored, kernels)
        is_faster = slowness > 1
        _log.info("%s is %.1f times slower here than the compiled kernels in float32", name, slowness)
        return is_faster
    slowness = slowness_of(stored)
    if slowness < MIN_SLOWNESS:
        return False
    num_bytes, free = torch.float32.itemsize * num_parameters, free_bytes(torch.device("cpu"))
    if num_bytes > free // 2:
        _log.warning(
            "%s is %.1f times slower than float32 on this processor, but float32 weights would need %.1f GiB of the "
            "%.1f GiB that are free; they stay as they are",
            name, slowness, num_bytes / 2**30, free / 2**30,
        )  # fmt: skip
        return False
    _log.info("the weights are widened to float32: %s is %.1f times slower on this processor", name, slowness)
    return True


@functools.cache
def slowness_of(dtype: torch.dtype, kernels: Kernels | None = None) -> float:
    """How many times longer PyTorch takes for a token in `dtype` than in float32, or than `kernels` with weights of
    `dtype`, on one core."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads that wait for each other on a busy machine would be measured instead
    try:
        weight = torch.ones(_SIZE, _SIZE, dtype=dtype)
        packed = None if kernels is None else kernels.pack(weight)

        wide = weight.to(torch.float32)

        def in_float32(rows: Tensor) -> Tensor:
            if kernels is None or packed is None:
                return nn.functional.linear(rows, wide)
            return kernels.linear(rows, packed, _SIZE)

        slow = fast = 0.0
        for num_rows in _ROWS:
            rows = torch.ones(num_rows, _SIZE)
            slow += _seconds(partial(nn.functional.linear, rows.to(dtype), weight)) / num_rows
            fast += _seconds(partial(in_float32, rows)) / num_rows
        return slow / fast
    finally:
        torch.set_num_threads(num_threads)


def _seconds(product: Callable[[], object]) -> float:
    """The shortest of several products; the first one prepares."""
    times = []
    for _ in range(_REPEATS + 1):
        started = time.perf_counter()
        product()
        times.append(time.perf_counter() - started)
    return min(times[1:])
