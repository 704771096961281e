"""Training: labelled data -> steering vector, with an honest report of whether it helps.

    split -> answer (unsteered) -> contrast -> read activations -> search the grid -> test once -> retention

Painless Activation Steering (Cui & Chen 2025, arXiv:2509.22739) with this project's corrections: letters balanced per
item, the unsteered model competes, ties go to the smallest dose, and only items that took no part in the choice decide
whether it helps.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vectors.data.items import ChoiceItem, DataSet, PairItem, ShownItem, TextItem
from vectors.data.split import Parts, shuffle_alike, shuffle_options, split_items
from vectors.errors import InvalidData, InvalidMethod
from vectors.training.adaptive_search import Around, SearchedAdaptive, TestedAdaptive, search_adaptive
from vectors.training.adaptive_training import Better, better_of, conditions_of
from vectors.training.baselines import (
    PROMPTED,
    SearchedBaseline,
    directions_of_baseline,
    letters_contrast,
    report_of_baselines,
    search_beside,
    searched_prompts,
    tested_baselines,
)
from vectors.training.contrast import Answered, Contrast, contrast_of
from vectors.training.directions import AnswersAndActivations
from vectors.training.examiner import Examiner, Question
from vectors.training.held_out import held_out_report, measure_steerings
from vectors.training.method import Method
from vectors.training.model_view import ModelView
from vectors.training.options import Variant
from vectors.training.outcomes import Condition, Outcomes, Tested, ValidationOutcome, validation_outcomes
from vectors.training.progress import Report, WorkPlan
from vectors.training.report import SeedResult, over_seeds, training_report
from vectors.training.retention import MAX_RETENTION_ITEMS, check_retention, harm_of, retention_of, retention_report
from vectors.training.search import (
    Cell,
    best_of,
    grid_of,
)
from vectors.training.verdict import verdict_of
from vectors.vector import SteeringVector


@dataclass(frozen=True, slots=True)
class TrainingData:
    """The data of a training: labelled items, separate validation items if given, and retention data."""

    items: DataSet
    validation: DataSet | None = None
    retention_items: DataSet | None = None
    retention_texts: tuple[TextItem, ...] = ()


@dataclass(frozen=True, slots=True)
class Trained:
    """`vector` is None if nothing is to be published; `cells` are those of the first seed.

    `outcomes` are what the report was computed from.
    """

    vector: SteeringVector | None
    report: dict[str, Any]
    outcomes: Outcomes
    cells: list[Cell]
    num_tokens: int

    @property
    def is_recommended(self) -> bool:
        """Whether the report recommends the vector."""
        return bool(self.report["recommended"])

    @property
    def reason(self) -> str:
        """Why, in a sentence."""
        return str(self.report["reason"])


def check_fit(method: Method, view: ModelView) -> tuple[int, ...]:
    """The layers to try. Raises `InvalidMethod` if the method needs what the model does not have."""
    lacking = [site for site in method.sites if site not in view.sites]
    if lacking:
        raise InvalidMethod(f"site: expected one of {', '.join(view.sites)} for this model, got {lacking[0]!r}", "site")
    if method.prompt == "chat" and not view.has_chat_template:
        raise InvalidMethod("prompt: this model has no chat template; use raw", "prompt")
    if method.system_prompt is not None and "prompt" not in (method.baselines or ()):
        raise InvalidMethod("system_prompt: only the baseline prompt uses it; add baselines: prompt", "system_prompt")
    if method.race and method.search_retention:
        raise InvalidMethod("race: search_retention needs every cell of the grid; leave out one of the two", "race")
    return method.layers_for(view.num_layers)


def train(view: ModelView, data: TrainingData, method: Method, *, seed: int, report: Report) -> Trained:
    """Train and test; the vector is the first seed's.

    Raises `InvalidMethod`, `InvalidData` (for example if the model answers everything correctly, which leaves nothing
    to contrast) and what the view raises.
    """
    check_fit(method, view)
    plan = WorkPlan(report, expected_work(data, method, view))
    tested = parts_of(data, method, seed).test
    retention = retention_of(
        data.retention_items,
        data.retention_texts,
        show(tested, method, seed),
        seed,
        is_searched=method.search_retention,
    )
    if method.search_retention and not (retention.searched and retention.items):
        raise InvalidMethod("search_retention: expected two or more retention items, got none", "search_retention")
    results = [
        train_seed(view, data, one, seed + number, plan, retained=retention.searched)
        for number, one in enumerate([method] + [_without_others(method)] * (method.seeds - 1))
    ]
    first = results[0]
    plan.begin("retention", retention.num_prompts)
    plain = Examiner(view, method)
    better = constant = Better(
        first.chosen, first.test, *check_retention(view, plain, retention, first.chosen.steering, plan.advance)
    )
    conditions: tuple[Condition, ...] = ()
    adapted: dict[str, Any] | None = None
    if (found := first.adaptive) is not None:
        conditions = conditions_of(view, plain, retention, found.searched, found.tests, plan.advance)
        better, adapted = better_of(constant, found.searched, conditions, method)
    plan.end()
    kept = retention_report(better.kept_items, better.kept_texts, retention.texts_from)
    compared = report_of_baselines(first.baselines, better.test.outcomes)
    assert better.cell.accuracy is not None
    verdict = verdict_of(
        better.test,
        method,
        kept,
        unsteered_wins=not method.is_paper and first.validation_baseline >= better.cell.accuracy,
        gains=[result.test.paired.gain for result in results],
        over_seeds=over_seeds([(result.seed, result.test, result.num_items) for result in results]),
        baselines=compared,
    )
    reported = training_report(data.items, method, results, kept, plan.seconds) | {"test": held_out_report(better.test)}
    reported["notes"] += harm_of(kept)
    reported |= {} if adapted is None else {"adaptive": adapted}
    reported |= {"baselines": compared} if method.baselines else {}
    reported |= {"recommended": verdict.is_recommended, "reason": verdict.reason, "verdict": verdict.to_json()}
    publishes = verdict.is_recommended or method.allow_no_gain
    vector = _make_vector(view, better.cell, reported) if publishes else None
    outcomes = Outcomes(
        (
            *(Tested(result.seed, result.test.outcomes, result.validation) for result in results),
            *(one.tested for one in first.baselines if one.tested is not None),
        ),
        constant.kept_items,
        constant.kept_texts,
        conditions,
    )
    return Trained(vector, reported, outcomes, first.cells, sum(result.num_tokens for result in results))


def _without_others(method: Method) -> Method:
    """The method of the further seeds, which tell how the vector varies and nothing of what it is compared with."""
    return dataclasses.replace(method, baselines=None, adaptive=None)


def expected_work(data: TrainingData, method: Method, view: ModelView) -> dict[str, float]:
    """Work by phase, in prompts; a cell costs one token per item, a small part of a prompt."""
    num_items = min(len(data.items.items), method.max_items)
    num_cells = method.num_cells(view.num_layers)
    num_validation = len(data.validation.items) if data.validation else method.split.validation * num_items
    return {
        "answering": method.split.train * num_items * method.seeds,
        "reading activations": 1.0 * method.split.train * num_items * method.seeds,
        "searching": num_validation * (1 + 0.02 * num_cells) * method.seeds,
        "testing": 6.0 * method.split.test * num_items * method.seeds,
        "retention": 400.0 + min(MAX_RETENTION_ITEMS, len(data.retention_items.items) if data.retention_items else 0),
    }


def parts_of(data: TrainingData, method: Method, seed: int) -> Parts[Any]:
    """The split of the items; given validation items replace its validation part. Raises `InvalidData`."""
    parts = split_items(data.items.items, method.split, seed, method.max_items, by_item=method.is_paper)
    if data.validation is None:
        return parts
    return dataclasses.replace(parts, validation=data.validation.items[: method.max_items])


def show(items: Sequence[ChoiceItem | PairItem], method: Method, seed: int) -> tuple[Question, ...]:
    """The items as the method asks them."""
    choices = [item for item in items if isinstance(item, ChoiceItem)]
    if len(choices) < len(items):
        return tuple(item for item in items if isinstance(item, PairItem))
    return shuffle_alike(choices, seed) if method.is_paper else shuffle_options(choices, seed)


@dataclass(frozen=True, slots=True)
class Searched:
    """One split's search over the whole grid: `answers` to the training items, `asked` the validation items, and
    `tested` the questions of the test part, not yet asked with steering.

    `plain_accuracy`: of the unsteered model on them without exemplars, None if the method has no exemplars.
    """

    seed: int
    examiner: Examiner
    answers: list[Answered]
    asked: tuple[Question, ...]
    tested: tuple[Question, ...]
    cells: list[Cell]
    validation: tuple[ValidationOutcome, ...]
    validation_baseline: float
    plain_accuracy: float | None
    num_items: dict[str, int]
    num_tokens: int
    notes: list[str]
    baselines: tuple[SearchedBaseline, ...] = ()


def train_seed(
    view: ModelView,
    data: TrainingData,
    method: Method,
    seed: int,
    plan: WorkPlan,
    num_train: int | None = None,
    *,
    retained: Sequence[Question] = (),
) -> SeedResult:
    """Search one split, with the retention items that the search may ask, and test the best cell. Raises as `train`."""
    found = search_seed(view, data, method, seed, plan, num_train, retained=retained)
    chosen = best_of(found.cells, is_paper=method.is_paper, max_loss=method.max_loss)
    assert chosen.accuracy is not None
    plan.best = chosen.accuracy
    adapted = SearchedAdaptive()
    if method.adaptive is not None:
        plan.begin("adapting", len(found.asked) + len(retained))
        number = next(number for number, cell in enumerate(found.cells) if cell is chosen)
        around = Around(chosen, number, found.answers, found.asked, found.validation)
        adapted = search_adaptive(view, found.examiner, method, around, seed, plan.advance, retained)
    plan.begin("testing", sum(len(q.order) if isinstance(q, ShownItem) else 1 for q in found.tested))
    steered = [one.chosen for one in found.baselines if isinstance(one.chosen, Cell)]
    steered += [condition.chosen for condition in adapted.conditions]
    test, *others = measure_steerings(
        found.examiner, found.tested, [chosen.steering, *(cell.steering for cell in steered)], plan.advance
    )
    outcomes = [other.outcomes for other in others]
    num_baselines = len(steered) - len(adapted.conditions)
    return SeedResult(
        seed=seed,
        chosen=chosen,
        cells=found.cells,
        validation=found.validation,
        validation_baseline=found.validation_baseline,
        test=test,
        plain_accuracy=found.plain_accuracy,
        num_items=found.num_items,
        num_tokens=found.num_tokens,
        notes=found.notes + _cost_note(chosen, method),
        baselines=tested_baselines(
            found.baselines, seed, found.tested, test.outcomes, outcomes[:num_baselines], plan.advance
        ),
        adaptive=None if method.adaptive is None else TestedAdaptive(adapted, tuple(outcomes[num_baselines:])),
    )


def search_seed(
    view: ModelView,
    data: TrainingData,
    method: Method,
    seed: int,
    plan: WorkPlan,
    num_train: int | None = None,
    *,
    retained: Sequence[Question] = (),
) -> Searched:
    """Train on one split and ask the validation items, and `retained`, under every cell. Raises as `train`."""
    parts = parts_of(data, method, seed)
    training = show(parts.train[:num_train], method, seed)
    validation, tested = show(parts.validation, method, seed), show(parts.test, method, seed)
    examiner = plain = Examiner(view, method)
    means = AnswersAndActivations(view, plain, method)
    plan.begin("answering", len(training))
    answers = means.answer(training, plan.advance)
    plain_accuracy, notes = None, []
    full = answers  # the answers and prompts of pas_full, which the authors take without exemplars
    exemplars: tuple[ShownItem, ...] = ()
    if method.icl:
        exemplars, answers = _exemplars(answers, method, seed)
        examiner = Examiner(view, method, exemplars)
        plain_accuracy = float(np.mean(plain.balanced_scores(tested, [()])[0]))
        plan.begin("answering", len(answers))
        solved = AnswersAndActivations(view, examiner, method)
        answers = solved.answer([answer.item for answer in answers], plan.advance)
        if not method.is_paper:
            means, full = solved, answers
    contrasts: dict[str, Contrast] = {}
    for variant in method.variants:
        grouped = full if variant == "pas_full" else answers
        contrast = contrast_of(variant, grouped)
        if contrast.is_usable:
            contrasts[variant] = contrast
        else:
            notes.append(f"{variant} has nothing to contrast: {_explain_one_sided(grouped, variant)}")
    if not contrasts:
        raise InvalidData(notes[0], data.items.name)
    layers, names = method.layers_for(view.num_layers), method.baselines or ()
    read = dict(contrasts)
    if "caa" in names and (letters := letters_contrast(answers)).is_usable:
        read["caa"] = letters
    plan.begin("reading activations", len(answers))
    directions, lengths = means.directions(read, full, contrasts, plan.advance)
    cells = grid_of({variant: directions[variant] for variant in contrasts}, lengths, method, layers)
    if not cells:
        raise InvalidData("the two groups of texts have the same activations everywhere", data.items.name)
    others = {
        name: grid_of(
            directions_of_baseline(name, contrasts, directions, means.kept, layers, seed), lengths, method, layers
        )
        for name in names
        if name not in PROMPTED
    }
    plan.begin("searching", len(validation) + len(retained))
    right, cells, searched = search_beside(cells, others, validation, examiner, method, plan.advance, retained)
    searched += [
        searched_prompts(name, view, method, exemplars, training, validation, right[0])
        for name in names
        if name in PROMPTED
    ]
    return Searched(
        seed=seed,
        examiner=examiner,
        answers=answers,
        asked=validation,
        tested=tested,
        cells=cells,
        validation=validation_outcomes(validation, right),
        validation_baseline=float(np.mean(right[0])),
        plain_accuracy=plain_accuracy,
        num_items={"train": len(answers), "validation": len(validation), "test": len(tested)},
        num_tokens=means.num_tokens,
        notes=notes,
        baselines=tuple(searched),
    )


def _exemplars(answers: list[Answered], method: Method, seed: int) -> tuple[tuple[ShownItem, ...], list[Answered]]:
    """`method.icl` items to be shown as solved examples, and the items to train on.

    The examples are items answered wrong, which are not trained on; as in the paper any, drawn by the seed, which are.
    """
    if method.is_paper:
        lettered = [answer.item for answer in answers if isinstance(answer.item, ShownItem)]
        if not lettered:
            raise InvalidMethod("icl: expected lettered items, got pairs of texts", "icl")
        drawn = random.Random(f"{seed} exemplars").sample(lettered, min(method.icl, len(lettered)))
        return tuple(drawn), answers
    wrong = [answer for answer in answers if not answer.is_right and isinstance(answer.item, ShownItem)][: method.icl]
    if not wrong:
        raise InvalidMethod("icl: expected lettered items that the model answers wrong, got none", "icl")
    taken = {id(answer) for answer in wrong}
    exemplars = tuple(answer.item for answer in wrong if isinstance(answer.item, ShownItem))
    return exemplars, [answer for answer in answers if id(answer) not in taken]


def _explain_one_sided(answers: Sequence[Answered], variant: Variant) -> str:
    num_right = sum(answer.is_right for answer in answers)
    if variant == "pas_full" and not isinstance(answers[0].item, ShownItem):
        return "pairs of texts have no lettered options; use ipas_wrong_only, ipas_all or mean_difference"
    found = f"the model answers {num_right} of {len(answers)} training items correctly"
    if num_right == len(answers):
        return f"{found}, so there is no wrong answer; mean_difference does not need one"
    return f"{found}, so there is no right answer; ipas_wrong_only and mean_difference do not need one"


def _cost_note(chosen: Cell, method: Method) -> list[str]:
    if chosen.loss is None or chosen.loss <= method.max_loss:
        return []
    return [f"every cell costs more than {100 * method.max_loss:g} points on the retention items of the search"]


def _make_vector(view: ModelView, chosen: Cell, report: dict[str, Any]) -> SteeringVector:
    """The chosen direction with its scale as default and the report's figures as its training record."""
    figures = {name: report[name] for name in ("method", "data", "baseline", "chosen", "test", "retention")}
    test = report["test"]
    return chosen.vector.with_defaults(
        default_scale=chosen.scale,
        description=f"{chosen.variant} at {chosen.site} {chosen.layer}: {report['reason']}"[:500],
        model=view.model_id,
        training=figures | {"recommended": report["recommended"], "reason": report["reason"], "gain": test["gain"]},
    )
