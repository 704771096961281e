"""Outcomes: what the model answered to each item, without and with steering, from which every figure of a report comes.

They are kept beside the report as `outcomes.jsonl`, one JSON object a line, so that the report can be computed again.
`part` says what a line is:

    test            an item of the test: its options, the answers under every rotation, its scores
    validation      an item of the search: whether it was answered right, unsteered and in every cell of the grid that
                    was asked
    retention       an item that should not change, asked once
    retention_text  a plain text: the log-probability of its second half

Lines of a test or a search with a `baseline` are of that baseline instead of the trained vector; lines with a
`condition` are of another vector that an adaptive training tried on the same items (`adaptive_search.py`).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from vectors.data.items import ShownItem
from vectors.errors import InvalidData
from vectors.training.examiner import Choices, Question
from vectors.training.race import NOT_ASKED, Right
from vectors.training.statistics import SAME, Floats

OUTCOMES = "outcomes.jsonl"
"""The name of the file."""

Answers = tuple[int | None, ...]
"""The index of the option chosen under each order, None where the output was not finite."""


@dataclass(frozen=True, slots=True)
class ItemOutcome:
    """One item and the options that the model chose, without and with steering.

    `choices`: the texts of its options in the order of the data, none for a pair of texts, which has the positive (0)
    and the negative one (1). `answer`: the index of the right one. `orders[n][place]` is the option at a place when the
    item was asked for the n-th time; the first is the order in which the method asks it.
    """

    line: int
    group: str | None
    choices: tuple[str, ...]
    answer: int
    orders: tuple[tuple[int, ...], ...]
    before: Answers
    after: Answers

    @property
    def num_options(self) -> int:
        """How many options it has."""
        return len(self.orders[0])

    @property
    def score_before(self) -> float:
        """The share of its prompts answered right without steering."""
        return _share(self.before, self.answer)

    @property
    def score_after(self) -> float:
        """The share of its prompts answered right with steering."""
        return _share(self.after, self.answer)

    @property
    def change(self) -> str | None:
        """`wrong_to_right` if the score rose, `right_to_wrong` if it fell, None otherwise."""
        difference = self.score_after - self.score_before
        if abs(difference) <= SAME:
            return None
        return "wrong_to_right" if difference > 0 else "right_to_wrong"

    def to_json(self) -> dict[str, Any]:
        """Its fields and what follows from them."""
        scores = {"score_before": self.score_before, "score_after": self.score_after, "change": self.change}
        return dataclasses.asdict(self) | scores

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Self:
        """An outcome from its fields; what follows from them is not read."""
        orders = tuple(tuple(order) for order in found["orders"])
        answers = (tuple(found["before"]), tuple(found["after"]))
        outcome = cls(found["line"], found["group"], tuple(found["choices"]), found["answer"], orders, *answers)
        options = set(range(len(orders[0])))
        if any(set(order) != options or len(order) != len(options) for order in orders):
            raise ValueError("orders: expected the same options in every order")
        if outcome.answer not in options or any({*chosen} - {None} - options for chosen in answers):
            raise ValueError("expected answers among the options")
        if any(len(chosen) != len(orders) for chosen in answers):
            raise ValueError("expected an answer for each order")
        return outcome


_SHOWN: dict[str, bool | None] = {"0": False, "1": True, "-": None}


@dataclass(frozen=True, slots=True)
class ValidationOutcome:
    """Whether an item of the search was answered right: unsteered, and in each cell, in the order of the grid.

    None: the race had left the cell out.
    """

    line: int
    before: bool
    cells: tuple[bool | None, ...]

    def to_json(self) -> dict[str, Any]:
        """Its fields; the cells as a text of 0, 1, and - where they were not asked."""
        cells = "".join("-" if right is None else str(int(right)) for right in self.cells)
        return {"line": self.line, "before": self.before, "cells": cells}

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Self:
        """An outcome from its fields."""
        if not set(found["cells"]) <= _SHOWN.keys():
            raise ValueError("cells: expected 0, 1 and -")
        return cls(found["line"], bool(found["before"]), tuple(_SHOWN[right] for right in found["cells"]))


@dataclass(frozen=True, slots=True)
class TextOutcome:
    """A plain text: the sum of the log-probabilities of the `tokens` of its second half, without and with steering.

    None where it is not finite.
    """

    line: int
    tokens: int
    before: float | None
    after: float | None

    def to_json(self) -> dict[str, Any]:
        """Its fields."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Self:
        """An outcome from its fields."""
        before, after = (None if found[name] is None else float(found[name]) for name in ("before", "after"))
        return cls(int(found["line"]), int(found["tokens"]), before, after)


@dataclass(frozen=True, slots=True)
class Tested:
    """The outcomes of one search and test: of one seed, and in a sweep of one number of training items, `size`.

    `baseline`: of which baseline, None for the trained vector.
    """

    seed: int
    test: tuple[ItemOutcome, ...]
    validation: tuple[ValidationOutcome, ...] = ()
    size: int | None = None
    baseline: str | None = None


@dataclass(frozen=True, slots=True)
class Condition:
    """The outcomes of another vector than the one that the search chose, on the same items, by its name."""

    name: str
    test: tuple[ItemOutcome, ...]
    validation: tuple[ValidationOutcome, ...]
    retention: tuple[ItemOutcome, ...] = ()
    texts: tuple[TextOutcome, ...] = ()


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Everything that a report is computed from."""

    tested: tuple[Tested, ...]
    retention: tuple[ItemOutcome, ...] = ()
    texts: tuple[TextOutcome, ...] = ()
    conditions: tuple[Condition, ...] = ()

    def to_jsonl(self) -> bytes:
        """The file."""
        rows: list[dict[str, Any]] = []
        for found in self.tested:
            name: dict[str, Any] = {"seed": found.seed} | ({} if found.size is None else {"size": found.size})
            name |= {} if found.baseline is None else {"baseline": found.baseline}
            rows += [{"part": "validation", **name, **item.to_json()} for item in found.validation]
            rows += [{"part": "test", **name, **item.to_json()} for item in found.test]
        rows += _lines(self)
        for condition in self.conditions:
            name = {"condition": condition.name}
            rows += [{"part": "validation", **name, **item.to_json()} for item in condition.validation]
            rows += [{"part": "test", **name, **item.to_json()} for item in condition.test]
            rows += [{**row, **name} for row in _lines(condition)]
        return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows).encode()

    @classmethod
    def from_jsonl(cls, content: bytes, name: str = OUTCOMES) -> Self:
        """The outcomes of a file. Raises `InvalidData` at the line that cannot be read."""
        tests: dict[tuple[int, int | None, str | None], _Read] = {}
        own = _Read()
        conditions: dict[str, _Read] = {}
        for number, line in enumerate(content.splitlines(), 1):
            try:
                found = json.loads(line)
                part = found["part"]
                if (condition := found.get("condition")) is not None:
                    conditions.setdefault(str(condition), _Read()).add(found)
                elif part in ("test", "validation"):
                    name_of_test = (found["seed"], found.get("size"), found.get("baseline"))
                    tests.setdefault(name_of_test, _Read()).add(found)
                else:
                    own.add(found)
            except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
                raise InvalidData(f"is no outcome of an item ({error!r:.100})", name, number) from None
        tested = (
            Tested(seed, tuple(read.test), tuple(read.validation), size, baseline)
            for (seed, size, baseline), read in tests.items()
        )
        others = (
            Condition(name, tuple(read.test), tuple(read.validation), tuple(read.retention), tuple(read.texts))
            for name, read in conditions.items()
        )
        return cls(tuple(tested), tuple(own.retention), tuple(own.texts), tuple(others))


@dataclass(frozen=True, slots=True)
class _Read:
    """What has been read of one vector, by part."""

    test: list[ItemOutcome] = field(default_factory=list)
    validation: list[ValidationOutcome] = field(default_factory=list)
    retention: list[ItemOutcome] = field(default_factory=list)
    texts: list[TextOutcome] = field(default_factory=list)

    def add(self, found: dict[str, Any]) -> None:
        """Add a line. Raises `ValueError`, `KeyError` and `TypeError`."""
        match found["part"]:
            case "test":
                self.test.append(ItemOutcome.from_json(found))
            case "validation":
                self.validation.append(ValidationOutcome.from_json(found))
            case "retention":
                self.retention.append(ItemOutcome.from_json(found))
            case "retention_text":
                self.texts.append(TextOutcome.from_json(found))
            case part:
                raise ValueError(f"part: expected test, validation, retention or retention_text, got {part!r}")


def _lines(kept: Outcomes | Condition) -> list[dict[str, Any]]:
    """The lines of what a vector should not change."""
    rows = [{"part": "retention", **item.to_json()} for item in kept.retention]
    return rows + [{"part": "retention_text", **text.to_json()} for text in kept.texts]


def outcomes_of(questions: Sequence[Question], before: Choices, after: Choices) -> tuple[ItemOutcome, ...]:
    """The outcomes of `questions` from the places chosen, `[prompts]`, an item's prompts next to each other.

    An item has a prompt for each of its rotations, or only the one that shows it, whichever there are; a pair has one.
    """
    rotates = before.size > len(questions)
    found = []
    first = 0
    for question in questions:
        if isinstance(question, ShownItem):
            item = question.item
            asked = question.rotations() if rotates else (question,)
            orders = tuple(shown.order for shown in asked)
            of_item = (item.line, item.group, item.choices, item.answer)
        else:
            orders = ((0, 1),)
            of_item = (question.line, question.group, (), 0)
        places = slice(first, first + len(orders))
        answers = (_options(orders, before[places]), _options(orders, after[places]))
        found.append(ItemOutcome(*of_item, orders, *answers))
        first += len(orders)
    assert first == before.size == after.size
    return tuple(found)


def validation_outcomes(questions: Sequence[Question], right: Right) -> tuple[ValidationOutcome, ...]:
    """The outcomes of the items of a search: `right` is `[1 + cells, items]`, unsteered first."""
    lines = (question.item.line if isinstance(question, ShownItem) else question.line for question in questions)
    return tuple(
        ValidationOutcome(line, bool(column[0]), tuple(None if one == NOT_ASKED else bool(one) for one in column[1:]))
        for line, column in zip(lines, right.T.tolist(), strict=True)
    )


def right_of(outcomes: Sequence[ValidationOutcome]) -> Right:
    """The inverse of `validation_outcomes`: `[1 + cells, items]`."""
    rows = [[NOT_ASKED if one is None else int(one) for one in (item.before, *item.cells)] for item in outcomes]
    return np.asarray(rows, dtype=np.int8).T


def scores(outcomes: Iterable[ItemOutcome]) -> tuple[Floats, Floats]:
    """The scores `[items]` without and with steering."""
    found = [(item.score_before, item.score_after) for item in outcomes]
    before, after = np.asarray(found, dtype=np.float64).reshape(-1, 2).T
    return before, after


def groups_of(outcomes: Iterable[ItemOutcome]) -> list[str | None]:
    """The group of each item."""
    return [item.group for item in outcomes]


def _options(orders: Sequence[tuple[int, ...]], places: Choices) -> Answers:
    return tuple(order[int(place)] if place >= 0 else None for order, place in zip(orders, places, strict=True))


def _share(answers: Answers, answer: int) -> float:
    return sum(chosen == answer for chosen in answers) / len(answers)
