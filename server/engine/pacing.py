"""BackgroundPace: limits the share of time that background work takes while live requests run.

Live-only steps earn credit, a share of their time; a step that also carries background tokens spends the extra time
that it took. So live requests keep at least `1 / (1 + share)` of their pace on any model and machine, and background
work always makes progress.
"""

from __future__ import annotations

SHARE = 0.15
"""Background time per live time, while there is work of both kinds."""

MAX_TOKENS_BESIDE_LIVE = 64
"""The most background tokens in a step with live ones, which bounds the gap between two live tokens."""

_MAX_CREDIT = 0.05
_SMOOTHING = 0.2


class BackgroundPace:
    """Computes from the time of each step how many background tokens the next may carry. Times are in seconds."""

    def __init__(self, share: float = SHARE) -> None:
        self._share = share
        self._credit = 0.0
        self._live_step: float | None = None

    def max_tokens(self) -> int:
        """Background tokens that the next step may carry beside live ones."""
        return MAX_TOKENS_BESIDE_LIVE if self._credit >= 0.0 else 0

    def note(self, seconds: float, *, has_background: bool) -> None:
        """Note how long a step with live tokens took."""
        if has_background:
            usual = self._live_step if self._live_step is not None else 0.0
            self._credit -= max(0.0, seconds - usual)
            return
        before = self._live_step if self._live_step is not None else seconds
        self._live_step = before + _SMOOTHING * (seconds - before)
        self._credit = min(_MAX_CREDIT, self._credit + self._share * seconds)
