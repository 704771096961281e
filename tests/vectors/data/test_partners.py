"""Texts of two classes in groups: how they are paired, and which pairs are then in one group."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from vectors.data import read_data
from vectors.data.items import PairItem
from vectors.data.partners import Kin, couples_of, linked_groups
from vectors.data.split import split_items
from vectors.shares import Split
from vectors.training.probe_texts import labelled_texts


def rows(*given: tuple[str, str, str | None]) -> bytes:
    """Texts with their labels and groups."""
    fields = ({"text": text, "label": label} | ({"group": group} if group else {}) for text, label, group in given)
    return b"\n".join(json.dumps(row).encode() for row in fields)


def pairs(content: bytes) -> list[PairItem]:
    return [item for item in read_data(content, "said.jsonl").items if isinstance(item, PairItem)]


def test_texts_are_paired_within_their_group_and_keep_it() -> None:
    given = [
        (f"{label} {group} {n}", label, f"g{group}") for n in range(2) for label in ("pos", "neg") for group in "cab"
    ]
    found = pairs(rows(*given))
    assert len(found) == 6
    for pair in found:
        assert pair.positive.split()[1] == pair.negative.split()[1]
        assert pair.group == f"g{pair.positive.split()[1]}"


def test_groups_of_one_class_each_are_linked_two_by_two() -> None:
    """As with authors who wrote texts of one class only: no text of one is in another part of the split."""
    sizes = {"a": 3, "b": 5, "c": 2, "d": 4, "e": 3, "f": 4, "g": 2, "h": 5}
    given = [
        (f"{'pos' if author in 'aceg' else 'neg'} {author} {n}", "pos" if author in "aceg" else "neg", author)
        for author, size in sizes.items()
        for n in range(size)
    ]
    found = pairs(rows(*given))
    linked = {
        pair.group: {one.positive.split()[1] + one.negative.split()[1] for one in found if one.group == pair.group}
        for pair in found
    }
    assert all(len(couples) == 1 for couples in linked.values())
    assert len(linked) == 4
    parts = split_items(found, Split(), 0, 1000)
    authors = [
        {text.split()[1] for pair in part for text in (pair.positive, pair.negative)}
        for part in (parts.train, parts.validation, parts.test)
    ]
    assert sum(map(len, authors)) == len(set().union(*authors))


def test_a_probe_counts_texts_of_one_group_as_one() -> None:
    given = [(f"{label} {n}", label, f"g{n // 3}") for label in ("pos", "neg") for n in range(12)]
    texts = labelled_texts(pairs(rows(*given)))
    assert len({text.group for text in texts}) == 4
    assert len(texts) == 24


def test_without_groups_texts_are_paired_in_the_order_of_the_file() -> None:
    found = pairs(rows(*[(f"{label} {n}", label, None) for label in ("pos", "neg") for n in range(4)]))
    assert [(pair.positive, pair.negative) for pair in found] == [(f"pos {n}", f"neg {n}") for n in range(4)]
    assert {pair.group for pair in found} == {None}


@pytest.mark.parametrize("seed", range(30))
def test_pairs_use_each_text_once_and_link_no_more_than_two_groups(seed: int) -> None:
    chance = np.random.default_rng(seed)

    def drawn(count: int) -> list[Kin]:
        names = chance.integers(0, 7, count).tolist()
        return [Kin("", None if name == 0 else f"g{name}") for name in names]

    wanted, others = drawn(int(chance.integers(1, 25))), drawn(int(chance.integers(1, 25)))
    couples = couples_of(wanted, others)
    assert [one for one, _ in couples] == sorted({one for one, _ in couples})
    assert len({other for _, other in couples}) == len(couples)
    own, their = (Counter(kin.group for kin in kins) for kins in (wanted, others))
    shared = sum(min(own[name], their[name]) for name in own if name is not None)
    assert sum(wanted[one].group == others[other].group is not None for one, other in couples) == shared
    names = [(wanted[one].group, others[other].group) for one, other in couples]
    linked: dict[str | None, set[str]] = {}
    for couple, group in zip(names, linked_groups(names), strict=True):
        assert (group is None) == (couple == (None, None))
        linked.setdefault(group, set()).update(name for name in couple if name is not None)
    assert all(len(together) <= 2 for together in linked.values())
    members = [name for together in linked.values() for name in together]
    assert len(members) == len(set(members))  # a group is in one place
