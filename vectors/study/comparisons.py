"""Comparisons between the conditions of a study: with and without fine-tuning, or with and without exemplars.

A treatment is an adapter (supervised fine-tuning, SFT) or exemplars before every prompt (in-context learning, ICL).
Each gives four conditions: the base, and the treated model, each without and with a vector trained for it. Cui & Chen
2025 (arXiv:2509.22739) compare steering with both treatments in this way. Two conditions are compared on the same
held-out items of the same seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from vectors.errors import InvalidData
from vectors.study.definition import ModelCase, Study, StudyCell, StudyTask
from vectors.study.effects import categories_of
from vectors.study.figures import (
    Answers,
    Paired,
    Records,
    Row,
    adjust,
    common_seeds,
    figures_of,
    first_seed_figures,
)
from vectors.training.options import Variant
from vectors.vocabulary import Site


@dataclass(frozen=True, slots=True)
class Treatment:
    """A model and number of exemplars, and the same with an adapter or with exemplars."""

    kind: Literal["fine-tuning", "exemplars"]
    base: ModelCase
    base_icl: int
    treated: ModelCase
    icl: int

    @property
    def names(self) -> tuple[str, str]:
        """What tables call the base and the treated model."""
        if self.kind == "fine-tuning":
            return "base", "SFT"
        return f"{self.base_icl}-shot", f"{self.icl}-shot"

    @property
    def title(self) -> str:
        """What is compared, in a line."""
        if self.kind == "fine-tuning":
            exemplars = f", {self.icl} exemplars" if self.icl else ""
            return f"fine-tuning: {self.base.label} (base) and {self.treated.label} (SFT){exemplars}"
        return f"exemplars: {self.treated.label} with {self.base_icl} and with {self.icl}"


@dataclass(frozen=True, slots=True)
class Condition:
    """One of the four."""

    is_treated: bool
    is_steered: bool

    def name(self, treatment: Treatment) -> str:
        """What tables call it."""
        return treatment.names[self.is_treated] + (" + vector" if self.is_steered else "")


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two conditions, and what the difference says; `p` is small where the second is better."""

    before: Condition
    after: Condition
    meaning: str

    @property
    def is_steered(self) -> bool:
        """Whether a vector takes part, so that it depends on the variant and site."""
        return self.before.is_steered or self.after.is_steered

    def name(self, treatment: Treatment) -> str:
        """What tables call it, such as `base → SFT`."""
        return f"{self.before.name(treatment)} → {self.after.name(treatment)}"


_PLAIN, _STEERED = Condition(False, False), Condition(False, True)
_TREATED, _BOTH = Condition(True, False), Condition(True, True)

COMPARISONS = (
    Comparison(_PLAIN, _STEERED, "what a vector adds to the base"),
    Comparison(_PLAIN, _TREATED, "what the treatment adds to the base, without vectors"),
    Comparison(_TREATED, _BOTH, "what a vector, trained on the treated model, adds to it"),
    Comparison(_STEERED, _TREATED, "whether the treatment alone is better than a vector alone"),
    Comparison(_STEERED, _BOTH, "what the treatment adds where each model has its own vector"),
)
"""Those made for each treatment. Both treatments are compared with the vector in the same five ways."""

Place = tuple[Site, Variant] | tuple[None, None]


def treatments_of(study: Study, records: Records) -> list[Treatment]:
    """Each adapter of the study beside the model alone, and each number of exemplars beside none."""
    found = []
    for case in records:
        base = ModelCase(case.model, None, case.dtype)
        if case.adapter is not None and base in records:
            found += [Treatment("fine-tuning", base, icl, case, icl) for icl in study.icl]
    for case in records:
        if 0 in study.icl:
            found += [Treatment("exemplars", case, 0, case, icl) for icl in study.icl if icl]
    return found


def comparison_rows(study: Study, records: Records) -> list[Row]:
    """A row for each treatment, comparison, site, variant and task; without a vector, site and variant are None.

    `before` and `after` are the accuracies of the two conditions, letter-balanced, `presented_…` in the one order of
    the method; the figures are those of `effects.effect_rows`. A seed counts if both conditions have a result for it.
    `…_holm` are adjusted for all rows of a treatment. `reason` says why there are no figures: no seed has both results,
    or the two were tested on different items.
    """
    rows = []
    for number, treatment in enumerate(treatments_of(study, records), 1):
        family = []
        for comparison, place in _compared(study):
            for task in study.tasks:
                row = _heads(number, treatment, comparison, place) | {
                    "task": task.name,
                    "attribute": task.attribute,
                    "category": task.category,
                }
                family.append(row | _figures({task.name: _paired(study, records, treatment, comparison, place, task)}))
        adjust(family)
        rows += family
    return rows


def comparison_means(study: Study, records: Records) -> list[Row]:
    """A row for each treatment, comparison, site, variant and category of tasks, as `effects.mean_rows` has them."""
    rows = []
    for number, treatment in enumerate(treatments_of(study, records), 1):
        for comparison, place in _compared(study):
            for category, tasks in categories_of(study).items():
                found = {task.name: _paired(study, records, treatment, comparison, place, task) for task in tasks}
                rows.append(_heads(number, treatment, comparison, place) | {"category": category} | _figures(found))
    return rows


def _compared(study: Study) -> Iterator[tuple[Comparison, Place]]:
    for comparison in COMPARISONS:
        if not comparison.is_steered:
            yield comparison, (None, None)
            continue
        for site in study.sites:
            for variant in study.variants:
                yield comparison, (site, variant)


def _heads(number: int, treatment: Treatment, comparison: Comparison, place: Place) -> Row:
    return {
        "treatment": number,
        "kind": treatment.kind,
        "model": treatment.treated.model,
        "adapter": treatment.treated.adapter,
        "icl": treatment.icl,
        "comparison": comparison.name(treatment),
        "site": place[0],
        "variant": place[1],
    }


def _paired(
    study: Study, records: Records, treatment: Treatment, comparison: Comparison, place: Place, task: StudyTask
) -> dict[int, Paired] | str:
    """By seed the answers of both conditions, or why they cannot be compared."""
    found = {}
    for seed in study.seeds:
        sides = [
            _answers(study, records, treatment, condition, place, task, seed)
            for condition in (comparison.before, comparison.after)
        ]
        if sides[0] is not None and sides[1] is not None:
            try:
                found[seed] = Paired(sides[0], sides[1])
            except InvalidData as error:
                return f"seed {seed}: {error.reason}"
    return found or "no seed has a result of both"


def _answers(
    study: Study,
    records: Records,
    treatment: Treatment,
    condition: Condition,
    place: Place,
    task: StudyTask,
    seed: int,
) -> Answers | None:
    """The answers under a condition. Without a vector every variant and site has the same, and any will do."""
    case, icl = (treatment.treated, treatment.icl) if condition.is_treated else (treatment.base, treatment.base_icl)
    places: list[Place] = [place]
    if not condition.is_steered:
        places = [(site, variant) for site in study.sites for variant in study.variants]
    for site, variant in places:
        assert site is not None
        assert variant is not None
        record = records[case].get(StudyCell(task.name, variant, site, icl, seed))
        if record is not None and record["reason"] is None:
            return Answers.of(record, is_steered=condition.is_steered)
    return None


def _figures(tasks: Mapping[str, dict[int, Paired] | str]) -> Row:
    """The figures over the tasks that can be compared."""
    given = [found for found in tasks.values() if not isinstance(found, str)]
    reasons = [found for found in tasks.values() if isinstance(found, str)]
    common = common_seeds(given)
    row: Row = {"tasks": len(given), "seeds": len(common)}
    row |= figures_of(list(common.values()), "before", "after")
    del row["letter_bias"]
    return (
        row
        | first_seed_figures([next(iter(found.values())) for found in given])
        | {"reason": next(iter(reasons), None)}
    )
