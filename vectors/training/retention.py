"""What a steering costs elsewhere: accuracy on other items, and the perplexity of plain texts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vectors.data.items import ChoiceItem, DataSet, ShownItem, TextItem
from vectors.data.split import shuffle_options
from vectors.training.examiner import Advance, Examiner, Question
from vectors.training.held_out import interval_report, mean_report
from vectors.training.model_view import Continuations, ModelView, Steering
from vectors.training.outcomes import ItemOutcome, TextOutcome, groups_of, outcomes_of, scores
from vectors.training.significance import mean_test
from vectors.training.statistics import CONFIDENCE, accuracy_of, ratio_of, scipy_stats

SIGNIFICANCE = 0.05
"""The level of every test."""

WORRYING_RATIO = 1.5
"""The ratio of steered to unsteered perplexity of plain text above which a report warns."""

MAX_RETENTION_ITEMS = 1000
MAX_RETENTION_TEXTS = 200

OWN_TEXTS = "the test items' own text"


@dataclass(frozen=True, slots=True)
class Retention:
    """What the steering should not change: other items, and plain texts (`texts_from` says where they come from).

    `searched` are items that the search may ask; no figure of the report is from them.
    """

    items: tuple[ShownItem, ...] = ()
    texts: tuple[TextItem, ...] = ()
    texts_from: str = "retention_file"
    searched: tuple[ShownItem, ...] = ()

    @property
    def num_prompts(self) -> int:
        """The number of prompts that checking it takes."""
        return len(self.items) + 2 * len(self.texts)


def retention_of(
    data: DataSet | None, texts: Sequence[TextItem], tested: Sequence[Question], seed: int, *, is_searched: bool = False
) -> Retention:
    """The retention data: the given items and texts; without texts, those of the tested items themselves.

    With `is_searched`, every second item is for the search.
    """
    items = [item for item in (data.items if data is not None else ()) if isinstance(item, ChoiceItem)]
    shown = shuffle_options(items[:MAX_RETENTION_ITEMS], seed) if items else ()
    searched: tuple[ShownItem, ...] = ()
    if is_searched:
        order = np.random.default_rng(seed).permutation(len(shown))
        shown, searched = (tuple(shown[index] for index in sorted(order[start::2])) for start in (0, 1))
    if texts:
        return Retention(shown, tuple(texts[:MAX_RETENTION_TEXTS]), searched=searched)
    own = {_own_text(question): _line_of(question) for question in tested[:MAX_RETENTION_TEXTS]}
    return Retention(shown, tuple(TextItem(text, line) for text, line in own.items()), OWN_TEXTS, searched)


def _line_of(question: Question) -> int:
    return question.item.line if isinstance(question, ShownItem) else question.line


def _own_text(question: Question) -> str:
    if isinstance(question, ShownItem):
        return f"{question.item.question} {question.item.answer_text}"
    prompt = question.prompt if isinstance(question.prompt, str) else question.prompt[-1].content
    return f"{prompt} {question.positive}".strip()


def check_retention(
    view: ModelView, examiner: Examiner, retention: Retention, steering: tuple[Steering, ...], advance: Advance
) -> tuple[tuple[ItemOutcome, ...], tuple[TextOutcome, ...]]:
    """What the model answers to the items and how likely it finds the texts, without and with `steering`.

    Of each text, the second half is scored, given its first half; steering begins between them.
    """
    num_items, num_texts = len(retention.items), len(retention.texts)
    items: tuple[ItemOutcome, ...] = ()
    if retention.items:
        before, after = examiner.choose(retention.items, [(), steering], advance)
        items = outcomes_of(retention.items, before, after)
    plain = _logprobs(view, retention.texts, ())
    advance(num_items + num_texts)
    steered = _logprobs(view, retention.texts, steering)
    advance(num_items + 2 * num_texts)
    texts = [
        TextOutcome(retention.texts[number].line, count, _finite(total), _finite(steered[number][1]))
        for number, (count, total) in plain.items()
    ]
    return items, tuple(texts)


def _logprobs(
    view: ModelView, texts: Sequence[TextItem], steering: tuple[Steering, ...]
) -> dict[int, tuple[int, float]]:
    """The number of tokens of each text's second half and the sum of their log-probabilities, by the text's number."""
    queries, numbers = [], []
    for number, text in enumerate(texts):
        tokens = view.encode(text.text)[: view.max_length - 1]
        middle = len(tokens) // 2
        if middle > 0:
            queries.append(Continuations(tokens[:middle], (tokens[middle:],), steering))
            numbers.append(number)
    found = {
        numbers[index]: (len(logprobs), sum(logprobs)) for index, (logprobs,) in view.continuation_logprobs(queries)
    }
    return dict(sorted(found.items()))


def retention_report(items: Sequence[ItemOutcome], texts: Sequence[TextOutcome], texts_from: str) -> dict[str, Any]:
    """Accuracy and perplexity without and with steering as shown in the report, each with a paired test of its loss.

    The loss of accuracy is tested as a gain is. The loss of log-probability per token is tested over texts, by
    Student's t for the ratio of two sums (Cochran 1977, "Sampling techniques", section 6). There is no perplexity if a
    text has a probability of 0. Raises `MissingDependency`.
    """
    return {
        "accuracy": _accuracy_report(items) if items else None,
        "perplexity": _perplexity_report(texts, texts_from) if texts else None,
    }


def _accuracy_report(items: Sequence[ItemOutcome]) -> dict[str, Any]:
    before, after = scores(items)
    groups = groups_of(items)
    baseline, steered = accuracy_of(before, groups), accuracy_of(after, groups)
    loss = mean_report(mean_test(before - after, groups))
    return {
        "baseline": interval_report(baseline),
        "steered": interval_report(steered),
        "change": steered.value - baseline.value,
        "loss": {"value": loss.pop("gain"), **loss},
    }


def _perplexity_report(texts: Sequence[TextOutcome], texts_from: str) -> dict[str, Any] | None:
    sizes = np.asarray([text.tokens for text in texts], dtype=np.float64)
    before, after = (
        np.asarray(values, dtype=np.float64)
        for values in ([text.before for text in texts], [text.after for text in texts])
    )
    if not bool(np.isfinite(before).all() and np.isfinite(after).all()):
        return None
    losses = before - after
    plain, steered = (_perplexity(float(values.sum()), float(sizes.sum())) for values in (before, after))
    report = {
        "baseline": plain,
        "steered": steered,
        "ratio": steered / plain,
        "ci95": None,
        "p": None,
        "num_texts": len(texts),
        "texts": texts_from,
    }
    if len(texts) < 2:
        return report
    mean, error = ratio_of(losses, sizes)
    if error == 0.0:
        return report
    stats = scipy_stats()
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, sizes.size - 1)) * error
    ends = [math.exp(max(-700.0, min(700.0, end))) for end in (mean - reach, mean + reach)]
    return report | {"ci95": ends, "p": float(stats.t.sf(mean / error, sizes.size - 1))}


def _finite(total: float) -> float | None:
    return total if math.isfinite(total) else None


def _perplexity(total: float, num_tokens: float) -> float:
    return math.exp(min(700.0, -total / num_tokens))


def harm_of(retention: dict[str, Any]) -> list[str]:
    """A sentence for a significant loss of accuracy, and for a large one of fluency, in a report's `retention`."""
    notes = []
    accuracy, perplexity = retention["accuracy"], retention["perplexity"]
    if accuracy is not None and accuracy["loss"]["p"] < SIGNIFICANCE:
        loss = accuracy["loss"]
        notes.append(
            f"retention: accuracy on other items falls by {100 * loss['value']:.1f} points (p = {loss['p']:.2g})"
        )
    if perplexity is not None and perplexity["ratio"] > WORRYING_RATIO:
        notes.append(
            f"retention: perplexity of plain text rises to {perplexity['ratio']:.2g} times; try a smaller scale"
        )
    return notes
