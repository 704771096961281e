"""The part of a training that an adaptive vector takes: its conditions on what should not change, and which vector is
the better one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vectors.training.adaptive_report import adaptive_report
from vectors.training.adaptive_search import SearchedAdaptive
from vectors.training.examiner import Advance, Examiner
from vectors.training.held_out import HeldOutResult, held_out_result
from vectors.training.method import Method
from vectors.training.model_view import ModelView
from vectors.training.outcomes import Condition, ItemOutcome, TextOutcome
from vectors.training.retention import Retention, check_retention
from vectors.training.search import Cell


@dataclass(frozen=True, slots=True)
class Better:
    """The vector that a training is about: what the search chose, its test, and what it changes elsewhere."""

    cell: Cell
    test: HeldOutResult
    kept_items: tuple[ItemOutcome, ...]
    kept_texts: tuple[TextOutcome, ...]


def conditions_of(
    view: ModelView,
    examiner: Examiner,
    retention: Retention,
    searched: SearchedAdaptive,
    tests: Sequence[tuple[ItemOutcome, ...]],
    advance: Advance,
) -> tuple[Condition, ...]:
    """The conditions with their outcomes: `tests` are those on the test items. The retention items are asked here.

    Only the adaptive vector, which may be published, is also checked on texts.
    """
    found = []
    without_texts = dataclasses.replace(retention, texts=())
    for one, test in zip(searched.conditions, tests, strict=True):
        own = retention if one.name == "adaptive" else without_texts
        items, texts = check_retention(view, examiner, own, one.chosen.steering, advance)
        found.append(Condition(one.name, test, one.validation, items, texts))
    return tuple(found)


def better_of(
    constant: Better, searched: SearchedAdaptive, conditions: Sequence[Condition], method: Method
) -> tuple[Better, dict[str, Any]]:
    """The adaptive vector if it is better than the constant one, which is kept otherwise; and the report on both.

    Raises `MissingDependency`.
    """
    outcomes = (constant.test.outcomes, constant.kept_items)
    found = adaptive_report(searched, outcomes, conditions, method)
    if not found["published"]:
        return constant, found
    chosen, adaptive = searched.conditions[0], conditions[0]
    test = held_out_result(adaptive.test)
    return Better(chosen.chosen, test, adaptive.retention, adaptive.texts), found
