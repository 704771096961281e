"""Plots of what was measured, as PNG bytes. Each raises `MissingDependency` without matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from server.bench.spread import Spread
from vectors.training.canvas import Canvas

_BAR = "#2166ac"
_LINE = "#222222"


@dataclass(frozen=True, slots=True)
class Measured:
    """A figure and what it is of. Its interval reaches from the smallest to the largest measurement."""

    label: str
    spread: Spread

    @property
    def low(self) -> float:
        """The smallest."""
        return self.spread.low

    @property
    def high(self) -> float:
        """The largest."""
        return self.spread.high


def speeds(title: str, axis: str, measured: Sequence[Measured]) -> bytes:
    """A bar for the median of each figure, from 0, with a line from the smallest to the largest."""
    canvas = Canvas(1.4 + 0.32 * len(measured))
    axes = canvas.axes(title)
    medians = [one.spread.median for one in measured]
    axes.barh(range(len(measured)), medians, height=0.6, color=_BAR, zorder=3)
    canvas.intervals(axes, measured, [_LINE] * len(measured))
    canvas.rows(axes, measured, [f"{median:.4g}" for median in medians])
    for label in axes.get_xticklabels():
        label.set_fontproperties(canvas.font())
    axes.set_xlim(left=0)
    canvas.axis_labels(axes, axis, "")
    return canvas.png()
