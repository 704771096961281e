"""Whether a steering helps on held-out items: accuracy, gain, and what answers that ignore the question would score.

The figures are letter-balanced: an item counts by the share of its rotations answered correctly, so a model that always
says B scores one in k. They are shown next to the figures for the one order in which the method asked the same prompts;
the difference between the two gains is due to the letters.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vectors.data.items import LETTERS
from vectors.training.constant_answers import SaidText, best_presented_letter, best_text, chance_scores, text_scores
from vectors.training.examiner import Advance, Examiner, Question, Steerings
from vectors.training.model_view import Steering
from vectors.training.outcomes import Answers, ItemOutcome, groups_of, outcomes_of, scores
from vectors.training.significance import MeanTest, PairedTest, mean_test, paired_test
from vectors.training.statistics import Accuracy, accuracy_of, letter_shift


@dataclass(frozen=True, slots=True)
class HeldOutResult:
    """Letter-balanced accuracy before and after, the paired test between them, and the part due to letters.

    `over_chance` tests the mean of score minus one in k, the score of guessing and of always saying one letter;
    `over_text` of score minus what the best order of preference among texts scores (`constant_answers`), on average
    `text_accuracy`, and `text` is the best single text. `presented`: the paired test in the order in which the method
    asked the items, in which `presented_letter` is the letter that is right most often, and how often. `letters`:
    shares of each letter chosen over all rotations, before and after, and how far they moved.
    """

    outcomes: tuple[ItemOutcome, ...]
    baseline: Accuracy
    steered: Accuracy
    paired: PairedTest
    over_chance: MeanTest
    over_text: MeanTest
    text_accuracy: float
    text: SaidText | None
    presented_baseline: float
    presented: PairedTest
    presented_letter: tuple[str, float] | None
    letters: dict[str, Any] | None

    @property
    def letter_bias(self) -> float:
        """The part of the gain as presented that is due to letters; 0 for pairs."""
        return self.presented.gain - self.paired.gain if self.outcomes[0].choices else 0.0


def measure_steering(
    examiner: Examiner, questions: Sequence[Question], steering: tuple[Steering, ...], advance: Advance
) -> HeldOutResult:
    """Ask `questions`, as shown and in every rotation, without and with `steering`."""
    return measure_steerings(examiner, questions, [steering], advance)[0]


def measure_steerings(
    examiner: Examiner, questions: Sequence[Question], steerings: Steerings, advance: Advance
) -> list[HeldOutResult]:
    """`measure_steering` for each of `steerings`; the prompts are read once for all of them."""
    _, chosen = examiner.balanced_scores(questions, [(), *steerings], advance)
    return [held_out_result(outcomes_of(questions, chosen[0], steered)) for steered in chosen[1:]]


def held_out_result(outcomes: tuple[ItemOutcome, ...]) -> HeldOutResult:
    """The figures of a test, from its outcomes alone. Raises `MissingDependency`."""
    before, after = scores(outcomes)
    groups = groups_of(outcomes)
    texts = text_scores(outcomes)
    first_before, first_after = (
        np.asarray([chosen[0] == item.answer for item, chosen in zip(outcomes, answers, strict=True)], dtype=np.float64)
        for answers in ([item.before for item in outcomes], [item.after for item in outcomes])
    )
    return HeldOutResult(
        outcomes=outcomes,
        baseline=accuracy_of(before, groups),
        steered=accuracy_of(after, groups),
        paired=paired_test(before, after, groups),
        over_chance=mean_test(after - chance_scores(outcomes), groups),
        over_text=mean_test(after - texts, groups),
        text_accuracy=float(texts.mean()),
        text=best_text(outcomes),
        presented_baseline=float(first_before.mean()),
        presented=paired_test(first_before, first_after, groups),
        presented_letter=best_presented_letter(outcomes),
        letters=_letters(outcomes),
    )


def _letters(outcomes: Sequence[ItemOutcome]) -> dict[str, Any] | None:
    """The letters said over all rotations; None for pairs, and where an output was not finite."""
    before = [place for item in outcomes for place in _places(item, item.before)]
    after = [place for item in outcomes for place in _places(item, item.after)]
    if not outcomes[0].choices or None in before or None in after:
        return None
    num_letters = max(item.num_options for item in outcomes)
    shift = letter_shift(np.asarray(before), np.asarray(after), num_letters)
    names = LETTERS[:num_letters]
    return {
        "before": dict(zip(names, shift.before, strict=True)),
        "after": dict(zip(names, shift.after, strict=True)),
        "moved": shift.distance,
    }


def _places(item: ItemOutcome, answers: Answers) -> list[int | None]:
    return [None if chosen is None else order.index(chosen) for order, chosen in zip(item.orders, answers, strict=True)]


def held_out_report(test: HeldOutResult) -> dict[str, Any]:
    """The test as shown in the report."""
    paired, presented = test.paired, test.presented
    letter = test.presented_letter
    return {
        "accuracy": interval_report(test.steered),
        "gain": paired.gain,
        "ci95": [paired.low, paired.high],
        "standard_error": paired.standard_error,
        "p": paired.p,
        "method": paired.method,
        "mcnemar_p": paired.sign_p,
        "over_chance": mean_report(test.over_chance),
        "over_text": {"accuracy": test.text_accuracy, **mean_report(test.over_text)},
        "best_text": None if test.text is None else test.text.to_json(),
        "letter_bias": test.letter_bias,
        "presented": {
            "baseline": test.presented_baseline,
            "steered": test.presented_baseline + presented.gain,
            "gain": presented.gain,
            "p": presented.p,
            "method": presented.method,
            "best_letter": None if letter is None else {"answer": letter[0], "accuracy": letter[1]},
        },
        "letters": test.letters,
        "groups": paired_groups(test),
        "wrong_to_right": paired.wrong_to_right,
        "right_to_wrong": paired.right_to_wrong,
    }


def paired_groups(test: HeldOutResult) -> int | None:
    """How many groups the items are in; None if no two are in the same."""
    mean = test.over_chance.mean
    return mean.num_groups if mean.num_groups < mean.num_items else None


def mean_report(test: MeanTest) -> dict[str, Any]:
    """The test of a mean as shown in the report."""
    return {"gain": test.mean.value, "ci95": [test.mean.low, test.mean.high], "p": test.p, "method": test.method}


def interval_report(accuracy: Accuracy) -> dict[str, Any]:
    """An accuracy with its interval, as shown in the report."""
    return dataclasses.asdict(accuracy)
