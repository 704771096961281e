"""Where a figure reaches a bound as the scale grows: by secant steps, and by doubling and halving."""

from __future__ import annotations

import math
from collections.abc import Callable

TOLERANCE = 0.05
"""The relative error of what `crossing` finds."""

_MOST_STEPS = 14
_LARGEST_STEP = 4.0
_FARTHEST = 1024.0
_NUM_BISECTIONS = 3


def crossing(figure: Callable[[float], float], start: float, target: float) -> float | None:
    """A scale of the sign of `start` at which `figure` is `target`, within `TOLERANCE`; None if it is below everywhere.

    `figure` is 0 at 0 and may be infinite; for small scales it grows with their square, as a divergence does. Between
    brackets it takes secant steps in log-log (as steering-lite does), which exact squares need only one of.
    """
    low: tuple[float, float] | None = None
    high: tuple[float, float] | None = None
    scale = start
    for _ in range(_MOST_STEPS):
        found = figure(scale)
        if abs(found - target) <= TOLERANCE * target:
            return scale
        if found < target:
            low = scale, found
        else:
            high = scale, found
        if low is not None and high is not None:
            scale = _between(low, high, target)
        else:
            ratio = math.sqrt(target / found) if 0 < found < math.inf else math.inf if found == 0 else 0.0
            scale *= min(max(ratio, 1 / _LARGEST_STEP), _LARGEST_STEP)
            if abs(scale) > _FARTHEST * abs(start):
                return None
    return low[0] if low is not None and high is not None else None


def edge(is_well: Callable[[float], bool], start: float) -> tuple[float, bool]:
    """The largest scale of the sign of `start` up to which it is well, within 10 %, and whether it was ill beyond.

    Scales are tried from an eighth of `start` upwards, in steps of 2, up to 16 times `start`; the first that is ill
    ends the search, also if a larger one were well. 0 if none is well.
    """
    good, bad = 0.0, None
    for exponent in range(-3, 5):
        scale = start * 2.0**exponent
        if not is_well(scale):
            bad = scale
            break
        good = scale
    if bad is None:
        return good, False
    if good == 0.0:
        return 0.0, True
    for _ in range(_NUM_BISECTIONS):
        middle = math.copysign(math.sqrt(good * bad), start)
        if is_well(middle):
            good = middle
        else:
            bad = middle
    return good, True


def _between(low: tuple[float, float], high: tuple[float, float], target: float) -> float:
    """The secant step in log-log, kept off the ends of the bracket; its middle where that is not possible."""
    first, last = math.log(abs(low[0])), math.log(abs(high[0]))
    share = 0.5
    if low[1] > 0 and math.isfinite(high[1]):
        share = math.log(target / low[1]) / math.log(high[1] / low[1])
    return math.copysign(math.exp(first + min(max(share, 0.1), 0.9) * (last - first)), low[0])
