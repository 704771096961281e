"""Plots of a report, as PNG bytes.

They use matplotlib's objects (never pyplot), so plots share no state, and matplotlib's own font, so they look the same
everywhere. It comes with `tiller[train]`; without it, each function raises `MissingDependency`. Equal input gives equal
bytes. Plots are 8 inches wide at 100 dots per inch and as high as their content needs. Colours are blue for better and
red for worse, which colour-blind readers can tell apart. Titles and labels come from users: they are shortened to fit,
drawn literally, and characters that the font does not have become □. Shares are given from 0 to 1 and shown in percent.
Invalid input raises `ValueError`.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vectors.errors import MissingDependency

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOTS_PER_INCH = 100
WIDTH = 8.0
"""Inches."""

MAX_ROWS = 500
"""The most bars in one plot, and the most layers and scales of a heat map."""

_TITLE_SIZE = 12.0  # points, like all text sizes
_TEXT_SIZE = 9.5
_NOTE_SIZE = 8.5

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
    scale_label: str = "scale (× mean difference)",
) -> bytes:
    """The accuracies `[layers, scales]` of a sweep: blue where steering helps, red where it harms, hatched where NaN.

    White is `baseline`, the accuracy without steering. `chosen`, a layer and a scale of the grid, is outlined.
    Layers go up and scales to the right, whatever their order here; cells with enough room show percentages.
    """
    grid = np.asarray(accuracy, dtype=np.float64)
    _check_rows(layers)
    _check_rows(scales)
    if grid.shape != (len(layers), len(scales)):
        raise ValueError(f"accuracy: expected shape [{len(layers)}, {len(scales)}], got {list(grid.shape)}")
    if not bool((np.isnan(grid) | (grid >= 0.0) & (grid <= 1.0)).all()) or not 0.0 <= baseline <= 1.0:
        raise ValueError("expected accuracies and a baseline from 0 to 1, or NaN for accuracies not tried")
    if not all(math.isfinite(scale) for scale in scales):
        raise ValueError("expected finite scales")
    if chosen is not None and (chosen[0] not in layers or chosen[1] not in scales):
        raise ValueError(f"chosen: layer {chosen[0]} at scale {chosen[1]:g} is not in the grid")
    upwards = sorted(range(len(layers)), key=lambda row: layers[row])
    rightwards = sorted(range(len(scales)), key=lambda column: scales[column])
    cells = grid[np.ix_(upwards, rightwards)]

    row_height = min(0.3, 24.0 / len(layers))
    column_width = 6.1 / len(scales)
    canvas = _Canvas(max(2.6, 1.5 + row_height * len(layers)))
    axes = canvas.axes(title)
    # seen where the mesh has no cell
    axes.patch.set(facecolor="#e4e4e4", edgecolor="#b4b4b4", hatch="////", linewidth=0)
    span = _SMALLEST_SPAN
    if not bool(np.isnan(cells).all()):
        span = max(span, float(np.nanmax(np.abs(cells - baseline))))
    mesh = canvas.mesh(axes, cells, baseline, span, gaps=min(row_height, column_width) >= 0.08)

    scale_texts = [f"{scales[column]:g}" for column in rightwards]
    canvas.ticks(axes, "x", scale_texts, column_width, 0.1 + 0.08 * max(len(text) for text in scale_texts))
    canvas.ticks(axes, "y", [str(layers[row]) for row in upwards], row_height, 0.15)
    axes.tick_params(length=2)
    canvas.axis_labels(axes, scale_label, "layer (0-based block)")

    bar = canvas.figure.colorbar(mesh, ax=axes, fraction=0.04, pad=0.015, aspect=25)
    low, high = max(0.0, baseline - span), min(1.0, baseline + span)
    bar.ax.set_ylim(low, high)
    marks = [low, (low + baseline) / 2, (baseline + high) / 2, high]
    marks = [baseline, *(mark for mark in marks if abs(mark - baseline) >= 0.1 * (high - low))]
    bar.set_ticks(marks, labels=[f"{100 * mark:.1f}" for mark in marks], fontproperties=canvas.font())
    bar.ax.axhline(baseline, color="black", linewidth=1.0)
    bar.set_label("accuracy (%)", fontproperties=canvas.font())

    digits = 1 if column_width >= 0.4 else 0
    if column_width >= 0.26 and row_height >= 0.15:
        for (row, column), value in np.ndenumerate(cells):
            if not math.isnan(value):
                text = f"{100 * value:.{digits}f}"
                colour = "white" if abs(value - baseline) > 0.62 * span else "black"
                canvas.text(axes, column, row, text, size=_NOTE_SIZE - 1, color=colour, ha="center")
    note = f"white: unsteered, {_percent(baseline)}"
    if chosen is not None:
        column = [scales[index] for index in rightwards].index(chosen[1])
        row = [layers[index] for index in upwards].index(chosen[0])
        canvas.outline(axes, column, row)
        note += f"; outlined: layer {chosen[0]} at scale {chosen[1]:g}, {_percent(cells[row, column])}"
    if bool(np.isnan(cells).any()):
        note += "; hatched: not tried"
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
    canvas = _Canvas(1.3 + 0.34 * len(bars))
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


def size_curve(title: str, points: Sequence[CurvePoint], baseline: Interval) -> bytes:
    """Accuracy by the number of training items (logarithmic), with the unsteered `baseline` as a band."""
    _check_rows(points)
    _check_bounds([*points, baseline], 0.0)
    if any(point.num_items < 1 for point in points):
        raise ValueError("expected at least one training item for each point")
    ordered = sorted(points, key=lambda point: point.num_items)
    sizes = [point.num_items for point in ordered]
    canvas = _Canvas(4.6)
    axes = canvas.axes(title)
    axes.axhspan(baseline.low, baseline.high, color=_REFERENCE, alpha=0.15, linewidth=0)
    axes.axhline(baseline.value, color=_REFERENCE, linestyle="--", linewidth=1.2)
    axes.vlines(
        sizes, [point.low for point in ordered], [point.high for point in ordered], color=_BETTER, linewidth=1.4
    )
    axes.plot(sizes, [point.value for point in ordered], color=_BETTER, marker="o", markersize=5, linewidth=1.8)

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
    canvas.note_below(f"dashed: unsteered, {_percent(baseline.value)} {interval_text}")
    return canvas.png()


def effects(title: str, rows: Sequence[Bar]) -> bytes:
    """A forest plot of differences of accuracies (-1 to 1), shown in percentage points around 0; first row on top.

    Blue if the whole interval is above 0, red if below, grey if it contains 0.
    """
    _check_rows(rows)
    _check_bounds(rows, -1.0)
    canvas = _Canvas(1.3 + 0.3 * len(rows))
    axes = canvas.axes(title)
    colours = [_BETTER if row.low > 0 else _WORSE if row.high < 0 else _UNDECIDED for row in rows]
    axes.axvline(0.0, color="black", linewidth=1.0, zorder=1)
    canvas.intervals(axes, rows, colours)
    axes.scatter([row.value for row in rows], range(len(rows)), color=colours, marker="s", s=30, zorder=5)
    canvas.rows(axes, rows, [f"{100 * row.value:+.1f}  [{100 * row.low:+.1f}, {100 * row.high:+.1f}]" for row in rows])
    ends = [end for row in rows for end in (row.low, row.high, row.value)]
    margin = max(0.01, 0.05 * (max(ends) - min(ends)))
    axes.set_xlim(min(0.0, *ends) - margin, max(0.0, *ends) + margin)
    canvas.percent_axis(axes, "x")
    canvas.axis_labels(axes, "gain in accuracy (percentage points), with 95 % interval", "")
    return canvas.png()


class _Canvas:
    """One plot: matplotlib's figure, and texts that are drawn literally and fit their space."""

    figure: Figure

    def __init__(self, height: float) -> None:
        try:
            import matplotlib
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
            from matplotlib.ft2font import FT2Font
            from matplotlib.layout_engine import ConstrainedLayoutEngine
        except ImportError as error:
            raise MissingDependency("plots need matplotlib: pip install 'tiller[train]'") from error
        self._font_file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
        self._glyphs = FT2Font(str(self._font_file))
        self._known = frozenset(self._glyphs.get_charmap())
        layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.07)  # inches
        self.figure = Figure(figsize=(WIDTH, height), dpi=DOTS_PER_INCH, layout=layout, facecolor="white")
        # savefig is untyped
        self._canvas: Any = FigureCanvasAgg(self.figure)

    def font(self, size: float = _TEXT_SIZE) -> Any:
        """matplotlib's own font, whatever the machine's fonts and settings."""
        from matplotlib.font_manager import FontProperties

        return FontProperties(fname=str(self._font_file), size=size)

    def axes(self, title: str) -> Axes:
        self.figure.suptitle(
            self._fit(title, WIDTH - 0.4, _TITLE_SIZE), fontproperties=self.font(_TITLE_SIZE), parse_math=False
        )
        axes = self.figure.add_subplot()
        axes.set_axisbelow(True)
        return axes

    def text(self, axes: Axes, x: float, y: float, text: str, *, size: float = _TEXT_SIZE, **style: Any) -> None:
        axes.text(x, y, text, fontproperties=self.font(size), va="center_baseline", parse_math=False, **style)

    def axis_labels(self, axes: Axes, horizontal: str, vertical: str) -> None:
        axes.set_xlabel(self._fit(horizontal, 6.0, _TEXT_SIZE), fontproperties=self.font(), parse_math=False)
        axes.set_ylabel(self._fit(vertical, 6.0, _TEXT_SIZE), fontproperties=self.font(), parse_math=False)

    def note_below(self, text: str) -> None:
        """A line of text at the lower edge of the plot."""
        self.figure.supxlabel(text, fontproperties=self.font(_NOTE_SIZE), color="#444444", parse_math=False)

    def ticks(self, axes: Axes, axis: str, labels: Sequence[str], spacing: float, room: float) -> None:
        """Labels at 0, 1, …, which are `spacing` inches apart, skipping some so that each has `room` inches."""
        step = max(1, math.ceil(room / spacing))
        place = axes.set_xticks if axis == "x" else axes.set_yticks
        place(range(0, len(labels), step), labels=labels[::step], fontproperties=self.font(_NOTE_SIZE))

    def percent_axis(self, axes: Axes, axis: str) -> None:
        """Round ticks of shares, labelled in percent without a sign."""
        from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator

        low, high = axes.get_xlim() if axis == "x" else axes.get_ylim()
        # fixed here, since the default formatter may use math text
        chosen = [
            mark
            for mark in MaxNLocator(9, steps=[1, 2, 5, 10]).tick_values(100 * low, 100 * high)
            if low <= mark / 100 <= high
        ]
        side = axes.xaxis if axis == "x" else axes.yaxis
        side.set_major_locator(FixedLocator([mark / 100 for mark in chosen]))
        side.set_major_formatter(FixedFormatter([f"{mark:g}" for mark in chosen]))
        for label in side.get_ticklabels():
            label.set_fontproperties(self.font())

    def mesh(self, axes: Axes, cells: NDArray[np.float64], middle: float, span: float, *, gaps: bool) -> Any:
        """Coloured cells around 0, 1, … of both axes, none where NaN; `gaps`: with white lines between them."""
        from matplotlib import colormaps
        from matplotlib.colors import CenteredNorm

        mesh = axes.pcolormesh(
            np.arange(cells.shape[1] + 1) - 0.5,
            np.arange(cells.shape[0] + 1) - 0.5,
            np.ma.masked_invalid(cells),
            cmap=colormaps["RdBu"],
            norm=CenteredNorm(middle, span),
            edgecolors="white" if gaps else "none",
            linewidth=0.5 if gaps else 0.0,
        )
        axes.set_xlim(-0.5, cells.shape[1] - 0.5)
        axes.set_ylim(-0.5, cells.shape[0] - 0.5)
        return mesh

    def outline(self, axes: Axes, column: int, row: int) -> None:
        from matplotlib.patches import Rectangle

        # black with a white outline is visible on every colour
        for colour, width in (("white", 5.0), ("black", 2.4)):
            corner = (column - 0.5, row - 0.5)
            axes.add_patch(
                Rectangle(corner, 1, 1, fill=False, edgecolor=colour, linewidth=width, zorder=5, clip_on=False)
            )

    def intervals(self, axes: Axes, bars: Sequence[Bar], colours: Sequence[str]) -> None:
        """A horizontal line with ends for each bar, at 0, 1, …"""
        rows = range(len(bars))
        lows, highs = [bar.low for bar in bars], [bar.high for bar in bars]
        axes.hlines(rows, lows, highs, colors=colours, linewidth=1.6, zorder=5, clip_on=False)
        for ends in (lows, highs):
            axes.scatter(ends, rows, color=colours, marker="|", s=60, linewidth=1.6, zorder=5, clip_on=False)

    def rows(self, axes: Axes, bars: Sequence[Bar], values: Sequence[str]) -> None:
        """Labels at the left and figures at the right of rows 0, 1, … from the top."""
        labels = [self._fit(bar.label, 2.3, _TEXT_SIZE) for bar in bars]
        axes.set_yticks(range(len(bars)), labels=labels, fontproperties=self.font(), parse_math=False)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(bars) - 0.4, -0.6)
        axes.grid(axis="x", color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        for row, value in enumerate(values):
            self.text(axes, 1.02, row, value, size=_NOTE_SIZE, ha="left", transform=axes.get_yaxis_transform())

    def png(self) -> bytes:
        buffer = io.BytesIO()
        # without the name and version of the software
        self._canvas.print_png(buffer, metadata={"Software": None})
        return buffer.getvalue()

    def _fit(self, text: str, inches: float, size: float) -> str:
        """One line of the text, in characters that the font has, cut to fit."""
        line = " ".join(text[:1000].split())
        line = "".join(
            character if ord(character) in self._known else "□" for character in line if character.isprintable()
        )
        self._glyphs.set_size(size, DOTS_PER_INCH)
        room = inches * DOTS_PER_INCH
        kept = ""
        for character in line:
            # characters advance by whole dots
            room -= math.ceil(self._glyphs.load_char(ord(character)).linearHoriAdvance / 65536)
            kept += character
            if room < 0:
                return kept[:-3].rstrip() + "…"
        return kept


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
