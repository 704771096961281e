"""Every figure of a report, from its outcomes by SciPy and statsmodels. Imports nothing of what it checks."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import statsmodels.api as sm
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

Row = dict[str, Any]
Floats = NDArray[np.float64]


def rows_of(folder: Path, part: str, seed: int | None = None) -> list[Row]:
    """The lines of a part."""
    rows = [json.loads(line) for line in (folder / "outcomes.jsonl").read_text().splitlines()]
    return [row for row in rows if row["part"] == part and (seed is None or row["seed"] == seed)]


def scores(rows: Iterable[Row], name: str) -> Floats:
    """The share of each item's prompts that were answered right."""
    return np.asarray([np.mean([chosen == row["answer"] for chosen in row[name]]) for row in rows])


def members(rows: Sequence[Row]) -> list[list[int]]:
    """The numbers of the items of each group."""
    groups: dict[object, list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        groups[number if row["group"] is None else row["group"]].append(number)
    return list(groups.values())


def interval(values: Floats, rows: Sequence[Row], low: float, high: float) -> tuple[float, float, float]:
    """The ends and the standard error: weighted least squares over groups, with one at each end of the range."""
    groups = members(rows)
    size = len(rows) / len(groups)
    means = [*(float(values[group].mean()) for group in groups), low, high]
    weights = [*map(len, groups), size, size]
    fitted = sm.WLS(means, np.ones(len(means)), weights=weights).fit(cov_type="HC1")
    error, reach = float(fitted.bse[0]), stats.t.ppf(0.975, len(groups) - 1)
    middle = float(fitted.params[0])
    mean = float(values.mean())
    return (
        min(mean, max(low, middle - reach * error)),
        max(mean, min(high, middle + reach * error)),
        error,
    )


def p_of(values: Floats, rows: Sequence[Row]) -> float:
    """The randomisation test of the mean: the signs of groups drawn, or gone through where they are few."""
    sums = np.asarray([values[group].sum() for group in members(rows)])
    sums = sums[np.abs(sums) > 1e-9]
    if not sums.size:
        return 1.0
    if np.ptp(np.abs(sums)) < 1e-9:
        return float(stats.binomtest(int((sums > 0).sum()), sums.size, 0.5, alternative="greater").pvalue)
    found = stats.permutation_test(
        (sums,), np.sum, permutation_type="samples", alternative="greater", n_resamples=2**14, rng=0, vectorized=True
    )
    return float(found.pvalue)


def check_mean(found: Row, values: Floats, rows: Sequence[Row], *, value: str = "gain") -> None:
    """The test of a mean as a report shows it."""
    low, high, _ = interval(values, rows, -1.0, 1.0)
    assert math.isclose(found[value], values.mean(), abs_tol=1e-12)
    assert np.allclose(found["ci95"], [low, high], atol=1e-9)
    check_p(found["p"], values, rows)


def check_p(found: float, values: Floats, rows: Sequence[Row]) -> None:
    """A p-value, to within the chance of the draws."""
    p = p_of(values, rows)
    assert abs(found - p) <= 1e-9 + 5 * math.sqrt(p * (1 - p) / 2**14), (found, p)


def check_accuracy(found: Row, values: Floats, rows: Sequence[Row]) -> None:
    """An accuracy: Wilson's interval if all are right or wrong and none are in a group."""
    if set(values) <= {0.0, 1.0} and all(row["group"] is None for row in rows):
        low, high = proportion_confint(values.sum(), len(values), method="wilson")
    else:
        low, high, _ = interval(values, rows, 0.0, 1.0)
    assert found["num_items"] == len(values)
    assert np.allclose([found["value"], found["low"], found["high"]], [values.mean(), low, high], atol=1e-9)


def text_scores(rows: Sequence[Row]) -> Floats:
    """What the best order of preference among texts scores, from the items of other groups, slowly."""
    plain = [[" ".join(text.split()).casefold() for text in row["choices"]] for row in rows]
    found = []
    for number, row in enumerate(rows):
        others = [
            other
            for other in range(len(rows))
            if other != number and (row["group"] is None or rows[other]["group"] != row["group"])
        ]
        rates = []
        for text in plain[number]:
            right = sum(plain[other][rows[other]["answer"]] == text for other in others)
            offered = sum(plain[other].count(text) for other in others)
            rates.append((right + 1) / (offered + len(plain[number])))
        best = [place for place, rate in enumerate(rates) if math.isclose(rate, max(rates))]
        found.append((row["answer"] in best) / len(best))
    return np.asarray(found)


def check_report(folder: Path) -> None:
    """Every figure of the report in a folder."""
    report = json.loads((folder / "report.json").read_text())
    rows = rows_of(folder, "test", report["seed"])
    before, after = scores(rows, "before"), scores(rows, "after")
    test = report["test"]
    check_accuracy(report["baseline"]["test"], before, rows)
    check_accuracy(test["accuracy"], after, rows)
    check_mean(test, after - before, rows)
    assert math.isclose(test["standard_error"], interval(after - before, rows, -1.0, 1.0)[2])
    changes = [int((after > before + 1e-9).sum()), int((after < before - 1e-9).sum())]
    assert [test["wrong_to_right"], test["right_to_wrong"]] == changes
    named = ("wrong_to_right", "right_to_wrong")
    assert changes == [sum(row["change"] == name for row in rows) for name in named]
    mcnemar = stats.binomtest(changes[0], sum(changes), 0.5, alternative="greater").pvalue if sum(changes) else 1.0
    assert math.isclose(test["mcnemar_p"], mcnemar)
    check_mean(test["over_chance"], after - [1 / len(row["choices"]) for row in rows], rows)
    texts = text_scores(rows)
    check_mean(test["over_text"], after - texts, rows)
    assert math.isclose(test["over_text"]["accuracy"], texts.mean())
    check_presented(test, rows, float((after - before).mean()))
    check_letters(test["letters"], rows)
    check_search(report, rows_of(folder, "validation", report["seed"]))
    check_retention(report["retention"], rows_of(folder, "retention"), rows_of(folder, "retention_text"))
    if "seeds" in report:
        check_seeds(report["seeds"], folder)


def check_presented(test: Row, rows: Sequence[Row], gain: float) -> None:
    """The figures in the order in which the method asks, and the letters' part of the gain."""
    first = {
        name: np.asarray([row[name][0] == row["answer"] for row in rows], dtype=float) for name in ("before", "after")
    }
    difference = first["after"] - first["before"]
    shown = test["presented"]
    assert np.allclose([shown["baseline"], shown["steered"]], [first["before"].mean(), first["after"].mean()])
    assert math.isclose(shown["gain"], difference.mean(), abs_tol=1e-12)
    check_p(shown["p"], difference, rows)
    assert math.isclose(test["letter_bias"], difference.mean() - gain, abs_tol=1e-12)
    places = [row["orders"][0].index(row["answer"]) for row in rows]
    assert math.isclose(shown["best_letter"]["accuracy"], max(places.count(place) for place in places) / len(rows))


def check_letters(letters: Row, rows: Sequence[Row]) -> None:
    """How often each letter is said."""
    for name in ("before", "after"):
        said = [
            "ABCDEFGH"[order.index(chosen)]
            for row in rows
            for order, chosen in zip(row["orders"], row[name], strict=True)
        ]
        for letter, share in letters[name].items():
            assert math.isclose(share, said.count(letter) / len(said))


def check_search(report: Row, rows: Sequence[Row]) -> None:
    """The accuracy of every cell of the grid, and which was chosen."""
    assert math.isclose(report["baseline"]["validation"], np.mean([row["before"] for row in rows]))
    cells = np.asarray([[int(right) for right in row["cells"]] for row in rows]).mean(axis=0)
    assert np.allclose([cell["validation"] for cell in report["grid"]], cells)
    assert math.isclose(report["chosen"]["validation"], cells.max())
    assert report["chosen"]["selected_from"] == len(cells)


def check_retention(retention: Row, rows: Sequence[Row], texts: Sequence[Row]) -> None:
    """Accuracy on other items and perplexity of texts, each with its loss."""
    before, after = scores(rows, "before"), scores(rows, "after")
    found = retention["accuracy"]
    check_accuracy(found["baseline"], before, rows)
    check_accuracy(found["steered"], after, rows)
    check_mean(found["loss"], before - after, rows, value="value")
    assert math.isclose(found["change"], after.mean() - before.mean(), abs_tol=1e-12)
    found = retention["perplexity"]
    tokens = np.asarray([row["tokens"] for row in texts], dtype=float)
    plain, steered = (np.asarray([row[name] for row in texts]) for name in ("before", "after"))
    assert math.isclose(found["baseline"], math.exp(-plain.sum() / tokens.sum()))
    assert math.isclose(found["steered"], math.exp(-steered.sum() / tokens.sum()))
    losses = (plain - steered) / tokens
    fitted = sm.WLS(losses, np.ones(len(losses)), weights=tokens).fit(cov_type="HC1", use_t=True)
    assert math.isclose(found["ratio"], math.exp(fitted.params[0]))
    assert np.allclose(found["ci95"], np.exp(fitted.conf_int()[0]))
    assert math.isclose(found["p"], stats.t.sf(fitted.tvalues[0], len(texts) - 1))


def check_seeds(seeds: Row, folder: Path) -> None:
    """The tests of the mean gain over seeds."""
    gains, errors = [], []
    for each in seeds["each"]:
        rows = rows_of(folder, "test", each["seed"])
        difference = scores(rows, "after") - scores(rows, "before")
        gains.append(float(difference.mean()))
        errors.append(interval(difference, rows, -1.0, 1.0)[2])
        assert math.isclose(each["gain"], gains[-1], abs_tol=1e-12)
        assert math.isclose(each["standard_error"], errors[-1])
    test_items, train_items = (sum(each["split"][part] for each in seeds["each"]) for part in ("test", "train"))
    variance = max(float(np.var(gains, ddof=1)), float(np.mean(np.square(errors))))
    error = math.sqrt((1 / len(gains) + test_items / train_items) * variance)
    found = seeds["corrected"]
    assert math.isclose(found["p"], stats.t.sf(np.mean(gains) / error, len(gains) - 1))
    assert np.allclose([found["low"], found["high"]], stats.t.interval(0.95, len(gains) - 1, np.mean(gains), error))
    student = stats.ttest_1samp(gains, 0.0, alternative="greater")
    assert math.isclose(seeds["t_test"]["p"], student.pvalue)
    assert math.isclose(seeds["t_test"]["t"], student.statistic)
    check_grid(seeds, folder)


def check_grid(seeds: Row, folder: Path) -> None:
    """The mean gain of every cell over the seeds that tried it."""
    gains: dict[int, list[float]] = defaultdict(list)
    splits: dict[int, list[Row]] = defaultdict(list)
    for each in seeds["each"]:
        rows = rows_of(folder, "validation", each["seed"])
        baseline = np.mean([row["before"] for row in rows])
        tried = range(len(seeds["grid"])) if each["cells"] is None else each["cells"]
        assert {len(row["cells"]) for row in rows} == {len(tried)}
        for column, place in enumerate(tried):
            gains[place].append(float(np.mean([int(row["cells"][column]) for row in rows]) - baseline))
            splits[place].append(each["split"])
    for place, cell in enumerate(seeds["grid"]):
        own = gains[place]
        assert cell["seeds"] == len(own)
        assert math.isclose(cell["gain"], np.mean(own), abs_tol=1e-12)
        if len(own) > 1:
            ratio = sum(split["validation"] for split in splits[place]) / sum(split["train"] for split in splits[place])
            error = math.sqrt((1 / len(own) + ratio) * np.var(own, ddof=1))
            assert math.isclose(cell["standard_error"], error, abs_tol=1e-12)
        else:
            assert cell["standard_error"] is None
