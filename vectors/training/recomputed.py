"""A report computed again from the outcomes beside it, and where the two differ."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vectors.errors import InvalidData
from vectors.training.adaptive_report import figures_of as figures_of_adaptive
from vectors.training.baselines import figures_of
from vectors.training.held_out import HeldOutResult, held_out_report, held_out_result, interval_report
from vectors.training.method import Method
from vectors.training.outcomes import Condition, ItemOutcome, Outcomes, Tested, right_of
from vectors.training.probe_outcomes import figures_of as figures_of_probe
from vectors.training.probe_outcomes import from_jsonl
from vectors.training.report import SearchedGrid, grid_over_seeds, over_seeds, race_report, seeds_report
from vectors.training.retention import OWN_TEXTS, retention_report
from vectors.training.search import bounds_of
from vectors.training.size_curve import curve_report
from vectors.training.verdict import verdict_of

_PRECISION = 1e-9


@dataclass(frozen=True, slots=True)
class Difference:
    """A figure of the report, by its path such as `test.over_chance.p`, and what it should be."""

    path: str
    reported: Any
    recomputed: Any


def recompute(report: Mapping[str, Any], outcomes: Outcomes) -> dict[str, Any]:
    """Every figure of a report that follows from outcomes, in the report's own structure.

    Of the report itself, only what was asked for is used: options, numbers of items, and which cell was chosen. Raises
    `InvalidData` if outcomes are missing, and `InvalidMethod`.
    """
    try:
        if "points" in report:
            return _sweep(report, outcomes)
        return _training(report, outcomes)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise InvalidData(f"is no report of this version ({error!r:.100})", "report.json") from None


def recompute_folder(report: Mapping[str, Any], lines: bytes) -> dict[str, Any]:
    """`recompute` with the outcomes of a file, of whatever kind the report is. Raises as that does."""
    if not isinstance(report, Mapping) or report.get("task") != "probe":
        return recompute(report, Outcomes.from_jsonl(lines))
    try:
        return figures_of_probe(from_jsonl(lines), report["controls"])
    except (KeyError, TypeError) as error:
        raise InvalidData(f"is no report of this version ({error!r:.100})", "report.json") from None


def differences(reported: Any, recomputed: Any, path: str = "") -> Iterator[Difference]:
    """Where a report differs from the figures computed again; other parts of the report are not looked at."""
    if isinstance(recomputed, dict):
        for name, value in recomputed.items():
            known = reported.get(name) if isinstance(reported, dict) else None
            yield from differences(known, value, f"{path}.{name}" if path else name)
    elif isinstance(recomputed, list):
        known = reported if isinstance(reported, list) else []
        if len(known) != len(recomputed):
            yield Difference(f"{path}.length", len(known), len(recomputed))
        for number, (one, other) in enumerate(zip(known, recomputed, strict=False)):
            yield from differences(one, other, f"{path}.{number}")
    elif not _are_same(reported, recomputed):
        yield Difference(path, reported, recomputed)


def _are_same(reported: Any, recomputed: Any) -> bool:
    are_numbers = all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in (reported, recomputed)
    )
    if are_numbers:
        return math.isclose(reported, recomputed, rel_tol=_PRECISION, abs_tol=_PRECISION * abs(recomputed))
    return bool(reported == recomputed)


def _tested(outcomes: Outcomes, seed: int, size: int | None = None, baseline: str | None = None) -> Tested:
    for found in outcomes.tested:
        if (found.seed, found.size, found.baseline) == (seed, size, baseline) and found.test:
            return found
    what = f"seed {seed}" if size is None else f"seed {seed} with {size} training items"
    what += "" if baseline is None else f" and the baseline {baseline}"
    raise InvalidData(f"expected the outcomes of {what}, got none", "outcomes.jsonl")


def _training(report: Mapping[str, Any], outcomes: Outcomes) -> dict[str, Any]:
    first = _tested(outcomes, report["seed"])
    method = Method.from_json(report["method"])
    adapted = _adaptive(report, outcomes, first, method)
    better = _better(first, outcomes, adapted)
    test = held_out_result(better.test)
    figures: dict[str, Any] = {"baseline": {"test": interval_report(test.baseline)}, "test": held_out_report(test)}
    perplexity = report["retention"]["perplexity"]
    figures["retention"] = retention_report(
        better.retention, better.texts, OWN_TEXTS if perplexity is None else perplexity["texts"]
    )
    unsteered_wins = None
    if "chosen" in report:
        baseline, bounds = _validation(first)
        figures["baseline"]["validation"] = baseline
        figures["grid"] = [_cell_figures(*each) for each in bounds]
        figures["race"] = race_report(first.validation) if method.race else None
        chosen = bounds[_chosen_cell(report)][0]
        figures["chosen"] = {"validation": chosen, "selected_from": len(bounds)}
        beaten = chosen if not adapted.get("published") else adapted["conditions"][1]["chosen"]["validation"]
        unsteered_wins = not method.is_paper and baseline >= beaten
    splits: list[tuple[int, HeldOutResult, Mapping[str, int]]] = [
        (each["seed"], held_out_result(_tested(outcomes, each["seed"]).test), each["split"])
        for each in report.get("seeds", {"each": ()})["each"]
    ]
    if splits:
        figures["seeds"] = seeds_report(splits)
        figures["seeds"] |= {} if method.race else {"grid": _grid(report["seeds"], outcomes)}
    compared = [_baseline(shown, report, outcomes, better.test) for shown in report.get("baselines", ())]
    figures |= {"baselines": compared} if compared else {}
    figures |= {"adaptive": adapted} if adapted else {}
    verdict = verdict_of(
        test,
        method,
        figures["retention"],
        is_held_out=report["data"].get("held_out", True),
        unsteered_wins=unsteered_wins,
        gains=[seed_test.paired.gain for _, seed_test, _ in splits],
        over_seeds=over_seeds(splits) if splits else None,
        baselines=compared,
    )
    return figures | {
        "recommended": verdict.is_recommended,
        "reason": verdict.reason,
        "verdict": verdict.to_json(),
    }


def _grid(seeds: Mapping[str, Any], outcomes: Outcomes) -> list[dict[str, Any]]:
    """The gains of every cell over the seeds."""
    names = [(cell["variant"], cell["site"], cell["layer"], cell["scale"]) for cell in seeds["grid"]]
    grids = []
    for each in seeds["each"]:
        baseline, bounds = _validation(_tested(outcomes, each["seed"]))
        own = names if each["cells"] is None else [names[place] for place in each["cells"]]
        gains = {name: accuracy - baseline for name, (accuracy, _) in zip(own, bounds, strict=True)}
        grids.append(SearchedGrid(gains, each["split"]))
    return grid_over_seeds(grids)


def _adaptive(report: Mapping[str, Any], outcomes: Outcomes, constant: Tested, method: Method) -> dict[str, Any]:
    """The figures of an adaptive training; empty without one."""
    found = report.get("adaptive")
    if found is None:
        return {}
    if not found["conditions"]:
        return {"published": False}
    numbers = {one["name"]: one["chosen"]["candidate"] for one in found["conditions"] if "chosen" in one}
    return figures_of_adaptive(numbers, (constant.test, outcomes.retention), outcomes.conditions, method)


def _better(constant: Tested, outcomes: Outcomes, adapted: Mapping[str, Any]) -> Condition:
    """The outcomes of the vector that the report is about."""
    if adapted.get("published"):
        return next(condition for condition in outcomes.conditions if condition.name == "adaptive")
    return Condition("constant", constant.test, constant.validation, outcomes.retention, outcomes.texts)


def _baseline(
    shown: Mapping[str, Any], report: Mapping[str, Any], outcomes: Outcomes, vector: Sequence[ItemOutcome]
) -> dict[str, Any]:
    if "reason" in shown:
        return {"name": shown["name"]}
    tested = _tested(outcomes, report["seed"], baseline=shown["name"])
    if [item.line for item in tested.test] != [item.line for item in vector]:
        raise InvalidData(f"the baseline {shown['name']} has other items than the vector", "outcomes.jsonl")
    return {"name": shown["name"], **figures_of(tested, shown["chosen"]["candidate"], vector)}


def _sweep(report: Mapping[str, Any], outcomes: Outcomes) -> dict[str, Any]:
    tests = {
        point["num_items"]: {
            each["seed"]: held_out_result(_tested(outcomes, each["seed"], point["num_items"]).test)
            for each in point.get("each", ())
        }
        for point in report["points"]
    }
    curve = curve_report(tests, Method.from_json(report["method"]).seeds, report["splits"])
    figures = {point["num_items"]: point for point in curve["points"]}
    points = []
    for size, own in tests.items():
        each = [
            {"seed": seed, "baseline": test.baseline.value, "steered": test.steered.value} for seed, test in own.items()
        ]
        points.append({"num_items": size} | (figures[size] | {"each": each} if own else {}))
    return curve | {"points": points}


def _validation(tested: Tested) -> tuple[float, list[tuple[float, float]]]:
    """The accuracy on the items of the search, unsteered, and the least and the most that it can be in each cell."""
    (baseline, _), *cells = (bounds_of(row) for row in right_of(tested.validation))
    return baseline, cells


def _cell_figures(low: float, high: float) -> dict[str, Any]:
    return {"validation": low} if low == high else {"validation": None, "validation_bounds": [low, high]}


def _chosen_cell(report: Mapping[str, Any]) -> int:
    chosen = report["chosen"]
    wanted = (chosen["variant"], chosen["site"], chosen["layers"][0], chosen["grid_scale"])
    names = [(cell["variant"], cell["site"], cell["layer"], cell["scale"]) for cell in report["grid"]]
    return names.index(wanted)
