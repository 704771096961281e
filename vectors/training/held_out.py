"""Whether a steering helps on held-out items, and what it costs elsewhere.

The figures are letter-balanced: an item counts by the share of its rotations answered correctly, so a model that always
says B scores one in k. They are shown next to the figures for the one order in which the method asked the same prompts;
the difference between the two gains is due to the letters.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vectors.data.items import LETTERS, ChoiceItem, DataSet, ShownItem, TextItem
from vectors.data.split import shuffle_options
from vectors.training.examiner import Advance, Choices, Examiner, Question, Steerings, answers_of
from vectors.training.model_view import Continuations, ModelView, Steering
from vectors.training.statistics import Accuracy, PairedTest, accuracy_of, letter_shift, paired_test

SIGNIFICANCE = 0.05
WORRYING_RATIO = 1.5
"""The ratio of steered to unsteered perplexity of plain text above which a report warns."""

MAX_RETENTION_ITEMS = 1000
MAX_RETENTION_TEXTS = 200


@dataclass(frozen=True, slots=True)
class Retention:
    """What the steering should not change: other items, and plain texts (`texts_from` says where they come from)."""

    items: tuple[ShownItem, ...] = ()
    texts: tuple[str, ...] = ()
    texts_from: str = "retention_file"

    @property
    def num_prompts(self) -> int:
        """The number of prompts that checking it takes."""
        return len(self.items) + 2 * len(self.texts)


@dataclass(frozen=True, slots=True)
class HeldOutResult:
    """Letter-balanced accuracy before and after, the paired test between them, and the part due to letters.

    `over_chance` is the same test against one in k, the score of always saying one letter. `presented_gain` is the gain
    in the order in which the method asked the items; `letter_bias` is the part of it due to letters (`presented_gain`
    minus the balanced gain). `letters`: shares of each letter chosen over all rotations, before and after, and how far
    they moved.
    """

    baseline: Accuracy
    steered: Accuracy
    paired: PairedTest
    over_chance: PairedTest
    presented_baseline: float
    presented_gain: float
    letter_bias: float
    letters: dict[str, Any] | None

    @property
    def helps(self) -> bool:
        """True if accuracy rises, and above the score of always saying one letter, both significantly."""
        return all(test.gain > 0 and test.p < SIGNIFICANCE for test in (self.paired, self.over_chance))


def measure_steering(
    examiner: Examiner, questions: Sequence[Question], steering: tuple[Steering, ...], advance: Advance
) -> HeldOutResult:
    """Ask `questions`, as shown and in every rotation, without and with `steering`."""
    return measure_steerings(examiner, questions, [steering], advance)[0]


def measure_steerings(
    examiner: Examiner, questions: Sequence[Question], steerings: Steerings, advance: Advance
) -> list[HeldOutResult]:
    """`measure_steering` for each of `steerings`; the prompts are read once for all of them."""
    scores, chosen = examiner.balanced_scores(questions, [(), *steerings], advance)
    sizes = [len(question.order) if isinstance(question, ShownItem) else 1 for question in questions]
    first = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
    presented = np.mean(chosen[:, first] == answers_of(questions), axis=1)
    chance = [1.0 / len(question.order) if isinstance(question, ShownItem) else 0.5 for question in questions]
    baseline = accuracy_of(scores[0])
    tests = []
    for number in range(1, len(scores)):
        paired = paired_test(scores[0], scores[number])
        presented_gain = float(presented[number] - presented[0])
        is_lettered = isinstance(questions[0], ShownItem) and bool((chosen[[0, number]] >= 0).all())
        tests.append(
            HeldOutResult(
                baseline=baseline,
                steered=accuracy_of(scores[number]),
                paired=paired,
                over_chance=paired_test(chance, scores[number]),
                presented_baseline=float(presented[0]),
                presented_gain=presented_gain,
                letter_bias=presented_gain - paired.gain if isinstance(questions[0], ShownItem) else 0.0,
                letters=_letters(chosen[0], chosen[number], max(sizes)) if is_lettered else None,
            )
        )
    return tests


def _letters(before: Choices, after: Choices, num_letters: int) -> dict[str, Any]:
    shift = letter_shift(before, after, num_letters)
    names = LETTERS[:num_letters]
    return {
        "before": dict(zip(names, shift.before, strict=True)),
        "after": dict(zip(names, shift.after, strict=True)),
        "moved": shift.distance,
    }


def retention_of(data: DataSet | None, texts: Sequence[TextItem], tested: Sequence[Question], seed: int) -> Retention:
    """The retention data: the given items and texts; without texts, those of the tested items themselves."""
    items = [item for item in (data.items if data is not None else ()) if isinstance(item, ChoiceItem)]
    shown = shuffle_options(items[:MAX_RETENTION_ITEMS], seed) if items else ()
    if texts:
        return Retention(shown, tuple(item.text for item in texts[:MAX_RETENTION_TEXTS]))
    own = [
        f"{question.item.question} {question.item.answer_text}"
        if isinstance(question, ShownItem)
        else f"{question.prompt if isinstance(question.prompt, str) else question.prompt[-1].content} "
        f"{question.positive}".strip()
        for question in tested[:MAX_RETENTION_TEXTS]
    ]
    return Retention(shown, tuple(dict.fromkeys(own)), "the test items' own text")


def harm_of(retention: Mapping[str, Any]) -> list[str]:
    """A sentence for each significant loss of accuracy or fluency that `check_retention` found."""
    notes = []
    accuracy, perplexity = retention["accuracy"], retention["perplexity"]
    if accuracy is not None and accuracy["steered"]["value"] < accuracy["baseline"]["low"]:
        notes.append(f"retention: accuracy on other items changes by {100 * accuracy['change']:+.1f} points")
    if perplexity is not None and perplexity["ratio"] > WORRYING_RATIO:
        notes.append(
            f"retention: perplexity of plain text rises to {perplexity['ratio']:.2g} times; try a smaller scale"
        )
    return notes


def check_retention(
    view: ModelView, examiner: Examiner, retention: Retention, steering: tuple[Steering, ...], advance: Advance
) -> dict[str, Any]:
    """Accuracy and perplexity without and with `steering`, as shown in the report.

    Perplexity is of the second half of each text, given its first half; steering begins between them.
    """
    accuracy = None
    num_items, num_texts = len(retention.items), len(retention.texts)
    if retention.items:
        right = examiner.choose(retention.items, [(), steering], advance) == answers_of(retention.items)
        before, after = (accuracy_of(row.astype(np.float64)) for row in right)
        accuracy = {
            "baseline": interval_report(before),
            "steered": interval_report(after),
            "change": after.value - before.value,
        }
    plain = _perplexity(view, retention.texts, ())
    advance(num_items + num_texts)
    steered = _perplexity(view, retention.texts, steering)
    advance(num_items + 2 * num_texts)
    perplexity = None
    if plain is not None and steered is not None:
        perplexity = {
            "baseline": plain,
            "steered": steered,
            "ratio": steered / plain,
            "num_texts": len(retention.texts),
            "texts": retention.texts_from,
        }
    return {"accuracy": accuracy, "perplexity": perplexity}


def _perplexity(view: ModelView, texts: Sequence[str], steering: tuple[Steering, ...]) -> float | None:
    queries = []
    for text in texts:
        tokens = view.encode(text)[: view.max_length - 1]
        middle = len(tokens) // 2
        if middle > 0:
            queries.append(Continuations(tokens[:middle], (tokens[middle:],), steering))
    total, count = 0.0, 0
    for _, (logprobs,) in view.continuation_logprobs(queries):
        total += sum(logprobs)
        count += len(logprobs)
    return math.exp(min(700.0, -total / count)) if count and math.isfinite(total) else None


def held_out_report(test: HeldOutResult) -> dict[str, Any]:
    """The test as shown in the report."""
    paired = test.paired
    return {
        "accuracy": interval_report(test.steered),
        "gain": paired.gain,
        "ci95": [paired.low, paired.high],
        "mcnemar_p": paired.p,
        "over_chance": {"gain": test.over_chance.gain, "p": test.over_chance.p},
        "letter_bias": test.letter_bias,
        "presented": {
            "baseline": test.presented_baseline,
            "steered": test.presented_baseline + test.presented_gain,
            "gain": test.presented_gain,
        },
        "letters": test.letters,
        "wrong_to_right": paired.wrong_to_right,
        "right_to_wrong": paired.right_to_wrong,
    }


def interval_report(accuracy: Accuracy) -> dict[str, Any]:
    """An accuracy with its interval, as shown in the report."""
    return dataclasses.asdict(accuracy)


def verdict_of(test: HeldOutResult, *, unsteered_wins: bool) -> tuple[bool, str]:
    """Whether the steering is recommended, and why or why not, in a sentence."""
    gain, letters = 100 * test.paired.gain, 100 * min(test.letter_bias, test.presented_gain)
    presented = 100 * test.presented_gain
    if unsteered_wins:
        return False, "no steered cell answered more validation items correctly than the unsteered model"
    if test.presented_gain > 0.02 and test.letter_bias > test.presented_gain / 2:
        leak = (
            f"letter bias: {letters:+.1f} of the {presented:+.1f} points come from the choice of letter "
            "and vanish when the options are rotated"
        )
        if not test.helps:
            return False, leak
        return True, f"{gain:+.1f} points remain when the options are rotated (p = {test.paired.p:.2g}); {leak}"
    if test.paired.gain > 0 and test.paired.p < SIGNIFICANCE and not test.helps:
        chance = 100 * (test.steered.value - test.over_chance.gain)
        return False, (
            f"{gain:+.1f} points, but {100 * test.steered.value:.1f} % is not significantly above guessing or always "
            f"saying one letter ({chance:.1f} %), p = {test.over_chance.p:.2g}"
        )
    if not test.helps:
        return False, (
            f"the test shows no gain beyond chance: {gain:+.1f} points, one-sided exact McNemar p = {test.paired.p:.2g}"
        )
    return True, f"{gain:+.1f} points on held-out items, one-sided exact McNemar p = {test.paired.p:.2g}"
