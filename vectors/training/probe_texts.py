"""Labelled texts: what a probe is trained on, from the same data as a steering vector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vectors.data.items import Item, PairItem
from vectors.training.prompts import Statement, statements_of


@dataclass(frozen=True, slots=True)
class LabelledText:
    """A text and its class. Texts of one `group` are not independent; `line` (1-based) is where it was read."""

    text: Statement
    is_positive: bool
    group: str
    line: int


def labelled_texts(items: Sequence[Item]) -> tuple[LabelledText, ...]:
    """Two texts for each item, the positive one first, in the order of the items.

    A pair gives its texts. A question gives its statement with the right option, and with the one after it in the
    order of the data (after the last one, the first). Items without a group are groups of their own.
    """
    found = []
    for number, item in enumerate(items):
        group = f"item {number}" if item.group is None else f"group {item.group}"
        for text, is_positive in zip(_texts_of(item), (True, False), strict=True):
            found.append(LabelledText(text, is_positive, group, item.line))
    return tuple(found)


def _texts_of(item: Item) -> tuple[Statement, Statement]:
    if isinstance(item, PairItem):
        return statements_of(item)
    other = (item.answer + 1) % len(item.choices)
    return Statement(item.question, item.answer_text), Statement(item.question, item.choices[other])
