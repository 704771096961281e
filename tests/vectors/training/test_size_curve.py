"""The curve of a sweep: its standard errors and slope, from the outcomes by NumPy and SciPy, and refusals in words."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from tests.vectors.training.recomputation import Row, check_accuracy, interval, rows_of, scores
from tests.vectors.training.test_recomputed import DrawnProbe, items
from vectors.training.outcomes import Outcomes
from vectors.training.recomputed import differences, recompute
from vectors.training.task import Done, Task, carry_out
from vectors.training.train import TrainingData

SIZES = [12, 20, 30, 40]
Floats = NDArray[np.float64]


def swept(folder: Path, seeds: int, **options: Any) -> tuple[Row, Done]:
    """A sweep whose files are in `folder`; the items are in groups."""
    given = {"task": "sweep", "sizes": SIZES, "layers": [0], "scales": [1], "variant": "mean_difference"}
    data = TrainingData(items("asked", 80, in_groups=True))
    done = carry_out(
        Task.from_json(given | {"seeds": seeds} | options), DrawnProbe(), data, seed=1, report=lambda progress: None
    )
    for name, content in done.files:
        (folder / name).write_bytes(content)
    return json.loads((folder / "report.json").read_text()), done


def asked(folder: Path, seed: int, size: int) -> list[Row]:
    return [row for row in rows_of(folder, "test", seed) if row["size"] == size]


def line_through(values: Floats, errors: Floats) -> tuple[float, float, float]:
    """Intercept, slope and the slope's standard error by the weighted normal equations."""
    doublings = np.log2(SIZES)
    weights = errors**-2.0
    middle = (weights * doublings).sum() / weights.sum()
    spread = (weights * (doublings - middle) ** 2).sum()
    slope = (weights * (doublings - middle) * values).sum() / spread
    intercept = (weights * (values - slope * doublings)).sum() / weights.sum()
    scatter = (weights * (values - intercept - slope * doublings) ** 2).sum() / (len(SIZES) - 2)
    return float(intercept), float(slope), math.sqrt(max(1.0, scatter) / spread)


def check_slope(slope: Row, values: Floats, errors: Floats) -> None:
    intercept, per_doubling, error = line_through(values, errors)
    found = [slope[name] for name in ("intercept", "per_doubling", "standard_error", "low", "high")]
    ends = stats.t.interval(0.95, len(SIZES) - 2, per_doubling, error)
    assert np.allclose(found, [intercept, per_doubling, error, *ends])
    assert slope["num_sizes"] == len(SIZES)


def test_one_seed_has_the_errors_of_its_items(tmp_path: Path) -> None:
    report, done = swept(tmp_path, 1)
    assert [point["num_items"] for point in report["points"]] == SIZES
    values, errors = [], []
    for point in report["points"]:
        rows = asked(tmp_path, 1, point["num_items"])
        after = scores(rows, "after")
        found = point["accuracy"]
        check_accuracy({"num_items": len(rows)} | {name: found[name] for name in ("value", "low", "high")}, after, rows)
        assert math.isclose(found["standard_error"], interval(after, rows, 0.0, 1.0)[2])
        assert point["gain"] is None
        values.append(found["value"])
        errors.append(found["standard_error"])
    check_slope(report["slope"], np.asarray(values), np.asarray(errors))
    assert report["slope"]["over_seeds"] is None
    assert [name for name, _ in done.files] == ["report.json", "sizes.png", "outcomes.jsonl"]


def test_several_seeds_have_the_errors_of_splits_that_share_items(tmp_path: Path) -> None:
    report, _ = swept(tmp_path, 3)
    ratio = sum(split["test"] for split in report["splits"]) / sum(split["train"] for split in report["splits"])
    values, errors, by_seed = [], [], []
    for point in report["points"]:
        own = {seed: asked(tmp_path, seed, point["num_items"]) for seed in (1, 2, 3)}
        means = [float(scores(rows, "after").mean()) for rows in own.values()]
        gains = [float((scores(rows, "after") - scores(rows, "before")).mean()) for rows in own.values()]
        least = np.mean([interval(scores(rows, "after"), rows, 0.0, 1.0)[2] ** 2 for rows in own.values()])
        error = math.sqrt((1 / 3 + ratio) * max(np.var(means, ddof=1), least))
        low, high = stats.t.interval(0.95, 2, np.mean(means), error)
        found = point["accuracy"]
        assert np.allclose([found["value"], found["standard_error"]], [float(np.mean(means)), error])
        assert np.allclose([found["low"], found["high"]], [max(0.0, low), min(1.0, high)])
        least = np.mean(
            [interval(scores(r, "after") - scores(r, "before"), r, -1.0, 1.0)[2] ** 2 for r in own.values()]
        )
        error = math.sqrt((1 / 3 + ratio) * max(np.var(gains, ddof=1), least))
        assert math.isclose(point["gain"]["p"], stats.t.sf(np.mean(gains) / error, 2))
        assert [each["steered"] for each in point["each"]] == pytest.approx(means)
        values.append(found["value"])
        errors.append(found["standard_error"])
        by_seed.append(means)
    check_slope(report["slope"], np.asarray(values), np.asarray(errors))
    slopes = [line_through(column, np.asarray(errors))[1] for column in np.asarray(by_seed).T]
    over = report["slope"]["over_seeds"]
    assert np.allclose(over["each"], slopes)
    assert math.isclose(np.mean(slopes), report["slope"]["per_doubling"], abs_tol=1e-12)
    error = math.sqrt((1 / 3 + ratio) * np.var(slopes, ddof=1))
    ends = stats.t.interval(0.95, 2, np.mean(slopes), error)
    assert np.allclose([over["standard_error"], over["low"], over["high"]], [error, *ends])
    outcomes = Outcomes.from_jsonl((tmp_path / "outcomes.jsonl").read_bytes())
    assert list(differences(report, recompute(report, outcomes))) == []
    report["slope"]["per_doubling"] += 0.01
    report["points"][2]["each"][1]["steered"] += 0.01
    changed = {found.path for found in differences(report, recompute(report, outcomes))}
    assert changed == {"slope.per_doubling", "points.2.each.1.steered"}


def test_sizes_without_a_result_of_every_seed_are_left_out_of_the_slope(tmp_path: Path) -> None:
    options = {"sizes": [2, 3, 30, 40], "variant": "pas_full"}
    report, _ = swept(tmp_path, 4, **options)
    without = [point for point in report["points"] if point["failed"]]
    assert without, "two or three items are all right or all wrong in some split"
    for point in without:
        assert all("nothing to contrast" in one["reason"] for one in point["failed"])
        assert len(point["failed"]) + len(point.get("each", ())) == 4
        if len(point.get("each", ())) == 1:
            assert point["accuracy"]["standard_error"] is point["gain"] is None
    assert report["slope"]["num_sizes"] == 4 - len(without)


@pytest.mark.parametrize(("sizes", "num_sizes"), [([20], None), ([20, 40], 2)])
def test_few_sizes_have_no_slope_or_no_interval(tmp_path: Path, sizes: list[int], num_sizes: int | None) -> None:
    report, _ = swept(tmp_path, 1, sizes=sizes)
    if num_sizes is None:
        assert report["slope"] is None
        return
    slope = report["slope"]
    ends = [point["accuracy"] for point in report["points"]]
    assert math.isclose(slope["per_doubling"], ends[1]["value"] - ends[0]["value"], abs_tol=1e-12)
    assert math.isclose(slope["standard_error"], math.hypot(*(end["standard_error"] for end in ends)))
    assert slope["low"] is slope["high"] is None
