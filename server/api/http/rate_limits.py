"""Rate limits: one bucket of requests or tokens per caller, for a bounded number of callers."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Unit = Literal["requests", "tokens"]
"""What a bucket holds."""

MAX_BUCKETS = 10_000
"""The most callers with a bucket; the least recently active one is forgotten first."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a caller has left of its bucket. `wait_seconds` above 0: nothing was left; retry after that time."""

    unit: Unit
    limit: int
    remaining: int
    reset_seconds: float
    wait_seconds: float

    def headers(self) -> dict[str, str]:
        """OpenAI's headers, and `Retry-After` if the caller must wait."""
        shown = {
            f"x-ratelimit-limit-{self.unit}": str(self.limit),
            f"x-ratelimit-remaining-{self.unit}": str(self.remaining),
            f"x-ratelimit-reset-{self.unit}": _duration(self.reset_seconds),
        }
        return shown | ({"Retry-After": str(math.ceil(self.wait_seconds))} if self.wait_seconds > 0 else {})


class RateLimits:
    """Buckets of `per_minute` of a unit, each refilled evenly within a minute. Used only on the event loop."""

    def __init__(
        self, per_minute: int, clock: Callable[[], float] = time.monotonic, *, unit: Unit = "requests"
    ) -> None:
        self._per_minute = per_minute
        self._unit: Unit = unit
        self._clock = clock
        self._buckets: OrderedDict[bytes, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, caller: bytes) -> Allowance:
        """Count one of `caller`, if it has any left."""
        allowance = self.look(caller)
        if allowance.wait_seconds > 0:
            return allowance
        return self._allowance(self._charge(caller, 1), 0.0)

    def look(self, caller: bytes) -> Allowance:
        """What `caller` has left; counts nothing."""
        left = self._charge(caller, 0)
        return self._allowance(left, max(0.0, (1 - left) * 60 / self._per_minute))

    def charge(self, caller: bytes, number: int) -> None:
        """Count what `caller` has used, also beyond what it has left: it then waits until that is made up for."""
        self._charge(caller, number)

    def _charge(self, caller: bytes, number: int) -> float:
        """What is left of the bucket after taking `number` out of it."""
        now = self._clock()
        left, since = self._buckets.pop(caller, (float(self._per_minute), now))
        left = min(float(self._per_minute), left + (now - since) * self._per_minute / 60) - number
        self._buckets[caller] = (left, now)
        if len(self._buckets) > MAX_BUCKETS:
            self._buckets.popitem(last=False)
        return left

    def _allowance(self, left: float, wait_seconds: float) -> Allowance:
        reset_seconds = (self._per_minute - left) * 60 / self._per_minute
        return Allowance(self._unit, self._per_minute, max(0, int(left)), reset_seconds, wait_seconds)


def _duration(seconds: float) -> str:
    """A duration in OpenAI's format: `20ms`, `8.64s`, `1m0s`."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    if seconds < 60:
        return f"{seconds:.3g}s"
    return f"{int(seconds // 60)}m{int(seconds % 60)}s"
