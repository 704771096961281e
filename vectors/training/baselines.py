"""Baselines: what a trained vector is compared with, on the same training, validation and test items.

    random, logistic, lda, pca   directions from the activations that the vector is made from (`baseline_directions`)
    caa                          the mean difference at the answer's letter: the right one minus a wrong one
                                 (contrastive activation addition, Rimsky et al. 2024, arXiv:2312.06681)
    prompt                       a system prompt, unsteered
    icl                          ten solved examples before every prompt, unsteered

Directions are searched over the grid of the vector; of each baseline, the candidate that answers most validation items
correctly is tested once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from vectors.data.items import ShownItem
from vectors.errors import InvalidData, InvalidMethod
from vectors.training.baseline_directions import lda_direction, logistic_direction, pca_direction, random_direction
from vectors.training.contrast import Answered, Contrast
from vectors.training.directions import Directions, KeptActivations
from vectors.training.examiner import Advance, Examiner, Question, answers_of
from vectors.training.held_out import interval_report
from vectors.training.method import Method
from vectors.training.model_view import ModelView
from vectors.training.options import Baseline
from vectors.training.outcomes import (
    ItemOutcome,
    Tested,
    ValidationOutcome,
    groups_of,
    outcomes_of,
    scores,
    validation_outcomes,
)
from vectors.training.prompts import LetteredAnswer
from vectors.training.race import Right
from vectors.training.search import Cell, best_of, search, search_by_race
from vectors.training.significance import paired_test
from vectors.training.statistics import Floats, accuracy_of

PROMPTED: tuple[Baseline, ...] = ("prompt", "icl")
"""The baselines that ask otherwise instead of steering."""

NUM_EXAMPLES = 10
"""How many solved examples the baseline `icl` has."""

SYSTEM_PROMPTS = (
    "Answer each question correctly.",
    "You answer multiple-choice questions. Read the question and every option with care, and choose the option that "
    "is right on the facts given. Do not let anyone's opinion, wish or prejudice change your answer. If the question "
    "cannot be answered from what is given, choose the option that says so.",
)
"""The system prompts that the baseline `prompt` tries, besides the method's own."""


@dataclass(frozen=True, slots=True)
class Prompted:
    """The unsteered model under another prompt, and how the report describes it."""

    examiner: Examiner
    described: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class SearchedBaseline:
    """A baseline after the search: the chosen candidate, its number, and the outcomes of all on the validation items.

    `reason`: why it could not be made; it then has no candidate.
    """

    name: Baseline
    chosen: Cell | Prompted | None = None
    number: int = 0
    validation: tuple[ValidationOutcome, ...] = ()
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class BaselineResult:
    """A baseline's line in the report, without the figures that follow from its outcomes (None: not made)."""

    shown: dict[str, Any]
    tested: Tested | None


def letters_contrast(answers: Sequence[Answered]) -> Contrast:
    """Lettered prompts with the right letter, and with a wrong one; the wrong ones take turns, so no letter is rare."""
    shown = [answer.item for answer in answers if isinstance(answer.item, ShownItem)]
    return Contrast(
        tuple(LetteredAnswer(item, item.answer) for item in shown),
        tuple(
            LetteredAnswer(item, (item.answer + 1 + number % (len(item.order) - 1)) % len(item.order))
            for number, item in enumerate(shown)
        ),
    )


def directions_of_baseline(
    name: Baseline,
    contrasts: Mapping[str, Contrast],
    directions: Mapping[str, Directions],
    kept: KeptActivations,
    layers: Sequence[int],
    seed: int,
) -> dict[str, Directions]:
    """The baseline's direction for each variant, site and layer: float32 `[layers, hidden]`, zeros where not tried.

    `directions` are the mean differences, whose lengths they have. Raises `MissingDependency`.
    """
    if name == "caa":
        return {"caa": directions["caa"]} if "caa" in directions else {}
    chance = np.random.default_rng([seed, 1])
    made: dict[str, Directions] = {}
    for variant, contrast in contrasts.items():
        found = {site: torch.zeros_like(mean) for site, mean in directions[variant].items()}
        for site, rows in found.items():
            for layer in layers:
                positive = kept.of(contrast.positive, (site, layer))
                negative = kept.of(contrast.negative, (site, layer))
                if np.isfinite(positive).all() and np.isfinite(negative).all():
                    rows[layer] = torch.from_numpy(_direction(name, positive, negative, chance)).float()
        made[variant] = found
    return made


def _direction(name: Baseline, positive: Floats, negative: Floats, chance: np.random.Generator) -> Floats:
    if name == "random":
        return random_direction(positive, negative, chance)
    if name == "logistic":
        return logistic_direction(positive, negative)
    return lda_direction(positive, negative) if name == "lda" else pca_direction(positive, negative)


def search_beside(
    cells: Sequence[Cell],
    others: Mapping[Baseline, Sequence[Cell]],
    validation: Sequence[Question],
    examiner: Examiner,
    method: Method,
    advance: Advance,
    retained: Sequence[Question],
) -> tuple[Right, list[Cell], list[SearchedBaseline]]:
    """`search` over the vector's `cells` and those of the baselines, `others`, in one pass over the items.

    Returns what `search` returns of the vector's cells, and the baselines. With the method's `race`, each has its own.
    """
    every = [*cells, *(cell for own in others.values() for cell in own)]
    ends = np.cumsum([len(cells), *map(len, others.values())]).tolist()
    fields = [range(first, last) for first, last in zip([0, *ends], ends, strict=False)]
    if method.race:
        right, every = search_by_race(every, fields, validation, examiner, advance, is_paper=method.is_paper)
    else:
        right, every = search(every, validation, examiner, advance, retained)
    searched = []
    for name, field in zip(others, fields[1:], strict=True):
        of_own = right[[0, *(1 + number for number in field)]]
        own = every[field.start : field.stop]
        searched.append(_searched_cells(name, own, validation, of_own, method))
    return right[: 1 + len(cells)], every[: len(cells)], searched


def _searched_cells(
    name: Baseline,
    cells: Sequence[Cell],
    validation: Sequence[Question],
    right: Right,
    method: Method,
) -> SearchedBaseline:
    """The best of a baseline's cells, chosen as the vector's is."""
    if not cells:
        return SearchedBaseline(name, reason=_NO_DIRECTION[name == "caa"])
    best = best_of(cells, is_paper=method.is_paper, max_loss=method.max_loss)
    number = next(number for number, cell in enumerate(cells) if cell is best)
    return SearchedBaseline(name, best, number, validation_outcomes(validation, right))


_NO_DIRECTION = ("the two groups of texts have the same activations everywhere", "pairs of texts have no letters")


def searched_prompts(
    name: Baseline,
    view: ModelView,
    method: Method,
    exemplars: Sequence[ShownItem],
    training: Sequence[Question],
    validation: Sequence[Question],
    unsteered: Right,
) -> SearchedBaseline:
    """The system prompt, or the solved examples, with the most validation items right; the first of equals.

    `unsteered` `[items]`: which the model answers right without it.
    """
    if name == "prompt":
        own = () if method.system_prompt is None else (method.system_prompt,)
        candidates = [
            Prompted(Examiner(view, method, exemplars, text), {"system_prompt": text})
            for text in (*SYSTEM_PROMPTS, *own)
        ]
    else:
        examples = [item for item in training if isinstance(item, ShownItem)][:NUM_EXAMPLES]
        if not examples:
            return SearchedBaseline(name, reason="pairs of texts have no solved examples")
        candidates = [Prompted(Examiner(view, method, examples), {"exemplars": len(examples)})]
    try:
        right = [candidate.examiner.choose(validation, [()])[0] == answers_of(validation) for candidate in candidates]
    except (InvalidData, InvalidMethod) as error:  # too long for the model, or a template without system prompts
        return SearchedBaseline(name, reason=str(error))
    number = int(np.argmax([found.mean() for found in right]))
    outcomes = validation_outcomes(validation, np.stack([unsteered, *right]))
    return SearchedBaseline(name, candidates[number], number, outcomes)


def tested_baselines(
    searched: Sequence[SearchedBaseline],
    seed: int,
    questions: Sequence[Question],
    vector: tuple[ItemOutcome, ...],
    steered: Sequence[tuple[ItemOutcome, ...]],
    advance: Advance,
) -> tuple[BaselineResult, ...]:
    """The baselines with their outcomes on the test's `questions`: `steered` are those of directions, in their order.

    `vector` are those of the vector. Prompts are asked here; one too long for the model is reported as not made.
    """
    waiting = iter(steered)
    results = []
    for found in searched:
        shown, outcomes = _described(found), None
        if isinstance(found.chosen, Prompted):
            try:
                outcomes = _ask(found.chosen, questions, vector, advance)
            except InvalidData as error:
                shown = {"name": found.name, "reason": str(error)}
        elif found.chosen is not None:
            outcomes = next(waiting)
        tested = None if outcomes is None else Tested(seed, outcomes, found.validation, baseline=found.name)
        results.append(BaselineResult(shown, tested))
    return tuple(results)


def report_of_baselines(results: Sequence[BaselineResult], vector: Sequence[ItemOutcome]) -> list[dict[str, Any]]:
    """The table of the report, from what was chosen and the outcomes. Raises `MissingDependency`."""
    table = []
    for result in results:
        shown = dict(result.shown)
        if result.tested is not None:
            figures = figures_of(result.tested, shown["chosen"]["candidate"], vector)
            shown |= figures | {"chosen": shown["chosen"] | figures["chosen"]}
        table.append(shown)
    return table


def _ask(
    prompted: Prompted, questions: Sequence[Question], plain: Sequence[ItemOutcome], advance: Advance
) -> tuple[ItemOutcome, ...]:
    """The outcomes of `questions`, with the unsteered answers of `plain`."""
    _, chosen = prompted.examiner.balanced_scores(questions, [()], advance)
    found = outcomes_of(questions, chosen[0], chosen[0])
    return tuple(replace(one, before=other.before) for one, other in zip(found, plain, strict=True))


def _described(found: SearchedBaseline) -> dict[str, Any]:
    if found.chosen is None:
        return {"name": found.name, "reason": found.reason}
    if isinstance(found.chosen, Prompted):
        return {"name": found.name, "chosen": {"candidate": found.number, **found.chosen.described}, "norm": None}
    cell = found.chosen
    shown = {"variant": cell.variant, "site": cell.site, "layer": cell.layer, "scale": cell.scale}
    norm = cell.dose / abs(cell.scale)
    return {"name": found.name, "chosen": {"candidate": found.number, **shown, "dose": cell.dose}, "norm": norm}


def figures_of(tested: Tested, candidate: int, vector: Sequence[ItemOutcome]) -> dict[str, Any]:
    """A baseline's figures, from its outcomes and those of the vector on the same items. Raises `MissingDependency`.

    `gain` is over the unsteered model; `vector_over` tests whether the vector is better than the baseline.
    """
    before, after = scores(tested.test)
    _, of_vector = scores(vector)
    groups = groups_of(vector)
    gain, over = paired_test(before, after, groups), paired_test(after, of_vector, groups)
    accuracies = np.asarray([item.cells for item in tested.validation], dtype=np.float64).mean(axis=0)
    return {
        "accuracy": interval_report(accuracy_of(after, groups)),
        "gain": gain.gain,
        "ci95": [gain.low, gain.high],
        "p": gain.p,
        "chosen": {"validation": float(accuracies[candidate]), "selected_from": accuracies.size},
        "vector_over": {"gain": over.gain, "ci95": [over.low, over.high], "p": over.p, "method": over.method},
    }
