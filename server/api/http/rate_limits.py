"""Rate limits: one token bucket per caller, for a bounded number of callers."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

MAX_BUCKETS = 10_000
"""The most callers with a bucket; the least recently active one is forgotten first."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a caller has left after a request. `wait_seconds` above 0: nothing was left; retry after that time."""

    limit: int
    remaining: int
    reset_seconds: float
    wait_seconds: float

    def headers(self) -> dict[str, str]:
        """OpenAI's headers, and `Retry-After` if the caller must wait."""
        shown = {
            "x-ratelimit-limit-requests": str(self.limit),
            "x-ratelimit-remaining-requests": str(self.remaining),
            "x-ratelimit-reset-requests": _duration(self.reset_seconds),
        }
        return shown | ({"Retry-After": str(math.ceil(self.wait_seconds))} if self.wait_seconds > 0 else {})


class RateLimits:
    """Buckets of `per_minute` requests, each refilled evenly within a minute. Used only on the event loop."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._buckets: OrderedDict[bytes, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, caller: bytes) -> Allowance:
        """Count a request of `caller`, if it has any left."""
        now = self._clock()
        per_second = self._per_minute / 60
        left, since = self._buckets.pop(caller, (float(self._per_minute), now))
        left = min(float(self._per_minute), left + (now - since) * per_second)
        wait_seconds = max(0.0, (1 - left) / per_second)
        if wait_seconds == 0:
            left -= 1
        self._buckets[caller] = (left, now)
        if len(self._buckets) > MAX_BUCKETS:
            self._buckets.popitem(last=False)
        return Allowance(self._per_minute, int(left), (self._per_minute - left) / per_second, wait_seconds)


def _duration(seconds: float) -> str:
    """A duration in OpenAI's format: `20ms`, `8.64s`, `1m0s`."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    if seconds < 60:
        return f"{seconds:.3g}s"
    return f"{int(seconds // 60)}m{int(seconds % 60)}s"
