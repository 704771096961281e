"""The plot of an adaptive training, as PNG bytes: accuracy on the test items against what changes elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vectors.training.canvas import NOTE_SIZE, Canvas

_STYLES = {
    "constant": ("#6b6b6b", "s"),
    "matched": ("#8a5a00", "D"),
    "adaptive": ("#2166ac", "o"),
    "random": ("#b2182b", "X"),
}
_MARGIN = 0.03


def retention_at_accuracy(report: Mapping[str, Any]) -> bytes:
    """A point with 95 % intervals for each condition of a report's `adaptive` that has figures elsewhere.

    Raises `MissingDependency`.
    """
    adaptive = report["adaptive"]
    canvas = Canvas(4.6)
    axes = canvas.axes(f"{adaptive['form']}: test accuracy and answers changed elsewhere, 95 % intervals")
    for one in adaptive["conditions"]:
        if one["elsewhere"] is None:
            continue
        colour, marker = _STYLES[one["name"]]
        changed, accuracy = one["elsewhere"]["changed"], one["accuracy"]
        place = (changed["value"], accuracy["value"])
        axes.hlines(place[1], changed["low"], changed["high"], colors=colour, linewidth=1.4)
        axes.vlines(place[0], accuracy["low"], accuracy["high"], colors=colour, linewidth=1.4)
        axes.scatter(*place, color=colour, marker=marker, s=64, zorder=5, label=one["name"])
    baseline = report["baseline"]["test"]["value"]
    axes.axhline(baseline, color="#6b6b6b", linewidth=1.0, linestyle=":")
    axes.set_xlim(-_MARGIN, max(0.2, axes.get_xlim()[1] + _MARGIN))
    axes.set_ylim(-_MARGIN, 1 + _MARGIN)
    for axis in ("x", "y"):
        canvas.percent_axis(axes, axis)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.legend(prop=canvas.font(NOTE_SIZE), frameon=False)
    canvas.axis_labels(axes, f"answers changed elsewhere (%): {adaptive['elsewhere']}", "test accuracy (%)")
    canvas.note_below("dotted: unsteered; matched: the constant vector of equal validation accuracy")
    return canvas.png()
