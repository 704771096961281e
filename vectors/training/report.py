"""The report of a training as JSON: what was done, what was found, and how sure it is.

The figures come from outcomes alone, so `recomputed.py` can compute them again. `plots.py` draws its plots.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vectors.data.items import ChoiceItem, DataSet
from vectors.data.split import gold_places
from vectors.training.adaptive_search import TestedAdaptive
from vectors.training.baselines import BaselineResult
from vectors.training.held_out import HeldOutResult, held_out_report, interval_report
from vectors.training.method import Method
from vectors.training.outcomes import ValidationOutcome, right_of
from vectors.training.race import NOT_ASKED
from vectors.training.search import Cell
from vectors.training.significance import SeedsTest, corrected_seeds_test, resampled_error, seeds_test


@dataclass(frozen=True, slots=True)
class SeedResult:
    """One split's search and test. `validation` are the outcomes of the search."""

    seed: int
    chosen: Cell
    cells: list[Cell]
    validation: tuple[ValidationOutcome, ...]
    validation_baseline: float
    test: HeldOutResult
    plain_accuracy: float | None
    num_items: dict[str, int]
    num_tokens: int
    notes: list[str] = field(default_factory=list)
    baselines: tuple[BaselineResult, ...] = ()
    adaptive: TestedAdaptive | None = None


def cell_report(cell: Cell) -> dict[str, Any]:
    """A cell of the grid as shown in the report."""
    shown = {
        "variant": cell.variant,
        "site": cell.site,
        "layer": cell.layer,
        "scale": cell.shown_scale,
        "validation": cell.accuracy,
    }
    shown |= {} if cell.bounds is None else {"validation_bounds": list(cell.bounds)}
    return shown if cell.loss is None else shown | {"retention_loss": cell.loss}


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
            "selected_from": len(first.cells),
            "selection": selection_note(len(first.cells)),
        },
        "race": race_report(first.validation) if method.race else None,
        "grid": [cell_report(cell) for cell in first.cells],
        "test": held_out_report(test),
        "retention": retention,
        "notes": first.notes + _letter_note(choices),
        "seconds": {phase: round(value, 3) for phase, value in seconds.items()},
        "items_per_second": answers_per_second([(found.num_items, found.validation) for found in results], seconds),
    }
    if method.icl:
        reported["icl"] = {"exemplars": method.icl, "plain_baseline_test": first.plain_accuracy}
    if len(results) > 1:
        splits = [(result.seed, result.test, result.num_items) for result in results]
        reported["seeds"] = seeds_report(splits)
        for shown, result in zip(reported["seeds"]["each"], results, strict=True):
            shown |= {"chosen": cell_report(result.chosen)}
        if method.race:
            reported["notes"].append(
                "the race leaves out cells, so there are no mean gains over seeds by layer and scale"
            )
            return reported
        grids = [grid_of_search(result) for result in results]
        reported["seeds"]["grid"] = grid_over_seeds(grids)
        names = list(dict.fromkeys(name for grid in grids for name in grid.gains))
        for shown, grid in zip(reported["seeds"]["each"], grids, strict=True):
            places = [names.index(name) for name in grid.gains]
            shown |= {"cells": None if places == list(range(len(names))) else places}
    return reported


CellName = tuple[str, str, int, float]
"""The variant, site, layer and scale of a cell."""


@dataclass(frozen=True, slots=True)
class SearchedGrid:
    """The gain over the validation baseline, -1 to 1, of every cell of one split's search, and its numbers of items."""

    gains: Mapping[CellName, float]
    split: Mapping[str, int]


def grid_of_search(result: SeedResult) -> SearchedGrid:
    """The gains of a seed's search."""
    gains: dict[CellName, float] = {
        (cell.variant, cell.site, cell.layer, cell.shown_scale): (cell.accuracy or 0.0) - result.validation_baseline
        for cell in result.cells
    }
    return SearchedGrid(gains, result.num_items)


def grid_over_seeds(grids: Sequence[SearchedGrid]) -> list[dict[str, Any]]:
    """For each cell that a seed tried, the mean gain over the seeds that did, and its standard error.

    The error is corrected for splits that share items, with the validation items in place of the test items
    (`significance.resampled_error`); None for a single seed.
    """
    found = []
    for name in dict.fromkeys(name for grid in grids for name in grid.gains):
        own = [grid for grid in grids if name in grid.gains]
        gains = [grid.gains[name] for grid in own]
        ratio = sum(grid.split["validation"] for grid in own) / sum(grid.split["train"] for grid in own)
        found.append(
            dict(zip(("variant", "site", "layer", "scale"), name, strict=True))
            | {
                "gain": sum(gains) / len(gains),
                "standard_error": resampled_error(gains, ratio) if len(gains) > 1 else None,
                "seeds": len(gains),
            }
        )
    return found


def race_report(validation: Sequence[ValidationOutcome]) -> dict[str, Any]:
    """How many cells the race left out, and how many answers of cells it took, `of` those of the whole grid."""
    cells = right_of(validation)[1:]
    asked = cells != NOT_ASKED
    return {"left_out": int((~asked.all(axis=1)).sum()), "answers": int(asked.sum()), "of": int(asked.size)}


def answers_per_second(
    searches: Iterable[tuple[Mapping[str, int], Sequence[ValidationOutcome]]], seconds: Mapping[str, float]
) -> float | None:
    """The pace of searches, each given by its numbers of items and its outcomes; None where they took no time."""
    num_asked = sum(
        num_items["train"] + int((right_of(validation) != NOT_ASKED).sum()) for num_items, validation in searches
    )
    asking = sum(seconds.get(phase, 0.0) for phase in ("answering", "searching"))
    return round(num_asked / asking, 1) if asking > 0 else None


def selection_note(num_cells: int) -> str:
    """What the validation accuracy of the chosen cell is, in a clause."""
    if num_cells == 1:
        return "the only cell"
    return f"the best of {num_cells} cells on the validation items, so higher than on other items"


def _letter_note(choices: Sequence[ChoiceItem]) -> list[str]:
    places = {name: count for name, count in gold_places(choices).items() if count} if choices else {}
    if len(places) != 1:
        return []
    letter = next(iter(places))
    return [
        f"letter bias in the source: the right answer is {letter} in all {len(choices)} items, so in that "
        f"order always saying {letter} would score 100 %"
    ]


def seeds_report(splits: Sequence[tuple[int, HeldOutResult, Mapping[str, int]]]) -> dict[str, Any]:
    """The seeds' tests and numbers of items, and the tests of their mean gain.

    `corrected` is the one to go by. `t_test` is the paper's one-sided t-test, which overstates the evidence, as seeds
    share items.
    """
    tests = [test for _, test, _ in splits]
    found = seeds_test([test.paired.gain for test in tests])
    presented = seeds_test([test.presented.gain for test in tests])
    corrected = over_seeds(splits)
    return {
        "each": [
            {
                "seed": seed,
                "split": dict(num_items),
                "baseline": test.baseline.value,
                "steered": test.steered.value,
                "gain": test.paired.gain,
                "standard_error": test.paired.standard_error,
                "presented_gain": test.presented.gain,
            }
            for seed, test, num_items in splits
        ],
        "corrected": None if corrected is None else dataclasses.asdict(corrected),
        "t_test": None if found is None else dataclasses.asdict(found),
        "t_test_as_presented": None if presented is None else dataclasses.asdict(presented),
    }


def over_seeds(splits: Sequence[tuple[int, HeldOutResult, Mapping[str, int]]]) -> SeedsTest | None:
    """The corrected test of the mean gain over seeds; None for a single one."""
    return corrected_seeds_test(
        [test.paired.gain for _, test, _ in splits],
        [test.paired.standard_error for _, test, _ in splits],
        sum(num_items["test"] for *_, num_items in splits) / sum(num_items["train"] for *_, num_items in splits),
    )
