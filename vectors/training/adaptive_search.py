"""The search for an adaptive vector, after that of the constant one, on the same validation items.

Beside its candidates it asks the constant vector at other scales, to find the one that is right as often as the
adaptive vector (**matched**), and the same form along a **random** direction of the same length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vectors.data.items import ShownItem
from vectors.errors import InvalidMethod
from vectors.training.adaptive_vectors import Candidate, Inputs, NotMade, candidates_of, constants_of, random_like
from vectors.training.contrast import Answered
from vectors.training.examiner import Advance, Examiner, Question
from vectors.training.method import Method
from vectors.training.model_view import ModelView
from vectors.training.outcomes import ItemOutcome, ValidationOutcome, validation_outcomes
from vectors.training.search import Cell, best_of, search
from vectors.training.statistics import Floats


@dataclass(frozen=True, slots=True)
class SearchedCondition:
    """The candidates of one condition, the number of the chosen one, and what each answered of the validation items."""

    name: str
    candidates: tuple[Candidate, ...]
    number: int
    validation: tuple[ValidationOutcome, ...]

    @property
    def chosen(self) -> Cell:
        """The chosen candidate."""
        return self.candidates[self.number].cell


@dataclass(frozen=True, slots=True)
class SearchedAdaptive:
    """The conditions `adaptive`, `matched` and `random`, in this order; none, with the reason, if none can be made."""

    conditions: tuple[SearchedCondition, ...] = ()
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class TestedAdaptive:
    """A search with the outcomes of each condition on the test items."""

    searched: SearchedAdaptive
    tests: tuple[tuple[ItemOutcome, ...], ...]


@dataclass(frozen=True, slots=True)
class Around:
    """The constant vector that a search has chosen, and what it was made and chosen by.

    `answers` are those of the training items, `validation` the outcomes of `questions`, of which those of cell `number`
    are the vector's.
    """

    constant: Cell
    number: int
    answers: Sequence[Answered]
    questions: Sequence[Question]
    validation: Sequence[ValidationOutcome]


def search_adaptive(
    view: ModelView,
    examiner: Examiner,
    method: Method,
    around: Around,
    seed: int,
    advance: Advance,
    retained: Sequence[Question] = (),
) -> SearchedAdaptive:
    """The search of `method.adaptive`; `retained` as in `search`. Raises as training does."""
    assert method.adaptive is not None
    constant, questions = around.constant, around.questions
    inputs = _inputs(view, examiner, around)
    direction = constant.vector.directions[constant.layer].double().numpy()
    try:
        kinds = {
            "adaptive": candidates_of(method.adaptive, constant, direction, inputs),
            "matched": constants_of(constant),
            "random": candidates_of(method.adaptive, constant, random_like(direction, seed), inputs),
        }
    except NotMade as reason:
        return SearchedAdaptive(reason=str(reason))
    cells = [candidate.cell for candidates in kinds.values() for candidate in candidates]
    right, cells = search(cells, questions, examiner, advance, retained)
    conditions: list[SearchedCondition] = []
    first = 0
    for name, candidates in kinds.items():
        places = range(first, first + len(candidates))
        own = [cells[place] for place in places]
        if name == "matched":
            chosen = _nearest(own, conditions[0].chosen)
        else:
            chosen = own.index(best_of(own, is_paper=False, max_loss=method.max_loss))
        found = tuple(Candidate(cell, one.numbers) for cell, one in zip(own, candidates, strict=True))
        outcomes = validation_outcomes(questions, right[[0, *(1 + place for place in places)]])
        conditions.append(SearchedCondition(name, found, chosen, outcomes))
        first += len(candidates)
    return SearchedAdaptive(tuple(conditions))


def _inputs(view: ModelView, examiner: Examiner, around: Around) -> Inputs:
    shown = [
        question
        for question in (*(answer.item for answer in around.answers), *around.questions)
        if isinstance(question, ShownItem)
    ]
    num_trained = len(around.answers)
    if len(shown) < num_trained + len(around.questions):
        raise InvalidMethod("adaptive: expected questions with lettered options, got pairs of texts", "adaptive")
    activations = _read(view, [examiner.tokens_of(one) for one in shown], around.constant)
    return Inputs(
        training=activations[:num_trained],
        trained_wrong=np.array([not answer.is_right for answer in around.answers]),
        validation=activations[num_trained:],
        asked_wrong=np.array([not item.before for item in around.validation]),
        steered_right=np.array([bool(item.cells[around.number]) for item in around.validation]),
    )


def _read(view: ModelView, prompts: Sequence[tuple[int, ...]], constant: Cell) -> Floats:
    found = np.empty((len(prompts), view.hidden_size))
    for index, activation in view.activations(prompts, (constant.site,)):
        found[index] = activation[constant.site][constant.layer].double().numpy()
    return found


def _nearest(cells: Sequence[Cell], wanted: Cell) -> int:
    """The number of the cell whose accuracy is nearest to that of `wanted`; of equals the one of the smallest dose."""

    def rank(number: int) -> tuple[float, float]:
        one, other = cells[number].accuracy, wanted.accuracy
        assert one is not None
        assert other is not None
        return abs(one - other), cells[number].dose

    return min(range(len(cells)), key=rank)
