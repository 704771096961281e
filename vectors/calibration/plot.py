"""The plot of a calibration, as PNG bytes; see `vectors.training.plots`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vectors.training.canvas import Canvas

_MOVED = "#2166ac"
_PERPLEXITY = "#8a5a00"


def calibration_plot(title: str, report: Mapping[str, Any]) -> bytes:
    """How far each scale moves the model, and the perplexity of what it writes; the safe range is shaded.

    `report` is that of `calibrate`. Raises `MissingDependency` without matplotlib.
    """
    found = report["calibration"]
    low, high = found["safe_scale"]
    plain = report["unsteered"]["perplexity"]
    moved = [(one["scale"], one["kl"]) for one in report["divergence"] if one["kl"]]
    grown = [(one["scale"], one["perplexity"] / plain) for one in report["fluency"] if "perplexity" in one]
    canvas = Canvas(4.6)
    axes = canvas.axes(title)
    axes.axvspan(low, high, color=_MOVED, alpha=0.12, linewidth=0)
    axes.axhline(found["kl"], color=_MOVED, linestyle="--", linewidth=1.2)
    axes.axhline(found["max_perplexity"], color=_PERPLEXITY, linestyle="--", linewidth=1.2)
    for points, colour, marker in ((moved, _MOVED, "o"), (grown, _PERPLEXITY, "s")):
        axes.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=4, linewidth=1.6)
    axes.set_yscale("log")
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        label.set_fontproperties(canvas.font())
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    canvas.axis_labels(axes, "scale", "nats, or times (logarithmic)")
    canvas.note_below(
        f"blue: 95th percentile of KL (nats); brown: perplexity ÷ unsteered; dashed: their bounds; "
        f"shaded: safe, {low:g} to {high:g}"
    )
    return canvas.png()
