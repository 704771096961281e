"""BackgroundPace: the share of the engine that background work gets while live requests run: at most, and at least.

Live-only steps earn credit, a share of their time; a step that also carries background tokens spends the extra time
that it took. So live requests keep at least `1 / (1 + share)` of their pace on any model and machine. However full the
engine is and however slow it is, a fixed share of the steps is due to background work that waits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

SHARE = 0.15
"""Background time per live time, while there is work of both kinds."""

MAX_TOKENS_BESIDE_LIVE = 64
"""The most background tokens in a step with live ones, which bounds the gap between two live tokens."""

_MAX_CREDIT = 0.05
_SMOOTHING = 0.2


@dataclass(frozen=True, slots=True)
class Allowance:
    """What background work may take of a step with live requests: `max_tokens`; before them if the step `is_due`."""

    max_tokens: int
    is_due: bool = False


class BackgroundPace:
    """Computes from the time of each step what background work may take of the next. Times are in seconds.

    `least_share`: the share of steps with live requests that background work gets, however long they take.
    """

    def __init__(self, share: float = SHARE, *, least_share: float) -> None:
        self._share = share
        self._credit = 0.0
        self._live_step: float | None = None
        self._steps_between = max(1, math.floor(1 / least_share))
        self._steps_without = 0

    def allowance(self) -> Allowance:
        """What background work may take of the next step, beside live requests."""
        is_due = self._steps_without + 1 >= self._steps_between
        return Allowance(MAX_TOKENS_BESIDE_LIVE if is_due or self._credit >= 0.0 else 0, is_due)

    def note(self, seconds: float, *, has_background: bool, is_waiting: bool = True) -> None:
        """Note how long a step with live tokens took; `is_waiting`: there was background work to do."""
        if has_background:
            usual = self._live_step if self._live_step is not None else 0.0
            self._credit -= max(0.0, seconds - usual)
            self._steps_without = 0
            return
        self._steps_without = self._steps_without + 1 if is_waiting else 0
        before = self._live_step if self._live_step is not None else seconds
        self._live_step = before + _SMOOTHING * (seconds - before)
        self._credit = min(_MAX_CREDIT, self._credit + self._share * seconds)
