"""What a study chose and what it cost: layer, scale and dose by seed, the vector's bytes, and seconds by phase."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator

from vectors.study.definition import Study, StudyCell
from vectors.study.effects import name_of
from vectors.study.figures import Record, Records, Row, mean

PHASES = ("answering", "reading activations", "searching", "testing", "retention")
"""The phases of a search, whose seconds are shared by all variants and sites of a task, exemplars and seed."""


def chosen_rows(study: Study, records: Records) -> list[Row]:
    """A row for each cell with a result, one seed after the other.

    `vector_bytes` are those of the vector's safetensors file, `adapter_bytes` those of the adapter's files, None
    without an adapter. `seconds`, in all and by phase, and `items_per_second` are those of the search, which
    `searched_together` cells share.
    """
    attributes = {task.name: task.attribute for task in study.tasks}
    return [
        name_of(case) | _chosen(cell, cells[cell], attributes[cell.task])
        for case, cells in records.items()
        for cell in study.cells()
        if cell in cells and cells[cell]["reason"] is None
    ]


def stability_rows(study: Study, records: Records) -> list[Row]:
    """A row for each model, number of exemplars, site, variant and task with a result: how stable the choice is.

    `choices` counts the chosen pairs of layer and scale, most frequent first. `dose` is the median over seeds,
    `relative_dose` its length in lengths of the activation. `seconds` and `items_per_second` are means over seeds.
    """
    rows = []
    for names, own in _by(chosen_rows(study, records), ("model", "adapter", "icl", "site", "variant", "attribute")):
        doses = [row["dose"] for row in own]
        rows.append(
            names
            | {
                "seeds": len(own),
                "choices": Counter((row["layer"], row["scale"]) for row in own).most_common(),
                "dose": statistics.median(doses),
                "dose_low": min(doses),
                "dose_high": max(doses),
                "relative_dose": statistics.median(row["relative_dose"] for row in own),
                "vector_bytes": max(row["vector_bytes"] for row in own),
                "adapter_bytes": own[0]["adapter_bytes"],
                "seconds": mean([row["seconds"] for row in own]),
                "items_per_second": mean([row["items_per_second"] for row in own]),
            }
        )
    return rows


def time_rows(study: Study, records: Records) -> list[Row]:
    """A row for each model, number of exemplars and task: a search's mean seconds over seeds, in all and by phase."""
    rows = []
    for names, own in _by(chosen_rows(study, records), ("model", "adapter", "icl", "attribute")):
        searches = list({row["seed"]: row for row in own}.values())
        columns = ("seconds", *SECONDS.values(), "items_per_second")
        rows.append(
            names | {"seeds": len(searches)} | {name: mean([row[name] for row in searches]) for name in columns}
        )
    return rows


SECONDS = {phase: f"seconds_{phase.replace(' ', '_')}" for phase in PHASES}


def _chosen(cell: StudyCell, record: Record, attribute: str) -> Row:
    chosen = record["chosen"]
    return {
        "icl": cell.icl,
        "site": cell.site,
        "variant": cell.variant,
        "task": cell.task,
        "attribute": attribute,
        "seed": cell.seed,
        "layer": chosen["layer"],
        "scale": chosen["scale"],
        "dose": chosen["dose"],
        "relative_dose": chosen["relative_dose"],
        "validation_baseline": record["validation_baseline"],
        "validation": chosen["validation"],
        "unsteered_wins": record["unsteered_wins"],
        "vector_bytes": chosen["vector_bytes"],
        "adapter_bytes": record["adapter_bytes"],
        "seconds": sum(record["seconds"].values()),
        **{name: record["seconds"].get(phase, 0.0) for phase, name in SECONDS.items()},
        "items_per_second": record["items_per_second"],
        "searched_together": record["searched_together"],
    }


def _by(rows: list[Row], names: tuple[str, ...]) -> Iterator[tuple[Row, list[Row]]]:
    """The rows that have the same values in some columns, with these."""
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    for values, own in groups.items():
        yield dict(zip(names, values, strict=True)), own
