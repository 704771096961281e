"""What answers that ignore the question would score: always the same letter, or always the same text.

Under every rotation of its options one letter for everything is right once in k. But texts can repeat: where the
options are Yes and No and No is right in four of five items, saying No to everything scores 80 %. So can texts that
mean the same, such as "Unknown" and "Cannot be determined". The constant answer by text is therefore an order of
preference among texts: of an item's options, the one that is right most often in the other items.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vectors.data.items import LETTERS
from vectors.training.outcomes import Answers, ItemOutcome
from vectors.training.statistics import SAME, Floats


@dataclass(frozen=True, slots=True)
class SaidText:
    """A text that several items offer: how often it is right where it is offered, and how often the model says it.

    `offered`: by how many items; `accuracy`: of saying it wherever it is offered, and guessing elsewhere. All but
    `offered` are shares.
    """

    text: str
    offered: int
    accuracy: float
    before: float
    after: float

    def to_json(self) -> dict[str, Any]:
        """As shown in the report."""
        return {
            "answer": self.text,
            "offered": self.offered,
            "accuracy": self.accuracy,
            "said_before": self.before,
            "said_after": self.after,
        }


def chance_scores(outcomes: Sequence[ItemOutcome]) -> Floats:
    """What guessing, or one letter for everything, scores under every rotation: 1 in k for each item, `[items]`."""
    return np.asarray([1.0 / item.num_options for item in outcomes])


def text_scores(outcomes: Sequence[ItemOutcome]) -> Floats:
    """What the best order of preference among texts scores on each item, `[items]`.

    The order is that of how often a text is right where it is offered, in all other items (of other groups), with one
    item for each option added (Laplace's rule of succession), so that texts seen once or never count for little. Ties
    are guesses. Upper case and white space do not count. An order of preference that was learned from the item itself
    would always be right where texts do not repeat.
    """
    offered: Counter[str] = Counter()
    right: Counter[str] = Counter()
    own: dict[object, tuple[Counter[str], Counter[str]]] = {}
    names = [tuple(map(_plain, item.choices)) for item in outcomes]
    keys = [index if item.group is None else item.group for index, item in enumerate(outcomes)]
    for item, texts, key in zip(outcomes, names, keys, strict=True):
        group = own.setdefault(key, (Counter(), Counter()))
        for counter in (offered, group[0]):
            counter.update(texts)
        if texts:
            for counter in (right, group[1]):
                counter[texts[item.answer]] += 1
    scores = []
    for item, texts, key in zip(outcomes, names, keys, strict=True):
        if not texts:
            scores.append(0.5)
            continue
        own_offered, own_right = own[key]
        rates = [
            (right[text] - own_right[text] + 1) / (offered[text] - own_offered[text] + len(texts)) for text in texts
        ]
        best = [place for place, rate in enumerate(rates) if rate >= max(rates) - SAME]
        scores.append(1.0 / len(best) if item.answer in best else 0.0)
    return np.asarray(scores)


def best_text(outcomes: Sequence[ItemOutcome]) -> SaidText | None:
    """The text that would score most if it were always said; None if no text is offered by two items."""
    offered: Counter[str] = Counter()
    gained: dict[str, float] = defaultdict(float)
    shown: dict[str, str] = {}
    for item in outcomes:
        for place, choice in enumerate(item.choices):
            text = _plain(choice)
            shown.setdefault(text, choice)
            offered[text] += 1
            gained[text] += (place == item.answer) - 1 / item.num_options
    repeated = [text for text, count in offered.items() if count > 1]
    if not repeated:
        return None
    best = max(repeated, key=lambda text: (gained[text], offered[text]))
    chance = float(chance_scores(outcomes).sum())
    before, after = (
        sum(_times(item, item_answers, best) for item, item_answers in zip(outcomes, answers, strict=True))
        for answers in ([item.before for item in outcomes], [item.after for item in outcomes])
    )
    return SaidText(
        shown[best],
        offered[best],
        (chance + gained[best]) / len(outcomes),
        before / offered[best],
        after / offered[best],
    )


def best_presented_letter(outcomes: Sequence[ItemOutcome]) -> tuple[str, float] | None:
    """The letter that scores most if it is always said in the order in which the method asks; None for pairs."""
    if not outcomes[0].choices:
        return None
    places = Counter(item.orders[0].index(item.answer) for item in outcomes)
    place, count = min(places.items(), key=lambda found: (-found[1], found[0]))
    return LETTERS[place], count / len(outcomes)


def _times(item: ItemOutcome, answers: Answers, text: str) -> float:
    """The share of an item's prompts to which the model says a text."""
    said = sum(chosen is not None and _plain(item.choices[chosen]) == text for chosen in answers)
    return said / len(answers) if text in map(_plain, item.choices) else 0.0


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()
