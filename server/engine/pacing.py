"""BackgroundPace: how much of the time background work may take while live requests run.

Live-only steps earn credit, a share of their time; a step that carries background tokens too spends what it took
longer. So live requests keep at least `1 / (1 + share)` of their pace, whatever the model and machine, and background
work always gets on. It does not know requests or tokens' meaning.
"""

from __future__ import annotations

SHARE = 0.15
"""Background time per live time, while both are there."""

MAX_TOKENS_BESIDE_LIVE = 64
"""Background tokens of one step that live requests wait for: bounds the longest gap between two of their tokens."""

_MAX_CREDIT = 0.05
_SMOOTHING = 0.2


class BackgroundPace:
    """Told how long each step took, says how many background tokens the next one may carry. Times in seconds."""

    def __init__(self, share: float = SHARE) -> None:
        self._share = share
        self._credit = 0.0
        self._live_step: float | None = None

    def max_tokens(self) -> int:
        """Background tokens that the next step may carry beside live ones."""
        return MAX_TOKENS_BESIDE_LIVE if self._credit >= 0.0 else 0

    def note(self, seconds: float, *, has_background: bool) -> None:
        """A step with live tokens took so long."""
        if has_background:
            usual = self._live_step if self._live_step is not None else 0.0
            self._credit -= max(0.0, seconds - usual)
            return
        before = self._live_step if self._live_step is not None else seconds
        self._live_step = before + _SMOOTHING * (seconds - before)
        self._credit = min(_MAX_CREDIT, self._credit + self._share * seconds)
