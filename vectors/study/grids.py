"""The gain by layer and scale: how far each cell of the grid is above the baseline on validation items.

Means are over tasks and seeds. The best cell of a grid is the best of many and its gain therefore too high; the grid
shows where a model can be steered, not how well.
"""

from __future__ import annotations

from vectors.study.definition import Study, StudyTask
from vectors.study.effects import categories_of, name_of
from vectors.study.figures import Record, Records, Row, mean
from vectors.training.significance import resampled_error

_Cell = tuple[int, float]


def grid_rows(study: Study, records: Records) -> list[Row]:
    """A row for each model, number of exemplars, site, variant, category of tasks, layer and scale that was tried.

    `gain` is the mean over seeds of the mean over tasks of validation accuracy less the baseline's, shares of 1.
    `standard_error` is that of the mean over seeds, corrected for splits of one pool sharing items (Nadeau & Bengio
    2003, "Inference for the generalization error"); None for a single seed. Tasks with any result count, and seeds in
    which all of these tried the cell.
    """
    rows = []
    for case, cells in records.items():
        for icl in study.icl:
            for site in study.sites:
                for variant in study.variants:
                    done = {
                        (cell.task, cell.seed): record
                        for cell, record in cells.items()
                        if (cell.variant, cell.site, cell.icl) == (variant, site, icl) and record["reason"] is None
                    }
                    for category, tasks in categories_of(study).items():
                        heads = name_of(case) | {"icl": icl, "site": site, "variant": variant, "category": category}
                        rows += [heads | row for row in _grid(study, tasks, done)]
    return rows


def _grid(study: Study, tasks: list[StudyTask], done: dict[tuple[str, int], Record]) -> list[Row]:
    gains = {name: _gains(record) for name, record in done.items()}
    given = [task.name for task in tasks if any((task.name, seed) in done for seed in study.seeds)]
    tried = sorted({cell for (task, _), found in gains.items() if task in given for cell in found})
    rows = []
    for layer, scale in tried:
        seeds = [seed for seed in study.seeds if all((layer, scale) in gains.get((task, seed), {}) for task in given)]
        values = [sum(gains[task, seed][layer, scale] for task in given) / len(given) for seed in seeds]
        splits = [done[task, seed]["split"] for task in given for seed in seeds]
        ratio = sum(split["validation"] for split in splits) / max(1, sum(split["train"] for split in splits))
        rows.append(
            {
                "layer": layer,
                "scale": scale,
                "tasks": len(given),
                "seeds": len(seeds),
                "gain": mean(values),
                "standard_error": resampled_error(values, ratio) if len(values) > 1 else None,
            }
        )
    return rows


def _gains(record: Record) -> dict[_Cell, float]:
    grid = record["grid"]
    return {
        (layer, scale): accuracy - record["validation_baseline"]
        for layer, scale, accuracy in zip(grid["layer"], grid["scale"], grid["validation"], strict=True)
    }
