"""Turns items and the model's answers into two groups of texts, whose mean activations are subtracted.

    variant           positive texts                              negative texts
    pas_full          lettered prompts of items answered right    lettered prompts of items answered wrong
    ipas_all          question + right option, items right        question + the model's option, items wrong
    ipas_wrong_only   wrong items: question + right option        the same items: question + the model's option
    mean_difference   every item: question + right option         the same items: question + a wrong option

The first three are PASf, iPASa and iPASwo of Cui & Chen 2025 (arXiv:2509.22739); the last is the mean difference of
pairs (contrastive activation addition, Rimsky et al. 2023) with texts instead of letters. For pairs of texts, the right
answer is the positive text, and there is no lettered prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vectors.data.items import PairItem, ShownItem
from vectors.training.options import Variant
from vectors.training.prompts import Statement, Text, statement_of, statements_of


@dataclass(frozen=True, slots=True)
class Answered:
    """An item and the model's choice: a place among the options shown, or 0 (positive) or 1 (negative) of a pair.

    -1: no choice, because the model's output was not finite.
    """

    item: ShownItem | PairItem
    chosen: int

    @property
    def is_right(self) -> bool:
        """True when the model chose as the label says."""
        return self.chosen == (self.item.answer if isinstance(self.item, ShownItem) else 0)


@dataclass(frozen=True, slots=True)
class Contrast:
    """The two groups of texts of a variant; either may be empty."""

    positive: tuple[Text, ...]
    negative: tuple[Text, ...]

    @property
    def is_usable(self) -> bool:
        """True when both groups have texts."""
        return bool(self.positive and self.negative)


def contrast_of(variant: Variant, answers: Sequence[Answered]) -> Contrast:
    """The texts of `variant` for these answers, in the order of the answers."""
    right = [answer for answer in answers if answer.is_right]
    wrong = [answer for answer in answers if not answer.is_right and answer.chosen >= 0]
    if variant == "pas_full":
        return Contrast(
            tuple(answer.item for answer in right if isinstance(answer.item, ShownItem)),
            tuple(answer.item for answer in wrong if isinstance(answer.item, ShownItem)),
        )
    if variant == "ipas_all":
        return Contrast(tuple(map(_labelled, right)), tuple(map(_chosen, wrong)))
    if variant == "ipas_wrong_only":
        return Contrast(tuple(map(_labelled, wrong)), tuple(map(_chosen, wrong)))
    return Contrast(tuple(map(_labelled, answers)), tuple(map(_other, answers)))


def _labelled(answer: Answered) -> Statement:
    item = answer.item
    return statement_of(item, item.answer) if isinstance(item, ShownItem) else statements_of(item)[0]


def _chosen(answer: Answered) -> Statement:
    item = answer.item
    return statement_of(item, answer.chosen) if isinstance(item, ShownItem) else statements_of(item)[answer.chosen]


def _other(answer: Answered) -> Statement:
    """A wrong text: the model's choice if it is wrong, otherwise the first wrong one shown."""
    item = answer.item
    if not isinstance(item, ShownItem):
        return statements_of(item)[1]
    if not answer.is_right and answer.chosen >= 0:
        return statement_of(item, answer.chosen)
    return statement_of(item, 0 if item.answer != 0 else 1)
