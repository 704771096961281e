"""Splits items into training, validation and test, and orders an item's options.

Results depend on the items and a seed alone, on every machine and in every process.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from vectors.data.items import LETTERS, ChoiceItem, Item, PairItem, ShownItem
from vectors.data.reading import MIN_ITEMS
from vectors.errors import InvalidData
from vectors.shares import Split

AnyItem = TypeVar("AnyItem", bound=Item)


@dataclass(frozen=True, slots=True)
class Parts(Generic[AnyItem]):
    """Items for training, validation and the one final test; no item is in two parts.

    The order is drawn by the seed, so the first items of a part are a random sample of it.
    """

    train: tuple[AnyItem, ...]
    validation: tuple[AnyItem, ...]
    test: tuple[AnyItem, ...]


def split_items(
    items: Sequence[AnyItem], shares: Split, seed: int, max_items: int, *, by_item: bool = False
) -> Parts[AnyItem]:
    """Split at most `max_items` items, drawn by the seed, as close to the shares as possible; no part is empty.

    Items of the same group, and items without one with the same question (pairs: the same prompt, or positive text
    where there is none), go to the same part, so that no test question was seen in training; `by_item` (as in the
    paper) splits them freely. Raises `InvalidData` when fewer than 8 items or fewer than three different questions
    leave a part empty.
    """
    order = list(range(len(items)))
    _chance(seed, "split").shuffle(order)
    order = order[:max_items]
    if len(order) < MIN_ITEMS:
        raise InvalidData(f"expected at least {MIN_ITEMS} items to split, got {len(order)}")
    groups: dict[object, list[int]] = defaultdict(list)
    subjects = {index: subject_of(items[index]) for index in order}
    if len(set(subjects.values())) < 3:  # the options alone say what is asked, as in "Which is more pleasant?"
        subjects = {index: asked_of(items[index]) for index in order}
    for index in order:
        group = items[index].group
        together = subjects[index] if group is None else ("group", group)
        groups[index if by_item else together].append(index)
    if len(groups) < 3:
        raise InvalidData(f"expected at least 3 different questions to split, got {len(groups)}")
    targets = [share * len(order) for share in (shares.train, shares.validation, shares.test)]
    part_of = {index: part for part, indices in enumerate(_fill(list(groups.values()), targets)) for index in indices}
    train, validation, test = (tuple(items[index] for index in order if part_of[index] == part) for part in range(3))
    return Parts(train, validation, test)


def shuffle_options(items: Sequence[ChoiceItem], seed: int) -> tuple[ShownItem, ...]:
    """Each item with its options in its own order, drawn by the seed.

    Among items with the same number of options, each place is right equally often (to within one), whatever the items
    are and whatever order they are in.
    """
    chance = _chance(seed, "options")
    shown: dict[int, ShownItem] = {}
    for count, indices in sorted(_by_count(items).items()):
        places: list[int] = []
        while len(places) < len(indices):
            places += chance.sample(range(count), count)
        del places[len(indices) :]
        chance.shuffle(places)
        for index, place in zip(indices, places, strict=True):
            item = items[index]
            order = [option for option in range(count) if option != item.answer]
            chance.shuffle(order)
            order.insert(place, item.answer)
            shown[index] = ShownItem(item, tuple(order))
    return tuple(shown[index] for index in range(len(items)))


def shuffle_alike(items: Sequence[ChoiceItem], seed: int) -> tuple[ShownItem, ...]:
    """As in the paper: all items with the same number of options show them in the same order, drawn by the seed.

    If the source always puts the right option first, it always gets the same letter.
    """
    orders = {}
    for count in _by_count(items):
        order = list(range(count))
        _chance(seed, f"alike {count}").shuffle(order)
        orders[count] = tuple(order)
    return tuple(ShownItem(item, orders[len(item.choices)]) for item in items)


def in_source_order(items: Sequence[ChoiceItem]) -> tuple[ShownItem, ...]:
    """Each item with its options in the order of its file."""
    return tuple(ShownItem(item, tuple(range(len(item.choices)))) for item in items)


def gold_places(items: Sequence[ShownItem] | Sequence[ChoiceItem]) -> dict[str, int]:
    """How often each letter is right, for every letter that some item has an option for."""
    counts = dict.fromkeys(LETTERS[: max((len(item.choices) for item in items), default=0)], 0)
    for item in items:
        counts[LETTERS[item.answer]] += 1
    return counts


def _chance(seed: int, purpose: str) -> random.Random:
    """A separate random stream for each purpose. Text seeds by SHA-512, so it is the same in every process."""
    return random.Random(f"{seed} {purpose}")


def _by_count(items: Sequence[ChoiceItem]) -> dict[int, list[int]]:
    indices: dict[int, list[int]] = defaultdict(list)
    for index, item in enumerate(items):
        indices[len(item.choices)].append(index)
    return indices


def subject_of(item: ChoiceItem | PairItem) -> str:
    """What an item asks, as text; letter case and white space do not count."""
    if isinstance(item, ChoiceItem):
        text = item.question
    elif isinstance(item.prompt, str):
        text = item.prompt if item.prompt.strip() else item.positive
    else:
        text = json.dumps([[message.role, message.content] for message in item.prompt])
    return " ".join(text.split()).casefold()


def asked_of(item: ChoiceItem | PairItem) -> str:
    """What an item asks together with its options in any order, or with its texts."""
    texts = item.choices if isinstance(item, ChoiceItem) else (item.positive, item.negative)
    return "\0".join([subject_of(item), *sorted(" ".join(text.split()).casefold() for text in texts)])


def _fill(groups: list[list[int]], targets: list[float]) -> list[list[int]]:
    """Deal whole groups to the parts, largest first, each to the part that is furthest below its target."""
    parts: list[list[list[int]]] = [[] for _ in targets]
    sizes = [0 for _ in targets]
    for group in sorted(groups, key=len, reverse=True):
        lacking = [target - size for target, size in zip(targets, sizes, strict=True)]
        chosen = lacking.index(max(lacking))
        parts[chosen].append(group)
        sizes[chosen] += len(group)
    for part in parts:
        if not part:  # its share is less than a group: take the smallest of the part with most groups
            part.append(max(parts, key=len).pop())
    return [[index for group in part for index in group] for part in parts]
