"""What a cell's file says of its result: what was chosen and tested, and how each test item was answered."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from vectors.formats import encode
from vectors.training.held_out import HeldOutResult, held_out_report, interval_report
from vectors.training.options import Variant
from vectors.training.outcomes import ItemOutcome
from vectors.training.report import cell_report
from vectors.training.search import Cell
from vectors.training.train import Searched

Record = dict[str, Any]
"""A cell's file."""


def cell_result(
    searched: Searched, cell: Cell, test: HeldOutResult, retention: dict[str, float] | None, *, is_paper: bool
) -> Record:
    """The result of a cell: `cell` is the best of its variant and site, `test` its test, and `retention` its change."""
    assert cell.accuracy is not None
    tested = held_out_report(test)
    del tested["letters"]
    own = [other for other in searched.cells if (other.variant, other.site) == (cell.variant, cell.site)]
    dose = {"dose": cell.dose, "relative_dose": cell.relative_dose}
    return {
        "reason": None,
        "split": searched.num_items,
        "chosen": cell_report(cell) | dose | {"vector_bytes": len(encode(cell.vector))},
        "grid": {
            "layer": [other.layer for other in own],
            "scale": [other.shown_scale for other in own],
            "validation": [other.accuracy for other in own],
        },
        "validation_baseline": searched.validation_baseline,
        "unsteered_wins": not is_paper and searched.validation_baseline >= cell.accuracy,
        "plain_baseline": searched.plain_accuracy,
        "baseline": interval_report(test.baseline),
        "test": tested,
        "items": _items(test.outcomes),
        "retention": retention,
    }


def _items(outcomes: Sequence[ItemOutcome]) -> Record:
    """How each test item was answered; `sha256` is that of the items and of how they were asked, in their order."""
    asked = [(item.line, item.group, item.choices, item.answer, item.orders) for item in outcomes]
    return {
        "sha256": hashlib.sha256(json.dumps(asked).encode()).hexdigest(),
        "prompts": [len(item.orders) for item in outcomes],
        "right_before": [item.before.count(item.answer) for item in outcomes],
        "right_after": [item.after.count(item.answer) for item in outcomes],
        "presented_before": [item.before[0] == item.answer for item in outcomes],
        "presented_after": [item.after[0] == item.answer for item in outcomes],
        "group": [item.group for item in outcomes],
    }


def failed_cell(reason: str) -> Record:
    """A cell without a result, and why."""
    return {"reason": reason}


def reason_of(variant: Variant, searched: Searched) -> str:
    """Why a search has no cell of a variant at some site."""
    notes = [note for note in searched.notes if note.startswith(f"{variant} ")]
    return notes[0] if notes else "the two groups of texts have the same activations at every layer of the site"
