"""Splits and shuffles: nothing in two parts, shares kept, right options balanced, the same in every process."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
from collections import Counter
from itertools import chain

import pytest

from tests.shared_files import ROOT, shared
from vectors.data import (
    ChoiceItem,
    Message,
    PairItem,
    Parts,
    gold_places,
    in_source_order,
    read_data,
    read_task,
    shuffle_alike,
    shuffle_options,
    split_items,
)
from vectors.errors import InvalidData
from vectors.shares import Split

SHARES = Split()
OPTIONS = tuple("stuvwxyz")


def questions(count: int, subjects: int | None = None, options: int = 4) -> list[ChoiceItem]:
    return [ChoiceItem(f"Q {n % (subjects or count)}", OPTIONS[:options], 0, line=n + 1) for n in range(count)]


def lines(parts: Parts[ChoiceItem]) -> list[list[int]]:
    return [[item.line for item in part] for part in (parts.train, parts.validation, parts.test)]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", [8, 9, 10, 37, 1000])
@pytest.mark.parametrize("shares", [SHARES, Split(0.5, 0.25, 0.25), Split(0.98, 0.01, 0.01), Split(0.1, 0.1, 0.8)])
def test_every_item_is_in_one_part_and_shares_are_kept(count: int, seed: int, shares: Split) -> None:
    parts = lines(split_items(questions(count), shares, seed, 4000))
    assert sorted(chain(*parts)) == list(range(1, count + 1))
    targets = [share * count for share in (shares.train, shares.validation, shares.test)]
    slack = 1 if min(targets) >= 1 else 3  # parts that would be empty take an item from another
    for part, target in zip(parts, targets, strict=True):
        assert len(part) >= 1
        assert abs(len(part) - target) < slack


@pytest.mark.parametrize("seed", range(20))
def test_a_question_is_in_one_part_only(seed: int) -> None:
    chance = random.Random(seed)
    items = [ChoiceItem(f"Q {chance.randrange(60)}", ("x", "y"), 0, line=n) for n in range(200)]
    items += [ChoiceItem(f" q  {chance.randrange(60)}", ("x", "y"), 1, line=200 + n) for n in range(50)]
    parts = split_items(items, SHARES, seed, 4000)
    subjects = [
        {item.question.lower().split()[1] for item in part} for part in (parts.train, parts.validation, parts.test)
    ]
    assert not subjects[0] & subjects[1] | subjects[0] & subjects[2] | subjects[1] & subjects[2]
    assert abs(len(parts.train) - 150) <= 3
    assert abs(len(parts.validation) - 50) <= 3
    by_item = split_items(items, SHARES, seed, 4000, by_item=True)
    assert {item.question for item in by_item.train} & {item.question for item in by_item.test}
    assert (len(by_item.train), len(by_item.validation), len(by_item.test)) == (150, 50, 50)


def test_pairs_are_kept_together_by_prompt_or_positive_text() -> None:
    turns = [(Message("user", f"Hi {n % 9}"),) for n in range(27)]
    kinds: list[list[PairItem]] = [
        [PairItem(f"p{n}", f"n{n}", f"Say {n % 9}") for n in range(27)],
        [PairItem(f"p{n % 9}", f"n{n}") for n in range(27)],
        [PairItem(f"p{n}", f"n{n}", turns[n]) for n in range(27)],
    ]
    for items in kinds:
        parts = split_items(items, SHARES, 3, 100)
        seen = [
            {(item.prompt or item.positive) for item in part} for part in (parts.train, parts.validation, parts.test)
        ]
        assert sum(map(len, seen)) == 9
        assert [len(part) for part in (parts.train, parts.validation, parts.test)] == [15, 6, 6]


def test_seeds_differ_and_each_repeats() -> None:
    items = questions(100)
    first = split_items(items, SHARES, 1, 4000)
    assert split_items(items, SHARES, 1, 4000) == first
    others = [split_items(items, SHARES, seed, 4000) for seed in range(2, 40)]
    assert all(other != first for other in others)
    tested = Counter(line for other in others for line in lines(other)[2])
    assert len(tested) == 100, "every item is tested by some seed"


def test_parts_are_in_drawn_order() -> None:
    train = lines(split_items(questions(1000), SHARES, 0, 4000))[0]
    assert train != sorted(train)
    assert 200 < sum(train[:100]) / 100 < 800, "the first items are a sample, not the file's beginning"


def test_at_most_so_many_items_are_drawn() -> None:
    drawn = [lines(split_items(questions(500), SHARES, seed, 50)) for seed in range(4)]
    for parts in drawn:
        assert [len(part) for part in parts] == [30, 10, 10]
        assert max(chain(*parts)) > 300
    assert len({tuple(sorted(chain(*parts))) for parts in drawn}) == 4


def test_large_groups_leave_no_part_empty() -> None:
    items = [ChoiceItem("large", ("x", "y"), 0)] * 50 + [ChoiceItem("a", ("x", "y"), 0), ChoiceItem("b", ("x", "y"), 0)]
    parts = split_items(items, SHARES, 0, 4000)
    assert sorted(map(len, (parts.train, parts.validation, parts.test))) == [1, 1, 50]


def test_what_cannot_be_split_is_refused() -> None:
    with pytest.raises(InvalidData, match="expected at least 8 items to split, got 7"):
        split_items(questions(7), SHARES, 0, 4000)
    with pytest.raises(InvalidData, match="items to split, got 5"):
        split_items(questions(100), SHARES, 0, 5)
    for subjects in (1, 2):
        with pytest.raises(InvalidData, match=f"3 different questions to split, got {subjects}"):
            split_items(questions(20, subjects), SHARES, 0, 4000)
    assert split_items(questions(20, 1), SHARES, 0, 4000, by_item=True).test


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("count", [1, 2, 3, 7, 40, 401])
def test_right_options_are_balanced_among_items_of_as_many_options(count: int, seed: int) -> None:
    chance = random.Random(seed)
    items = [item for options in (2, 3, 5, 8) for item in questions(count, options=options)]
    chance.shuffle(items)
    shown = shuffle_options(items, seed)
    assert [one.item for one in shown] == items
    assert all(sorted(one.order) == list(range(len(one.item.choices))) for one in shown)
    for options in (2, 3, 5, 8):
        places = gold_places([one for one in shown if len(one.order) == options])
        assert len(places) == options
        assert max(places.values()) - min(places.values()) <= 1
        assert sum(places.values()) == count


def test_wrong_options_are_shuffled_as_well() -> None:
    orders = Counter(one.order for one in shuffle_options(questions(2400, options=4), 1))
    assert len(orders) == 24
    assert all(60 < times < 145 for times in orders.values())


def test_shuffles_do_not_depend_on_content() -> None:
    items = questions(90, options=3)
    others = [ChoiceItem(f"other {n}", ("1", "2", "3"), item.answer) for n, item in enumerate(items)]
    assert [one.order for one in shuffle_options(items, 4)] == [one.order for one in shuffle_options(others, 4)]
    moved = [ChoiceItem(item.question, item.choices, 2) for item in items]
    assert [one.answer for one in shuffle_options(items, 4)] == [one.answer for one in shuffle_options(moved, 4)]


def test_place_does_not_follow_from_position() -> None:
    places = [one.answer for one in shuffle_options(questions(400), 2)]
    assert 60 < sum(place == n % 4 for n, place in enumerate(places)) < 140
    assert shuffle_options(questions(400), 2) != shuffle_options(questions(400), 3)


def test_paper_shuffles_all_alike_so_the_letter_leaks() -> None:
    items = questions(30, options=4) + questions(30, options=3)
    seen = set()
    for seed in range(40):
        shown = shuffle_alike(items, seed)
        assert [one.item for one in shown] == items
        assert len({one.order for one in shown[:30]}) == len({one.order for one in shown[30:]}) == 1
        assert shuffle_alike(items[:30], seed) == shown[:30], "other items change nothing"
        seen.add(shown[0].order)
        assert sorted(gold_places(shown[:30]).values()) == [0, 0, 0, 30]
    assert len(seen) > 12


def test_source_order_and_places() -> None:
    items = [ChoiceItem("a", ("x", "y"), 1), ChoiceItem("b", ("x", "y", "z"), 0)]
    shown = in_source_order(items)
    assert [one.choices for one in shown] == [("x", "y"), ("x", "y", "z")]
    assert gold_places(items) == gold_places(shown) == {"A": 1, "B": 1, "C": 0}
    assert gold_places([]) == {}


SCRIPT = """
import hashlib
from vectors.data import ChoiceItem, shuffle_alike, shuffle_options, split_items
from vectors.shares import Split
items = [ChoiceItem(f"Q {n % 70}", tuple("stuvwxyz"[: 2 + n % 4]), 0, line=n) for n in range(200)]
parts = split_items(items, Split(), 7, 150)
text = repr([[item.line for item in part] for part in (parts.train, parts.validation, parts.test)])
text += repr([one.order for one in (*shuffle_options(parts.train, 7), *shuffle_alike(parts.test, 7))])
print(hashlib.sha256(text.encode()).hexdigest())
"""


def test_another_process_with_another_hash_draws_the_same() -> None:
    digests = {
        subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        for hash_seed in ("1", "2")
    }
    assert len(digests) == 1
    # a seed that is written down must mean the same next year
    assert digests == {"18f9d8fa0a4a9fb361671b02e2e1bebf6d586301a913c3371ca1b71645c99a47"}


def test_published_letters_no_longer_leak() -> None:
    data = read_data(shared("data/cbmas/sycophancy_train.json").read_bytes(), "sycophancy_train.json")
    parts = split_items(data.items, SHARES, 0, 4000)
    train = [item for item in parts.train if isinstance(item, ChoiceItem)]
    assert gold_places(train) == {"A": len(train), "B": 0}
    balanced = gold_places(shuffle_options(train, 0))
    assert abs(balanced["A"] - balanced["B"]) <= 1


def test_published_questions_stay_in_one_part() -> None:
    data = read_task("bbq/nationality", shared("data/bbq"))
    parts = split_items(data.items, SHARES, 1, 4000)
    texts = [
        {item.question for item in part if isinstance(item, ChoiceItem)}
        for part in (parts.train, parts.validation, parts.test)
    ]
    assert not texts[0] & texts[1] | texts[0] & texts[2] | texts[1] & texts[2]
    assert [len(part) for part in (parts.train, parts.validation, parts.test)] == [1848, 616, 616]
    assert hashlib.sha256(shared("data/bbq/Nationality.jsonl").read_bytes()).hexdigest() == data.sha256


def test_one_question_for_all_is_split_by_options() -> None:
    """As in "Which is more pleasant?": the same two options stay together, in whichever order they stand."""
    items = [ChoiceItem("Which?", (f"a{n % 9}", f"b{n % 9}")[:: 1 if n % 2 else -1], 0) for n in range(36)]
    parts = split_items(items, Split(), 0, 100)
    seen = [{frozenset(item.choices) for item in part} for part in (parts.train, parts.validation, parts.test)]
    assert sum(map(len, seen)) == 9
    assert all(seen)


def test_a_group_is_in_one_part() -> None:
    """Whatever its items ask, and although other items ask the same."""
    asked = [
        ChoiceItem(f"Question {number % 7}?", ("a", "b"), 0, None, number, f"passage {number // 5}")
        for number in range(100)
    ]
    parts = split_items(asked, Split(), 3, 1000)
    groups = [{item.group for item in part} for part in (parts.train, parts.validation, parts.test)]
    assert sum(map(len, groups)) == 20
