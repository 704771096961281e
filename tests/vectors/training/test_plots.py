"""Pictures of a report: that they are PNG, the same each time, and hold whatever texts and figures they are given."""

from __future__ import annotations

import functools
import io
import math
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vectors.errors import MissingDependency
from vectors.training.plots import (
    MAX_ROWS,
    Bar,
    CurvePoint,
    SlopeLine,
    accuracy_bars,
    effects,
    gain_map,
    heat_map,
    size_curve,
)
from vectors.training.statistics import Accuracy

LAYERS = (8, 11, 13)
SCALES = (0.25, 1.0, 4.0, 16.0)
GRID = np.linspace(0.2, 0.8, 12).reshape(3, 4)
BARS = (Bar("unsteered", 0.5, 0.4, 0.6), Bar("steered", 0.75, 0.65, 0.83))
POINTS = (CurvePoint(12, 0.5, 0.4, 0.6), CurvePoint(120, 0.6, 0.55, 0.65), CurvePoint(1200, 0.7, 0.66, 0.74))
BASELINE = Accuracy(0.5, 0.45, 0.55, 400)

PICTURES: dict[str, Callable[[str], bytes]] = {
    "heat_map": lambda text: heat_map(text, LAYERS, SCALES, GRID, 0.5, (11, 4.0), scale_label=text),
    "gain_map": lambda text: gain_map(text, gains([0.1, -0.2, 0.05]), scale_label=text),
    "accuracy_bars": lambda text: accuracy_bars(text, [Bar(text, 0.5, 0.4, 0.6), *BARS], 0.25),
    "size_curve": lambda text: size_curve(text, POINTS, BASELINE),
    "effects": lambda text: effects(text, [Bar(text, -0.1, -0.2, 0.05), *BARS]),
}

LONG = ("W" * 5000, "i" * 5000, "□ " * 500)
HOSTILE = {
    "mathematics": r"$\frac{",
    "closed mathematics": r"$\undefined{x}$ \$ $$",
    "characters": "1\n2\r\n\t3\x00\x1b[31m e\u0301 Z̴̢̛a͝ \u202eab\u202c \ud800 \U0010ffff\ufffe 👩‍👩‍👧 🇪🇺",
    "scripts": "偏见与 تحيز דת धर्म ศาสนา",
    "nothing": "",
    "blank": " \n ",
}


@functools.cache
def titled(name: str) -> bytes:
    """The picture with a plain text, drawn once."""
    return PICTURES[name]("title")


def size_of(png: bytes) -> tuple[int, int]:
    """Width and height in pixels; the signature and the end are those of a whole PNG."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR")
    assert png.endswith(b"IEND\xaeB`\x82")
    width, height = struct.unpack(">II", png[16:24])
    return width, height


def pixels(png: bytes) -> np.ndarray[Any, Any]:
    """`[height, width, 3]`, shares of red, green and blue."""
    from matplotlib.image import imread

    return np.asarray(imread(io.BytesIO(png), format="png"))[:, :, :3]


def count(png: bytes, colour: Callable[[Any, Any, Any], Any]) -> int:
    red, green, blue = np.moveaxis(pixels(png), 2, 0)
    return int(colour(red, green, blue).sum())


def reds(png: bytes) -> int:
    return count(png, lambda red, green, blue: red - blue > 0.25)


def blues(png: bytes) -> int:
    return count(png, lambda red, green, blue: blue - red > 0.25)


@pytest.mark.parametrize("name", PICTURES)
class TestEvery:
    def test_is_a_png_of_the_width_and_not_blank(self, name: str) -> None:
        png = titled(name)
        width, height = size_of(png)
        assert width == 800
        assert 150 <= height <= 800
        assert len(np.unique(pixels(png).reshape(-1, 3), axis=0)) > 20

    def test_is_the_same_each_time(self, name: str) -> None:
        first = titled(name)
        assert PICTURES[name]("other") != first
        assert PICTURES[name]("title") == first

    def test_holds_no_date_or_version(self, name: str) -> None:
        png = titled(name)
        assert not [chunk for chunk in (b"tEXt", b"iTXt", b"zTXt", b"tIME") if chunk in png]

    @pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
    def test_draws_any_text_without_a_warning(self, name: str, text: str) -> None:
        assert size_of(PICTURES[name](text)) == size_of(titled(name))

    @pytest.mark.parametrize("text", LONG)
    def test_no_text_runs_out_of_the_picture(self, name: str, text: str) -> None:
        png = PICTURES[name](text)
        assert size_of(png) == size_of(titled(name))
        drawn = pixels(png)
        edges = np.concatenate([drawn[:, :4].reshape(-1, 3), drawn[:, -4:].reshape(-1, 3), drawn[-2:].reshape(-1, 3)])
        assert bool((edges == 1.0).all())

    def test_mathematics_is_drawn_as_it_is_written(self, name: str) -> None:
        assert PICTURES[name]("$x$") != PICTURES[name]("x")
        assert PICTURES[name](r"\alpha $\alpha$") != PICTURES[name]("α α")

    def test_needs_matplotlib(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        with pytest.raises(MissingDependency, match=r"tiller\[train\]"):
            PICTURES[name]("title")


class TestHeatMap:
    def test_shows_help_in_blue_and_harm_in_red(self) -> None:
        helped = heat_map("title", LAYERS, SCALES, np.full((3, 4), 0.9), 0.5)
        harmed = heat_map("title", LAYERS, SCALES, np.full((3, 4), 0.1), 0.5)
        assert blues(helped) > 80_000
        assert reds(helped) < 20_000  # the scale's lower half
        assert reds(harmed) > 80_000
        assert blues(harmed) < 20_000

    def test_noise_around_the_baseline_stays_pale(self) -> None:
        noise = heat_map("title", LAYERS, SCALES, np.full((3, 4), 0.502), 0.5)
        assert blues(noise) < 20_000
        assert reds(noise) < 20_000

    def test_outlines_the_chosen_cell(self) -> None:
        pictures = [heat_map("title", LAYERS, SCALES, GRID, 0.5, chosen) for chosen in (None, (8, 4.0), (13, 0.25))]
        assert len(set(pictures)) == 3

        def black(png: bytes) -> int:
            return count(png, lambda red, green, blue: red + green + blue < 0.1)

        assert min(black(pictures[1]), black(pictures[2])) > black(pictures[0]) + 500

    def test_cells_that_were_not_tried_are_grey(self) -> None:
        missing = GRID.copy()
        missing[1, 2] = missing[0, 0] = math.nan
        png = heat_map("title", LAYERS, SCALES, missing, 0.5, (11, 1.0))

        def grey(given: bytes) -> int:
            return count(given, lambda red, green, blue: (abs(red - 0.894) < 0.01) & (abs(blue - 0.894) < 0.01))

        assert grey(png) > grey(heat_map("title", LAYERS, SCALES, GRID, 0.5, (11, 1.0))) + 2000

    def test_nothing_was_tried(self) -> None:
        size_of(heat_map("title", LAYERS, SCALES, np.full((3, 4), math.nan), 0.5, (8, 1.0)))

    def test_order_given_does_not_matter(self) -> None:
        turned = heat_map("title", LAYERS[::-1], SCALES[::-1], GRID[::-1, ::-1], 0.5, (8, 4.0))
        assert turned == heat_map("title", LAYERS, SCALES, GRID, 0.5, (8, 4.0))

    @pytest.mark.parametrize("baseline", [0.0, 0.004, 0.996, 1.0])
    def test_baseline_at_the_ends(self, baseline: float) -> None:
        size_of(heat_map("title", LAYERS, SCALES, GRID, baseline, (8, 1.0)))

    @pytest.mark.parametrize("shape", [(1, 1), (1, 64), (80, 1), (80, 64)])
    def test_any_size(self, shape: tuple[int, int]) -> None:
        scales = [1e-6 + 0.37 * index for index in range(shape[1])]
        png = heat_map("title", range(shape[0]), scales, np.full(shape, 0.6), 0.5, (0, 1e-6))
        assert size_of(png)[1] <= 2600

    @pytest.mark.parametrize(
        ("grid", "baseline", "chosen", "message"),
        [
            (GRID.T, 0.5, None, r"expected shape \[3, 4\]"),
            (GRID * 100, 0.5, None, "from 0 to 1"),
            (GRID, 50.0, None, "from 0 to 1"),
            (GRID, math.nan, None, "from 0 to 1"),
            (np.full((3, 4), math.inf), 0.5, None, "from 0 to 1"),
            (GRID, 0.5, (9, 1.0), "layer 9 at scale 1"),
            (GRID, 0.5, (8, 3.0), "layer 8 at scale 3"),
        ],
    )
    def test_refuses(self, grid: Any, baseline: float, chosen: tuple[int, float] | None, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            heat_map("title", LAYERS, SCALES, grid, baseline, chosen)

    def test_refuses_an_infinite_scale(self) -> None:
        with pytest.raises(ValueError, match="expected finite scales"):
            heat_map("title", [1], [math.inf], [[0.5]], 0.5)


class TestGainMap:
    def test_shows_gains_in_blue_and_losses_in_red(self) -> None:
        gained, lost = gain_map("title", gains([0.3] * 12)), gain_map("title", gains([-0.3] * 12))
        assert blues(gained) > 80_000 > reds(gained)
        assert reds(lost) > 80_000 > blues(lost)

    def test_the_best_and_its_error_are_named(self) -> None:
        cells = gains([0.1, 0.3] + [0.0] * 10)
        changed = [dict(cell) for cell in cells]
        changed[1]["standard_error"] = 0.2
        unknown = [dict(cell, standard_error=None) for cell in cells]
        drawn = gain_map("title", cells)
        assert len({drawn, *(gain_map("title", one) for one in (changed, unknown))}) == 3
        changed = [dict(cell) for cell in cells]
        changed[0]["standard_error"] = 0.2
        assert gain_map("title", changed) == drawn

    def test_order_given_does_not_matter_and_cells_may_be_missing(self) -> None:
        cells = gains([index / 20 for index in range(12)])
        assert gain_map("title", cells) == gain_map("title", cells[::-1]) != gain_map("title", cells[1:])

    @pytest.mark.parametrize(
        ("cells", "message"), [([], "1 to 500 rows"), ([math.nan] * 12, "from -1"), ([30.0] * 12, "from -1")]
    )
    def test_refuses(self, cells: list[float], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            gain_map("title", gains(cells))


def gains(values: Sequence[float]) -> list[dict[str, Any]]:
    """Cells of three layers and four scales."""
    places = [(layer, scale) for layer in LAYERS for scale in SCALES]
    return [
        {"layer": layer, "scale": scale, "gain": gain, "standard_error": 0.01}
        for (layer, scale), gain in zip(places, values, strict=False)
    ]


class TestBarsAndEffects:
    def test_chance_is_drawn(self) -> None:
        assert accuracy_bars("title", BARS) != accuracy_bars("title", BARS, 0.25) != accuracy_bars("title", BARS, 0.5)

    def test_interval_is_drawn(self) -> None:
        wider = [Bar("unsteered", 0.5, 0.3, 0.6), BARS[1]]
        assert accuracy_bars("title", BARS) != accuracy_bars("title", wider)

    def test_grows_with_its_rows(self) -> None:
        heights = [size_of(draw("title", BARS * 20))[1] for draw in (accuracy_bars, effects)]
        assert min(heights) > 1200

    def test_extremes_and_intervals_without_width(self) -> None:
        accuracy_bars("title", [Bar("none", 0.0, 0.0, 0.0), Bar("all", 1.0, 1.0, 1.0)], 0.0)
        effects("title", [Bar("none", 0.0, 0.0, 0.0)])
        effects("title", [Bar("worst", -1.0, -1.0, -1.0), Bar("best", 1.0, 1.0, 1.0)])

    def test_effects_are_coloured_by_what_is_certain(self) -> None:
        better, worse = Bar("row", 0.1, 0.05, 0.15), Bar("row", -0.1, -0.15, -0.05)
        open_ended = Bar("row", 0.1, -0.05, 0.15)
        gained, lost, undecided = (effects("title", [row]) for row in (better, worse, open_ended))
        assert blues(gained) > 500 > reds(gained)
        assert reds(lost) > 500 > blues(lost)
        assert max(reds(undecided), blues(undecided)) == 0

    @pytest.mark.parametrize("bars", [[], [BARS[0]] * (MAX_ROWS + 1)])
    @pytest.mark.parametrize("draw", [accuracy_bars, effects])
    def test_refuses_no_rows_and_too_many(self, draw: Callable[..., bytes], bars: list[Bar]) -> None:
        with pytest.raises(ValueError, match="1 to 500 rows"):
            draw("title", bars)

    @pytest.mark.parametrize("value", [math.nan, math.inf, 50.0, -2.0])
    @pytest.mark.parametrize("draw", [accuracy_bars, effects])
    def test_refuses_what_is_no_share(self, draw: Callable[..., bytes], value: float) -> None:
        for bar in (Bar("b", value, 0.0, 1.0), Bar("b", 0.5, value, 1.0), Bar("b", 0.5, 0.0, value)):
            with pytest.raises(ValueError, match=r"from (0|-1) to 1"):
                draw("title", [bar])

    def test_refuses_an_impossible_chance(self) -> None:
        with pytest.raises(ValueError, match="chance"):
            accuracy_bars("title", BARS, 25.0)


class TestSizeCurve:
    def test_order_given_does_not_matter(self) -> None:
        assert size_curve("title", POINTS[::-1], BASELINE) == size_curve("title", POINTS, BASELINE)

    def test_slope_is_drawn_and_named(self) -> None:
        lines = [None, SlopeLine(0.4, 0.02, 0.01), SlopeLine(0.4, 0.03, 0.01), SlopeLine(0.4, 0.02, 0.02)]
        assert len({size_curve("title", POINTS, BASELINE, line) for line in lines}) == 4

    def test_baseline_is_drawn(self) -> None:
        assert size_curve("title", POINTS, Bar("", 0.5, 0.3, 0.7)) != size_curve("title", POINTS, BASELINE)

    @pytest.mark.parametrize(
        "sizes", [[1], [7, 7, 7], list(range(1, 200)), [100_000, 100_001], [1, 100_000], [4, 12, 36, 108]]
    )
    def test_any_sizes(self, sizes: list[int]) -> None:
        size_of(size_curve("title", [CurvePoint(size, 1.0, 0.9, 1.0) for size in sizes], Bar("", 0.0, 0.0, 0.1)))

    def test_refuses_training_on_nothing(self) -> None:
        with pytest.raises(ValueError, match="at least one training item"):
            size_curve("title", [CurvePoint(0, 0.5, 0.4, 0.6)], BASELINE)

    def test_refuses_what_is_no_share(self) -> None:
        with pytest.raises(ValueError, match=r"from (0|-1) to 1"):
            size_curve("title", POINTS, Bar("", math.nan, 0.4, 0.6))


def test_threads_draw_the_same() -> None:
    alone = [titled(name) for name in PICTURES]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda name: PICTURES[name]("title"), list(PICTURES) * 2)) == alone * 2


def test_nothing_is_imported_or_set_before_or_beyond_need() -> None:
    script = (
        "import sys, vectors.training.plots, vectors.training.statistics\n"
        "print([name for name in ('matplotlib', 'scipy', 'statsmodels') if name in sys.modules])\n"
        "import matplotlib\n"
        "before = list(dict.items(matplotlib.rcParams))\n"  # asked otherwise, the settings look for a screen
        "vectors.training.plots.effects('title', [vectors.training.plots.Bar('row', 0.1, 0.0, 0.2)])\n"
        "print('matplotlib.pyplot' in sys.modules, list(dict.items(matplotlib.rcParams)) == before)\n"
    )
    root = Path(__file__).parents[3]
    ran = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    assert ran.stdout.split("\n")[:2] == ["[]", "False True"]
