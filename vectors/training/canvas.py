"""The canvas of a plot: matplotlib's figure, with texts that are drawn literally and fit their space.

It uses matplotlib's objects (never pyplot), so plots share no state, and matplotlib's own font, so they look the same
everywhere.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vectors.errors import MissingDependency

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOTS_PER_INCH = 100
WIDTH = 8.0
"""Inches."""

TITLE_SIZE = 12.0
"""Points, like all text sizes."""

TEXT_SIZE = 9.5
NOTE_SIZE = 8.5

LABEL_WIDTH = 2.3
"""Inches for the label of a row."""


class LabelledInterval(Protocol):
    """A labelled interval, such as `vectors.training.plots.Bar`."""

    @property
    def label(self) -> str: ...

    @property
    def low(self) -> float: ...

    @property
    def high(self) -> float: ...


class Canvas:
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

    def font(self, size: float = TEXT_SIZE) -> Any:
        """matplotlib's own font, whatever the machine's fonts and settings."""
        from matplotlib.font_manager import FontProperties

        return FontProperties(fname=str(self._font_file), size=size)

    def axes(self, title: str) -> Axes:
        self.figure.suptitle(
            self._fit(title, WIDTH - 0.4, TITLE_SIZE), fontproperties=self.font(TITLE_SIZE), parse_math=False
        )
        axes = self.figure.add_subplot()
        axes.set_axisbelow(True)
        return axes

    def text(
        self,
        axes: Axes,
        x: float,
        y: float,
        text: str,
        *,
        size: float = TEXT_SIZE,
        is_inside: bool = False,
        **style: Any,
    ) -> None:
        """A text; no room is made around the axes for one that `is_inside` them, which is slow with hundreds."""
        drawn = axes.text(x, y, text, fontproperties=self.font(size), va="center_baseline", parse_math=False, **style)
        drawn.set_in_layout(not is_inside)

    def axis_labels(self, axes: Axes, horizontal: str, vertical: str) -> None:
        axes.set_xlabel(self._fit(horizontal, 6.0, TEXT_SIZE), fontproperties=self.font(), parse_math=False)
        axes.set_ylabel(self._fit(vertical, 6.0, TEXT_SIZE), fontproperties=self.font(), parse_math=False)

    def note_below(self, text: str) -> None:
        """A line of text at the lower edge of the plot."""
        self.figure.supxlabel(text, fontproperties=self.font(NOTE_SIZE), color="#444444", parse_math=False)

    def ticks(self, axes: Axes, axis: str, labels: Sequence[str], spacing: float, room: float) -> None:
        """Labels at 0, 1, …, which are `spacing` inches apart, skipping some so that each has `room` inches."""
        step = max(1, math.ceil(room / spacing))
        place = axes.set_xticks if axis == "x" else axes.set_yticks
        place(range(0, len(labels), step), labels=labels[::step], fontproperties=self.font(NOTE_SIZE))

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
        from matplotlib.colors import Normalize

        mesh = axes.pcolormesh(
            np.arange(cells.shape[1] + 1) - 0.5,
            np.arange(cells.shape[0] + 1) - 0.5,
            np.ma.masked_invalid(cells),
            cmap=colormaps["RdBu"],
            # not CenteredNorm, whose colour bar transforms each mark by itself
            norm=Normalize(middle - span, middle + span),
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

    def intervals(self, axes: Axes, bars: Sequence[LabelledInterval], colours: Sequence[str]) -> None:
        """A horizontal line with ends for each bar, at 0, 1, …"""
        rows = range(len(bars))
        lows, highs = [bar.low for bar in bars], [bar.high for bar in bars]
        axes.hlines(rows, lows, highs, colors=colours, linewidth=1.6, zorder=5, clip_on=False)
        for ends in (lows, highs):
            axes.scatter(ends, rows, color=colours, marker="|", s=60, linewidth=1.6, zorder=5, clip_on=False)

    def rows(
        self, axes: Axes, bars: Sequence[LabelledInterval], values: Sequence[str], width: float = LABEL_WIDTH
    ) -> None:
        """Labels of at most `width` inches at the left and figures at the right of rows 0, 1, … from the top."""
        labels = [self._fit(bar.label, width, TEXT_SIZE) for bar in bars]
        axes.set_yticks(range(len(bars)), labels=labels, fontproperties=self.font(), parse_math=False)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(bars) - 0.4, -0.6)
        axes.grid(axis="x", color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        for row, value in enumerate(values):
            self.text(axes, 1.02, row, value, size=NOTE_SIZE, ha="left", transform=axes.get_yaxis_transform())

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
