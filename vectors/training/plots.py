"""Plots of a report, as PNG bytes.

matplotlib comes with `tiller[train]`; without it, each function raises `MissingDependency`. Equal input gives equal
bytes. Plots are 8 inches wide at 100 dots per inch and as high as their content needs. Colours are blue for better and
red for worse, which colour-blind readers can tell apart. Titles and labels come from users: they are shortened to fit,
drawn literally, and characters that the font does not have become □. Shares are given from 0 to 1 and shown in percent.
Invalid input raises `ValueError`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vectors.training.canvas import LABEL_WIDTH, NOTE_SIZE, Canvas

SCALE_LABEL = "scale (× mean difference)"
RELATIVE_SCALE_LABEL = "scale (× mean ‖h‖ ÷ ‖v‖)"

MAX_ROWS = 500
"""The most bars in one plot, and the most layers and scales of a heat map."""

_BETTER = "#2166ac"
_WORSE = "#b2182b"
_UNDECIDED = "#6b6b6b"
_REFERENCE = "#8a5a00"

_SMALLEST_SPAN = 0.05  # the smallest difference from the baseline with full colour, so noise stays pale


@dataclass(frozen=True, slots=True)
class Bar:
    """A value with its interval under a label: a share for `accuracy_bars`, a difference of shares for `effects`."""

    label: str
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """The accuracy, a share with its interval, after training on `num_items` items (at least 1)."""

    num_items: int
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class SlopeLine:
    """A line through a curve: the accuracy at one item, and what a doubling of the items adds, with its error."""

    intercept: float
    per_doubling: float
    standard_error: float


class Interval(Protocol):
    """A value between two ends, such as `vectors.training.statistics.Accuracy`."""

    @property
    def value(self) -> float: ...

    @property
    def low(self) -> float: ...

    @property
    def high(self) -> float: ...


def heat_map(
    title: str,
    layers: Sequence[int],
    scales: Sequence[float],
    accuracy: ArrayLike,
    baseline: float,
    chosen: tuple[int, float] | None = None,
    *,
    scale_label: str = SCALE_LABEL,
    at_most: ArrayLike | None = None,
) -> bytes:
    """The accuracies `[layers, scales]` of a search: blue where steering helps, red where it harms, hatched where NaN.

    White is `baseline`, the accuracy without steering. `chosen`, a layer and a scale of the grid, is outlined.
    Layers go up and scales to the right, whatever their order here; cells with enough room show percentages. `at_most`
    `[layers, scales]`: the most that accuracies can be that are not known, NaN where nothing is.
    """
    grid = np.asarray(accuracy, dtype=np.float64)
    _check_rows(layers)
    _check_rows(scales)
    if grid.shape != (len(layers), len(scales)):
        raise ValueError(f"accuracy: expected shape [{len(layers)}, {len(scales)}], got {list(grid.shape)}")
    if not bool((np.isnan(grid) | (grid >= 0.0) & (grid <= 1.0)).all()) or not 0.0 <= baseline <= 1.0:
        raise ValueError("expected accuracies and a baseline from 0 to 1, or NaN for accuracies not tried")
    if chosen is not None and (chosen[0] not in layers or chosen[1] not in scales):
        raise ValueError(f"chosen: layer {chosen[0]} at scale {chosen[1]:g} is not in the grid")
    if not all(math.isfinite(scale) for scale in scales):
        raise ValueError("expected finite scales")
    note = f"white: unsteered, {_percent(baseline)}"
    if chosen is not None:
        value = float(grid[list(layers).index(chosen[0]), list(scales).index(chosen[1])])
        note += f"; outlined: layer {chosen[0]} at scale {chosen[1]:g}, {_percent(value)}"
    reading = _Reading("accuracy (%)", baseline, 0.0, 1.0, "")
    most = np.full_like(grid, np.nan) if at_most is None else np.asarray(at_most, dtype=np.float64)
    if most.shape != grid.shape:
        raise ValueError(f"at_most: expected shape {list(grid.shape)}, got {list(most.shape)}")
    return _layer_map(title, layers, scales, grid, chosen, reading, note, scale_label, most)


def gain_map(title: str, cells: Sequence[Mapping[str, Any]], *, scale_label: str = SCALE_LABEL) -> bytes:
    """The mean gains of several searches over their baselines, in percentage points, as `heat_map` shows accuracies.

    A cell has a `layer`, a `scale`, a `gain` of -1 to 1 and a `standard_error` or None. White is no gain. The best is
    outlined, and named with its standard error.
    """
    layers, scales = sorted({cell["layer"] for cell in cells}), sorted({cell["scale"] for cell in cells})
    _check_rows(cells)
    if not all(-1.0 <= cell["gain"] <= 1.0 for cell in cells):
        raise ValueError("expected gains from -1 to 1")
    grid = np.full((len(layers), len(scales)), np.nan)
    for cell in cells:
        grid[layers.index(cell["layer"]), scales.index(cell["scale"])] = cell["gain"]
    best = max(cells, key=lambda cell: float(cell["gain"]))
    error = best["standard_error"]
    spread = "" if error is None else f" (standard error {100 * error:.1f})"
    place = (best["layer"], best["scale"])
    note = f"white: no gain; outlined: layer {place[0]} at scale {place[1]:g}, {100 * best['gain']:+.1f} points{spread}"
    reading = _Reading("gain (percentage points)", 0.0, -1.0, 1.0, "+")
    return _layer_map(title, layers, scales, grid, place, reading, note, scale_label, np.full_like(grid, np.nan))


@dataclass(frozen=True, slots=True)
class _Reading:
    """What the values of a map are: their name, the white one, the smallest and largest possible, and their sign."""

    label: str
    white: float
    smallest: float
    largest: float
    sign: str


def _layer_map(
    title: str,
    layers: Sequence[int],
    scales: Sequence[float],
    grid: NDArray[np.float64],
    outlined: tuple[int, float] | None,
    reading: _Reading,
    note: str,
    scale_label: str,
    at_most: NDArray[np.float64],
) -> bytes:
    upwards = sorted(range(len(layers)), key=lambda row: layers[row])
    rightwards = sorted(range(len(scales)), key=lambda column: scales[column])
    cells, most = (each[np.ix_(upwards, rightwards)] for each in (grid, at_most))
    white = reading.white

    row_height = min(0.3, 24.0 / len(layers))
    column_width = 6.1 / len(scales)
    canvas = Canvas(max(2.6, 1.5 + row_height * len(layers)))
    axes = canvas.axes(title)
    # seen where the mesh has no cell
    axes.patch.set(facecolor="#e4e4e4", edgecolor="#b4b4b4", hatch="////", linewidth=0)
    span = _SMALLEST_SPAN
    if not bool(np.isnan(cells).all()):
        span = max(span, float(np.nanmax(np.abs(cells - white))))
    mesh = canvas.mesh(axes, cells, white, span, gaps=min(row_height, column_width) >= 0.08)

    scale_texts = [f"{scales[column]:g}" for column in rightwards]
    canvas.ticks(axes, "x", scale_texts, column_width, 0.1 + 0.08 * max(len(text) for text in scale_texts))
    canvas.ticks(axes, "y", [str(layers[row]) for row in upwards], row_height, 0.15)
    axes.tick_params(length=2)
    canvas.axis_labels(axes, scale_label, "layer (0-based block)")

    bar = canvas.figure.colorbar(mesh, ax=axes, fraction=0.04, pad=0.015, aspect=25)
    low, high = max(reading.smallest, white - span), min(reading.largest, white + span)
    bar.ax.set_ylim(low, high)
    marks = [low, (low + white) / 2, (white + high) / 2, high]
    marks = [white, *(mark for mark in marks if abs(mark - white) >= 0.1 * (high - low))]
    bar.set_ticks(marks, labels=[f"{100 * mark:.1f}" for mark in marks], fontproperties=canvas.font())
    bar.ax.axhline(white, color="black", linewidth=1.0)
    bar.set_label(reading.label, fontproperties=canvas.font())

    digits = 1 if column_width >= 0.4 else 0
    if column_width >= 0.26 and row_height >= 0.15:
        for (row, column), value in np.ndenumerate(cells):
            if not math.isnan(value):
                text = f"{100 * value:{reading.sign}.{digits}f}"
                colour = "white" if abs(value - white) > 0.62 * span else "black"
                canvas.text(axes, column, row, text, size=NOTE_SIZE - 1, is_inside=True, color=colour, ha="center")
            elif not math.isnan(most[row, column]):
                text = f"≤{100 * most[row, column]:.0f}"
                blank = {"facecolor": "#e4e4e4", "edgecolor": "none", "pad": 0.6}
                canvas.text(
                    axes, column, row, text, size=NOTE_SIZE - 1, is_inside=True, color="#444", ha="center", bbox=blank
                )
    if outlined is not None:
        column = [scales[index] for index in rightwards].index(outlined[1])
        canvas.outline(axes, column, [layers[index] for index in upwards].index(outlined[0]))
    if bool((np.isnan(cells) & np.isnan(most)).any()):
        note += "; hatched: not tried"
    if not bool(np.isnan(most).all()):
        note += "; ≤: at most, left out by the race"
    canvas.note_below(note)
    return canvas.png()


def accuracy_bars(title: str, bars: Sequence[Bar], chance: float | None = None) -> bytes:
    """Accuracies as horizontal bars from 0 to 100 %, each with its interval and figures; first bar on top.

    `chance`: the accuracy of guessing, drawn as a line.
    """
    _check_rows(bars)
    _check_bounds(bars, 0.0)
    if chance is not None and not 0.0 <= chance <= 1.0:
        raise ValueError("expected chance from 0 to 1")
    canvas = Canvas(1.3 + 0.34 * len(bars))
    axes = canvas.axes(title)
    rows = range(len(bars))
    axes.barh(rows, [bar.value for bar in bars], height=0.66, color="#7fadd4", zorder=2)
    canvas.intervals(axes, bars, ["black"] * len(bars))
    if chance is not None:
        axes.axvline(chance, color=_REFERENCE, linestyle="--", linewidth=1.2, zorder=4)
    canvas.rows(axes, bars, [f"{100 * bar.value:.1f}  [{100 * bar.low:.1f}, {100 * bar.high:.1f}]" for bar in bars])
    axes.set_xlim(0.0, 1.0)
    canvas.percent_axis(axes, "x")
    canvas.axis_labels(axes, "accuracy (%), with 95 % interval", "")
    if chance is not None:
        canvas.note_below(f"dashed: guessing, {_percent(chance)}")
    return canvas.png()


def size_curve(title: str, points: Sequence[CurvePoint], baseline: Interval, line: SlopeLine | None = None) -> bytes:
    """Accuracy by the number of training items (logarithmic), with the unsteered `baseline` as a band.

    `line`, where it is given, is dotted, and its slope is named.
    """
    _check_rows(points)
    _check_bounds([*points, baseline], 0.0)
    if any(point.num_items < 1 for point in points):
        raise ValueError("expected at least one training item for each point")
    ordered = sorted(points, key=lambda point: point.num_items)
    sizes = [point.num_items for point in ordered]
    canvas = Canvas(4.6)
    axes = canvas.axes(title)
    axes.axhspan(baseline.low, baseline.high, color=_REFERENCE, alpha=0.15, linewidth=0)
    axes.axhline(baseline.value, color=_REFERENCE, linestyle="--", linewidth=1.2)
    axes.vlines(
        sizes, [point.low for point in ordered], [point.high for point in ordered], color=_BETTER, linewidth=1.4
    )
    axes.plot(sizes, [point.value for point in ordered], color=_BETTER, marker="o", markersize=5, linewidth=1.8)

    if line is not None:
        heights = [line.intercept + line.per_doubling * math.log2(size) for size in (sizes[0], sizes[-1])]
        axes.plot([sizes[0], sizes[-1]], heights, color=_UNDECIDED, linestyle=":", linewidth=1.6)

    axes.set_xscale("log")
    first, last = sizes[0] / 1.25, sizes[-1] * 1.25
    axes.set_xlim(first, last)
    inches = 6.6 / math.log(last / first)
    shown: list[int] = []
    for size in sizes:
        room = 0.25 + 0.09 * len(str(size))
        if not shown or math.log(size / shown[-1]) * inches >= room:
            shown.append(size)
    axes.set_xticks(shown, labels=[str(size) for size in shown], fontproperties=canvas.font())
    axes.set_xticks([], minor=True)
    ends = [end for interval in [*ordered, baseline] for end in (interval.low, interval.high, interval.value)]
    margin = max(0.02, 0.08 * (max(ends) - min(ends)))
    axes.set_ylim(max(-0.01, min(ends) - margin), min(1.01, max(ends) + margin))
    canvas.percent_axis(axes, "y")
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    canvas.axis_labels(axes, "training items (logarithmic)", "accuracy (%), with 95 % interval")
    interval_text = f"[{100 * baseline.low:.1f}, {100 * baseline.high:.1f}]"
    note = f"dashed: unsteered, {_percent(baseline.value)} {interval_text}"
    if line is not None:
        slope = f"{100 * line.per_doubling:+.1f} points per doubling (standard error {100 * line.standard_error:.1f})"
        note += f"; dotted: {slope}"
    canvas.note_below(note)
    return canvas.png()


def effects(title: str, rows: Sequence[Bar], *, label_width: float = LABEL_WIDTH) -> bytes:
    """A forest plot of differences of accuracies (-1 to 1), shown in percentage points around 0; first row on top.

    Labels get `label_width` inches. Blue if the whole interval is above 0, red if below, grey if it contains 0.
    """
    _check_rows(rows)
    _check_bounds(rows, -1.0)
    canvas = Canvas(1.3 + 0.3 * len(rows))
    axes = canvas.axes(title)
    colours = [_BETTER if row.low > 0 else _WORSE if row.high < 0 else _UNDECIDED for row in rows]
    axes.axvline(0.0, color="black", linewidth=1.0, zorder=1)
    canvas.intervals(axes, rows, colours)
    axes.scatter([row.value for row in rows], range(len(rows)), color=colours, marker="s", s=30, zorder=5)
    values = [f"{100 * row.value:+.1f}  [{100 * row.low:+.1f}, {100 * row.high:+.1f}]" for row in rows]
    canvas.rows(axes, rows, values, label_width)
    ends = [end for row in rows for end in (row.low, row.high, row.value)]
    margin = max(0.01, 0.05 * (max(ends) - min(ends)))
    axes.set_xlim(min(0.0, *ends) - margin, max(0.0, *ends) + margin)
    canvas.percent_axis(axes, "x")
    canvas.axis_labels(axes, "gain in accuracy (percentage points), with 95 % interval", "")
    return canvas.png()


def _percent(share: float) -> str:
    return "not tried" if math.isnan(share) else f"{100 * share:.1f} %"


def _check_rows(rows: Sequence[object]) -> None:
    if not 0 < len(rows) <= MAX_ROWS:
        raise ValueError(f"expected 1 to {MAX_ROWS} rows, got {len(rows)}")


def _check_bounds(intervals: Sequence[Interval], smallest: float) -> None:
    ends = (end for interval in intervals for end in (interval.value, interval.low, interval.high))
    # written so that NaN fails too
    if not all(smallest <= end <= 1.0 for end in ends):
        raise ValueError(f"expected values and ends of intervals from {smallest:g} to 1")
