"""Keeps data apart: what took part in a training is not held out, in whichever file it stands again.

An item is the same as another one if it asks the same: by its question, where case, white space and punctuation do not
count, or, where many items of a file ask in the same words, by question and options together. What a prompt asks to
remember (`context`) counts for retention only, where the same question without it is a question of its own. Items that
the model cannot be asked, because they are too long for it, are left out here too.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from vectors.cancellation import check_cancelled
from vectors.data.items import ChoiceItem, DataSet, Item, PairItem, ShownItem
from vectors.data.split import asked_of, subject_of
from vectors.errors import InvalidData
from vectors.training.examiner import Examiner

_KEY_BYTES = 6
_MOST_RECORDED = 40_000
_SPARE_TOKENS = 512

TOO_LONG = "too long for the model"

Seen = frozenset[bytes]
"""Keys of items."""


def seen_of(items: Iterable[Item], *, with_context: bool = False) -> Seen:
    """The keys by which items are known again."""
    by_subject: dict[str, set[str]] = defaultdict(set)
    for item in items:
        check_cancelled()
        for subject in _subjects(item, with_context):
            by_subject[subject].add(_plain(asked_of(item)))
    # a question that is asked with several sets of options says nothing by itself
    return frozenset(
        _key(subject if len(asked) == 1 else full) for subject, asked in by_subject.items() for full in asked
    )


def is_seen(item: Item, seen: Seen, *, with_context: bool = False) -> bool:
    """True if the item is among those that `seen` was made of, in the same way."""
    check_cancelled()
    subjects = _subjects(item, with_context)
    return _key(_plain(asked_of(item))) in seen or any(_key(subject) in seen for subject in subjects)


def recorded(seen: Seen) -> str | None:
    """`seen` as text for a vector's record, None if there are too many."""
    if len(seen) > _MOST_RECORDED:
        return None
    return base64.b64encode(b"".join(sorted(seen))).decode()


def of_record(text: object) -> Seen | None:
    """What `recorded` wrote, None for anything else."""
    if not isinstance(text, str):
        return None
    try:
        keys = base64.b64decode(text, validate=True)
    except ValueError:
        return None
    return frozenset(keys[first : first + _KEY_BYTES] for first in range(0, len(keys), _KEY_BYTES))


def without_seen(
    data: DataSet, seen: Seen, what: str, where: str, *, with_context: bool = False
) -> tuple[DataSet, list[str]]:
    """The data without items that are seen, and a sentence on how many there were.

    `what` names the data and `where` what its items were seen in. Raises `InvalidData` if none is left.
    """
    kept = tuple(item for item in data.items if not is_seen(item, seen, with_context=with_context))
    num_seen = len(data.items) - len(kept)
    if not num_seen:
        return data, []
    if not kept:
        raise InvalidData(f"{what}: all {num_seen} items are {where}, so none of them is held out", data.name)
    note = f"{what}: {num_seen} of {len(data.items)} items are {where} and were left out; {len(kept)} remain"
    return _with_items(data, kept), [note]


def without_too_long(data: DataSet, examiner: Examiner, max_length: int, max_skipped: float) -> DataSet:
    """The data without the items that the model cannot be asked, and with their number.

    Raises the error of the first one if they are more than the share `max_skipped`.
    """
    kept: list[Any] = []
    first: InvalidData | None = None
    for item in data.items:
        check_cancelled()
        # a token stands for at least one byte of text, so a short text cannot be too long
        if isinstance(item, ChoiceItem) and _num_bytes(item) + _SPARE_TOKENS < max_length:
            kept.append(item)
            continue
        shown = ShownItem(item, tuple(range(len(item.choices)))) if isinstance(item, ChoiceItem) else item
        try:
            examiner.check(shown)
        except InvalidData as error:
            first = first or InvalidData(error.reason, data.name, item.line or error.line)
        else:
            kept.append(item)
    if first is None:
        return data
    num_skipped = len(data.items) - len(kept)
    if num_skipped > max_skipped * len(data.items):
        more = f" ({num_skipped} of {len(data.items)} items, more than max_skipped {max_skipped:g} allows)"
        raise InvalidData(f"{first.reason}{more}", data.name, first.line)
    found = _with_items(data, kept)
    if found.understood is None:
        return found
    skipped = {**found.understood.skipped, TOO_LONG: num_skipped}
    return dataclasses.replace(found, understood=dataclasses.replace(found.understood, skipped=skipped))


def _with_items(data: DataSet, items: Sequence[Any]) -> DataSet:
    return dataclasses.replace(data, items=tuple(items))


def _num_bytes(item: ChoiceItem) -> int:
    texts = (item.question, *item.choices, item.context or "")
    return sum(len(text.encode()) for text in texts)


def _subjects(item: Item, with_context: bool) -> list[str]:
    """What an item asks; a pair without a prompt asks each of its texts."""
    if isinstance(item, PairItem):
        return [_plain(subject_of(item))] if item.prompt else [_plain(item.positive), _plain(item.negative)]
    context = f" {item.context}" if with_context and item.context else ""
    return [_plain(subject_of(item) + context)]


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold())) or text


def _key(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()[:_KEY_BYTES]
