"""Whether an adaptive vector is better than a constant one: what each changes elsewhere, at equal accuracy.

Every figure comes from outcomes, so `recomputed.py` can compute it again. **Elsewhere** are the retention items, or
without any the test items of which the unsteered model answers every prompt right. A vector's change there is the share
of answers that differ from the unsteered model's. The adaptive vector replaces the constant one if all rules pass:

    constant_gains    the constant vector gains on the test items, so a direction without effect is published no more
                      often than without an adaptive form (a fixed sequence of tests, Maurer, Hothorn & Lehmacher 1995)
    over_random       it scores above the same form along a random direction of the same length
    equal_accuracy    it scores at most `max_loss` below the constant vector of the scale that matches its validation
                      accuracy: the lower end of the 95 % interval of the difference is above that
    no_less_accurate  the same beside the constant vector that the search chose
    changes_less      it changes fewer answers elsewhere than the matched constant vector, p < 0.05
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vectors.errors import InvalidData
from vectors.training.adaptive_search import SearchedAdaptive
from vectors.training.held_out import interval_report, mean_report
from vectors.training.method import Method
from vectors.training.outcomes import OUTCOMES, Condition, ItemOutcome, groups_of, right_of, scores
from vectors.training.retention import SIGNIFICANCE
from vectors.training.search import bounds_of
from vectors.training.significance import mean_test, paired_test
from vectors.training.statistics import SAME, Floats, accuracy_of
from vectors.training.verdict import Rule

CONDITIONS = ("adaptive", "matched", "random")
"""The vectors that are tested beside the constant one."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One vector's outcomes on the test items and on those elsewhere."""

    test: tuple[ItemOutcome, ...]
    elsewhere: tuple[ItemOutcome, ...]


def adaptive_report(
    searched: SearchedAdaptive,
    constant: tuple[Sequence[ItemOutcome], Sequence[ItemOutcome]],
    conditions: Sequence[Condition],
    method: Method,
) -> dict[str, Any]:
    """What was tried and what came of it; `constant` are its outcomes on the test and the retention items.

    Raises `MissingDependency`.
    """
    if searched.reason is not None:
        reason = f"no adaptive vector was made: {searched.reason}"
        return {"form": method.adaptive, "published": False, "reason": reason, "conditions": []}
    figures = figures_of({one.name: one.number for one in searched.conditions}, constant, conditions, method)
    for one, found in zip(searched.conditions, figures["conditions"][1:], strict=True):
        own: dict[str, Any] = {"candidate": one.number, **one.candidates[one.number].numbers}
        found["chosen"] = own | {"dose": one.chosen.dose, "relative_dose": one.chosen.relative_dose} | found["chosen"]
    return {"form": method.adaptive, **figures}


def figures_of(
    numbers: Mapping[str, int],
    constant: tuple[Sequence[ItemOutcome], Sequence[ItemOutcome]],
    conditions: Sequence[Condition],
    method: Method,
) -> dict[str, Any]:
    """Every figure that follows from outcomes, in the report's own structure; `numbers` are of the candidates chosen.

    Raises `InvalidData` where outcomes are missing, and `MissingDependency`.
    """
    by_name = {condition.name: condition for condition in conditions}
    if set(by_name) != set(CONDITIONS):
        raise InvalidData(f"expected the outcomes of {', '.join(CONDITIONS)}", OUTCOMES)
    tests = {"constant": constant[0]} | {name: by_name[name].test for name in CONDITIONS}
    kept = {"constant": constant[1]} | {name: by_name[name].retention for name in CONDITIONS}
    if (
        len({tuple(item.line for item in items) for items in tests.values()}) > 1
        or len(set(map(len, kept.values()))) > 1
    ):
        raise InvalidData("the conditions have other items than the vector", OUTCOMES)
    has_retention = bool(constant[1])
    measured = {
        name: Measured(tuple(tests[name]), tuple(kept[name] if has_retention else _right_before(tests[name])))
        for name in tests
    }
    shown = [_condition(name, one) for name, one in measured.items()]
    for one in shown[1:]:
        accuracies = [bounds_of(row)[0] for row in right_of(by_name[one["name"]].validation)[1:]]
        one["chosen"] = {"validation": accuracies[numbers[one["name"]]], "selected_from": len(accuracies)}
    over = [_over(measured["adaptive"], measured[name], name) for name in ("constant", "matched", "random")]
    rules = _rules(shown[0], over, method)
    failed = next((rule for rule in rules if not rule.passed), None)
    reason = rules[-1].says if failed is None else f"{failed.says}, so the constant vector is kept"
    return {
        "published": failed is None,
        "reason": reason,
        "elsewhere": "retention items" if has_retention else "test items that were right before",
        "conditions": shown,
        "over": over,
        "rules": [dataclasses.asdict(rule) for rule in rules],
    }


def _right_before(items: Sequence[ItemOutcome]) -> list[ItemOutcome]:
    return [item for item in items if item.score_before >= 1.0 - SAME]


def _condition(name: str, measured: Measured) -> dict[str, Any]:
    """One vector's gain on the test items, and what it changes elsewhere; None where there are no such items."""
    before, after = scores(measured.test)
    groups = groups_of(measured.test)
    gain = paired_test(before, after, groups)
    elsewhere = None
    if measured.elsewhere:
        own = groups_of(measured.elsewhere)
        kept_before, kept_after = scores(measured.elsewhere)
        elsewhere = {
            "changed": interval_report(accuracy_of(_changed(measured.elsewhere), own)),
            "loss": mean_report(mean_test(kept_before - kept_after, own)),
        }
    return {
        "name": name,
        "accuracy": interval_report(accuracy_of(after, groups)),
        "gain": gain.gain,
        "ci95": [gain.low, gain.high],
        "p": gain.p,
        "elsewhere": elsewhere,
    }


def _over(adaptive: Measured, other: Measured, name: str) -> dict[str, Any]:
    """The adaptive vector beside another: how much more accurate it is, and how many fewer answers it changes."""
    _, own = scores(adaptive.test)
    _, others = scores(other.test)
    accuracy = paired_test(others, own, groups_of(adaptive.test))
    fewer = None
    if adaptive.elsewhere:
        difference = _changed(other.elsewhere) - _changed(adaptive.elsewhere)
        fewer = mean_report(mean_test(difference, groups_of(adaptive.elsewhere)))
    shown = {"gain": accuracy.gain, "ci95": [accuracy.low, accuracy.high], "p": accuracy.p, "method": accuracy.method}
    return {"name": name, "accuracy": shown, "fewer_changed": fewer}


def _changed(items: Sequence[ItemOutcome]) -> Floats:
    """The share of each item's answers that are not the unsteered model's, `[items]`."""
    shares = [np.mean([one != other for one, other in zip(item.before, item.after, strict=True)]) for item in items]
    return np.asarray(shares, dtype=np.float64)


def _rules(constant: Mapping[str, Any], over: Sequence[Mapping[str, Any]], method: Method) -> list[Rule]:
    beside_constant, beside_matched, beside_random = over
    gains = constant["gain"] > 0 and constant["p"] < SIGNIFICANCE
    says = f"the constant vector {'gains' if gains else 'shows no gain beyond chance'}: {_points(constant['gain'])}"
    rules = [Rule("constant_gains", gains, constant["gain"], constant["p"], f"{says}, p = {constant['p']:.2g}")]
    accuracy = beside_random["accuracy"]
    passed = accuracy["gain"] > 0 and accuracy["p"] < SIGNIFICANCE
    what = "the same form along a random direction"
    says = f"the adaptive vector scores {_points(accuracy['gain'])} over {what}, p = {accuracy['p']:.2g}"
    rules.append(Rule("over_random", passed, accuracy["gain"], accuracy["p"], says))
    for name, found, what in (
        ("equal_accuracy", beside_matched, "the constant vector that is matched on the validation items"),
        ("no_less_accurate", beside_constant, "the constant vector that was chosen"),
    ):
        accuracy = found["accuracy"]
        low, high = accuracy["ci95"]
        interval = f"({100 * low:+.1f} to {100 * high:+.1f})"
        says = f"the adaptive vector scores {_points(accuracy['gain'])} {interval} beside {what}"
        rules.append(Rule(name, low > -method.max_loss, accuracy["gain"], None, says))
    fewer = beside_matched["fewer_changed"]
    if fewer is None:
        says = "there are no items elsewhere: expected retention items, or test items that were right before"
        return [*rules, Rule("changes_less", False, None, None, says)]
    passed = fewer["gain"] > 0 and fewer["p"] < SIGNIFICANCE
    more = "fewer" if fewer["gain"] >= 0 else "more"
    says = (
        f"elsewhere the adaptive vector changes {100 * abs(fewer['gain']):.1f} points {more} of the answers than the "
        f"matched constant one, p = {fewer['p']:.2g}"
    )
    return [*rules, Rule("changes_less", passed, fewer["gain"], fewer["p"], says)]


def _points(share: float) -> str:
    return f"{100 * share + 0.0:+.1f} points"
