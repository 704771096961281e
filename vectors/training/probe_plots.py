"""Plots of a probe's report, as PNG bytes: the AUC by layer, and probability against share. See `plots.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vectors.training.canvas import NOTE_SIZE, Canvas

_COLOURS = ("#2166ac", "#8a5a00", "#6b6b6b", "#762a83")
_STYLES = ("-", "--")


def auc_by_layer(report: Mapping[str, Any]) -> bytes:
    """The validation AUC at every layer, a line for each site and fit; the chosen place has a ring."""
    canvas = Canvas(4.2)
    axes = canvas.axes("AUC on validation texts by layer")
    lines: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for place in report["places"]:
        lines.setdefault((place["site"], place["fit"]), []).append((place["layer"], place["validation"]))
    sites = list(dict.fromkeys(site for site, _ in lines))
    fits = list(dict.fromkeys(fit for _, fit in lines))
    for (site, fit), points in lines.items():
        layers, areas = zip(*points, strict=True)
        axes.plot(
            layers, areas, label=f"{site}, {fit}".replace("_", " "), marker="o", markersize=4, linewidth=1.6,
            color=_COLOURS[sites.index(site) % len(_COLOURS)], linestyle=_STYLES[fits.index(fit) % len(_STYLES)],
        )  # fmt: skip
    chosen = report["chosen"]
    axes.scatter([chosen["layer"]], [chosen["validation"]], s=140, facecolors="none", edgecolors="black", zorder=5)
    axes.axhline(0.5, color="#6b6b6b", linewidth=1.0, linestyle=":")
    shown = sorted({place["layer"] for place in report["places"]})
    axes.set_xticks(shown, labels=[str(layer) for layer in shown], fontproperties=canvas.font(NOTE_SIZE))
    _figures(canvas, axes, min(0.45, *(place["validation"] for place in report["places"])) - 0.02)
    axes.legend(prop=canvas.font(NOTE_SIZE), frameon=False)
    canvas.axis_labels(axes, "layer", "AUC")
    canvas.note_below("ring: chosen; dotted: guessing")
    return canvas.png()


def calibration(report: Mapping[str, Any]) -> bytes:
    """The share of positive held-out texts by their probability; a calibrated probe is on the diagonal."""
    canvas = Canvas(4.6)
    axes = canvas.axes("held-out texts: probability and share of positives")
    bins = report["test"]["bins"]
    axes.plot([0, 1], [0, 1], color="#6b6b6b", linestyle=":", linewidth=1.2)
    axes.plot(
        [each["probability"] for each in bins], [each["share"] for each in bins],
        color=_COLOURS[0], marker="o", markersize=6, linewidth=1.6,
    )  # fmt: skip
    axes.axvline(report["chosen"]["threshold"], color="#8a5a00", linestyle="--", linewidth=1.2)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1], labels=["0", "0.2", "0.4", "0.6", "0.8", "1"],
                    fontproperties=canvas.font())  # fmt: skip
    _figures(canvas, axes, -0.02)
    canvas.axis_labels(axes, "probability that the probe reads", "share of positive texts")
    error = report["test"]["calibration_error"]
    canvas.note_below(f"dotted: perfect; dashed: threshold; mean distance {error:.3f}")
    return canvas.png()


def _figures(canvas: Canvas, axes: Any, low: float) -> None:
    """Numbers from `low` to 1 at the vertical axis."""
    marks = [mark / 10 for mark in range(11) if mark / 10 >= low]
    axes.set_ylim(low, 1.02)
    axes.set_yticks(marks, labels=[f"{mark:g}" for mark in marks], fontproperties=canvas.font(NOTE_SIZE))
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
