"""The report of a training as JSON: what was done, what was found, and how sure it is.

`plots.py` draws its plots.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vectors.data.items import ChoiceItem, DataSet
from vectors.data.split import gold_places
from vectors.training.held_out import HeldOutResult, held_out_report, interval_report
from vectors.training.method import Method
from vectors.training.search import Cell
from vectors.training.statistics import seeds_test


@dataclass(frozen=True, slots=True)
class SeedResult:
    """One split's search and test."""

    seed: int
    chosen: Cell
    cells: list[Cell]
    validation_baseline: float
    unsteered_wins: bool
    test: HeldOutResult
    plain_accuracy: float | None
    num_items: dict[str, int]
    num_tokens: int
    notes: list[str] = field(default_factory=list)


def cell_report(cell: Cell) -> dict[str, Any]:
    """A cell of the grid as shown in the report."""
    return {
        "variant": cell.variant,
        "site": cell.site,
        "layer": cell.layer,
        "scale": cell.shown_scale,
        "validation": cell.accuracy,
    }


def training_report(
    data: DataSet,
    method: Method,
    results: Sequence[SeedResult],
    retention: dict[str, Any],
    seconds: dict[str, float],
) -> dict[str, Any]:
    """Everything except the verdict. `seconds` by phase."""
    first = results[0]
    chosen, test = first.chosen, first.test
    choices = [item for item in data.items if isinstance(item, ChoiceItem)]
    num_asked = sum(
        result.num_items["train"] + result.num_items["validation"] * (1 + len(result.cells)) for result in results
    )
    asking = sum(seconds.get(phase, 0.0) for phase in ("answering", "searching"))
    reported: dict[str, Any] = {
        "method": method.to_json(),
        "data": {
            "name": data.name,
            "sha256": data.sha256,
            "items": len(data.items),
            "split": first.num_items,
            "gold_places_in_source": gold_places(choices) if choices else None,
        },
        "seed": first.seed,
        "baseline": {"validation": first.validation_baseline, "test": interval_report(test.baseline)},
        "chosen": {
            "variant": chosen.variant,
            "site": chosen.site,
            "layers": [chosen.layer],
            "scale": chosen.scale,
            "grid_scale": chosen.shown_scale,
            "dose": chosen.dose,
            "relative_dose": chosen.relative_dose,
            "validation": chosen.accuracy,
        },
        "grid": [cell_report(cell) for cell in first.cells],
        "test": held_out_report(test),
        "retention": retention,
        "notes": first.notes + _letter_note(choices),
        "seconds": {phase: round(value, 3) for phase, value in seconds.items()},
        "items_per_second": round(num_asked / asking, 1) if asking > 0 else None,
    }
    if method.icl:
        reported["icl"] = {"exemplars": method.icl, "plain_baseline_test": first.plain_accuracy}
    if len(results) > 1:
        reported["seeds"] = _seeds_report(results)
    return reported


def _letter_note(choices: Sequence[ChoiceItem]) -> list[str]:
    places = {name: count for name, count in gold_places(choices).items() if count} if choices else {}
    if len(places) != 1:
        return []
    letter = next(iter(places))
    return [
        f"letter bias in the source: the right answer is {letter} in all {len(choices)} items, so in that "
        f"order always saying {letter} would score 100 %"
    ]


def _seeds_report(results: Sequence[SeedResult]) -> dict[str, Any]:
    """Each seed, and the paper's one-sided t-test on their gains. It overstates the evidence, as seeds share items."""
    differences = [result.test.paired.gain for result in results]
    found = seeds_test(differences)
    presented = seeds_test([result.test.presented_gain for result in results])
    return {
        "each": [
            {
                "seed": result.seed,
                "baseline": result.test.baseline.value,
                "steered": result.test.steered.value,
                "gain": result.test.paired.gain,
                "presented_gain": result.test.presented_gain,
                "chosen": cell_report(result.chosen),
            }
            for result in results
        ],
        "t_test": None if found is None else dataclasses.asdict(found),
        "t_test_as_presented": None if presented is None else dataclasses.asdict(presented),
    }
