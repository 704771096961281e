"""The effects of a study: what each variant's vector does at each site on each task, and its mean over categories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vectors.study.definition import ModelCase, Study, StudyCell, StudyTask
from vectors.study.figures import (
    Answers,
    Paired,
    Record,
    Records,
    Row,
    adjust,
    common_seeds,
    figures_of,
    first_seed_figures,
    mean,
)

OVERALL = "overall"
"""The category of all tasks together."""


def effect_rows(study: Study, records: Records) -> list[Row]:
    """A row for each model, number of exemplars, site, variant and task, in the study's order.

    Accuracies and effects are means over seeds, shares of 1. Intervals, `t` and the one-sided `p` are those of the
    corrected resampled t-test, and Student's over seeds for `presented_…`; with a single seed the interval is that of
    its items, without t and p. `over_chance` is the steered model's lead over always saying one letter, `over_text`
    over answering by the options' texts alone. `exact_p`, `over_chance_p`, `over_text_p` and the counts come from the
    first seed with a result. `…_holm` are adjusted for all tasks, sites and variants of the same model and exemplars,
    so that the best of these may be picked out. None means that there is no such figure.
    """
    rows = []
    for case, cells in records.items():
        for icl in study.icl:
            family = [
                _effect_row(case, task, [StudyCell(task.name, variant, site, icl, seed) for seed in study.seeds], cells)
                for site in study.sites
                for variant in study.variants
                for task in study.tasks
            ]
            adjust(family)
            rows += family
    return rows


def mean_rows(study: Study, records: Records) -> list[Row]:
    """A row for each model, number of exemplars, site, variant and category of tasks, then one over all tasks.

    A seed's figure is its mean over the tasks with any result; only seeds with all of these tasks count. `exact_p` is
    for the items of all tasks' first seeds together.
    """
    rows = []
    for case, cells in records.items():
        for icl in study.icl:
            for site in study.sites:
                for variant in study.variants:
                    for category, tasks in categories_of(study).items():
                        seeds = {
                            task.name: [StudyCell(task.name, variant, site, icl, seed) for seed in study.seeds]
                            for task in tasks
                        }
                        found = {"variant": variant, "site": site, "icl": icl, "category": category}
                        rows.append(name_of(case) | found | _mean_row(seeds, cells))
    return rows


def categories_of(study: Study) -> dict[str, list[StudyTask]]:
    """The tasks of each category, and of all together."""
    names = dict.fromkeys(task.category for task in study.tasks)
    found = {name: [task for task in study.tasks if task.category == name] for name in names}
    return found | {OVERALL: list(study.tasks)}


def name_of(case: ModelCase) -> Row:
    """The columns that name a model."""
    return {"model": case.model, "adapter": case.adapter}


def _steering(record: Record) -> Paired:
    return Paired(Answers.of(record, is_steered=False), Answers.of(record, is_steered=True))


def _effect_row(case: ModelCase, task: StudyTask, seeds: Sequence[StudyCell], cells: Mapping[StudyCell, Record]) -> Row:
    known = [cells[cell] for cell in seeds if cell in cells]
    done = [record for record in known if record["reason"] is None]
    first = seeds[0]
    row = name_of(case) | {
        "task": task.name,
        "attribute": task.attribute,
        "category": task.category,
        "variant": first.variant,
        "site": first.site,
        "icl": first.icl,
        "seeds": len(done),
        "failed": len(known) - len(done),
        "missing": len(seeds) - len(known),
        "unsteered_wins": sum(record["unsteered_wins"] for record in done),
    }
    steered = [_steering(record) for record in done]
    row |= figures_of([[one] for one in steered], "baseline", "steered")
    for bar in ("over_chance", "over_text"):
        row[bar] = mean([record["test"][bar]["gain"] for record in done])
        row[f"{bar}_p"] = done[0]["test"][bar]["p"] if done else None
    changes = [record["retention"]["change"] for record in done if record["retention"] is not None]
    return (
        row
        | first_seed_figures(steered[:1])
        | {
            "retention_change": mean(changes),
            "reason": next((record["reason"] for record in known if record["reason"] is not None), None),
        }
    )


def _mean_row(seeds: Mapping[str, Sequence[StudyCell]], cells: Mapping[StudyCell, Record]) -> Row:
    done = [
        {cell.seed: cells[cell] for cell in own if cell in cells and cells[cell]["reason"] is None}
        for own in seeds.values()
    ]
    given = [found for found in done if found]
    steered = [{seed: _steering(record) for seed, record in found.items()} for found in given]
    common = common_seeds(steered)
    row: Row = {"tasks": len(given), "tasks_failed": len(done) - len(given), "seeds": len(common)}
    row |= figures_of(list(common.values()), "baseline", "steered")
    for bar in ("over_chance", "over_text"):
        row[bar] = mean([mean([found[seed]["test"][bar]["gain"] for found in given]) for seed in common])
    return row | first_seed_figures([next(iter(found.values())) for found in steered])
