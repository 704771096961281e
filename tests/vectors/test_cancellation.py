"""Work that is told to stop stops at the next row or item, in every loop over the data."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from vectors.cancellation import Cancelled, cancellable, check_cancelled
from vectors.data import read_data
from vectors.training.apart import seen_of, without_seen

NUM_ROWS = 200
ROWS = [
    {"question": f"Name the capital of {number}", "choices": ["aa", "bb", "cc", "dd"], "answer": number % 4}
    for number in range(NUM_ROWS)
]
JSONL = "\n".join(map(json.dumps, ROWS)).encode()
LIST = json.dumps(ROWS).encode()
CSV = "\n".join(
    ["question,A,B,C,D,answer", *(f"{row['question']},a,b,c,d,{'ABCD'[int(str(row['answer']))]}" for row in ROWS)]
).encode()
DATA = read_data(JSONL, "data.jsonl")

WORK: dict[str, Callable[[], Any]] = {
    "reading JSONL": lambda: read_data(JSONL, "data.jsonl"),
    "reading a list": lambda: read_data(LIST, "data.json"),
    "reading CSV": lambda: read_data(CSV, "data.csv"),
    "knowing items again": lambda: seen_of(DATA.items),
    "leaving out items": lambda: without_seen(DATA, frozenset({b"none"}), "data", "there"),
}


@pytest.mark.parametrize("name", WORK)
def test_every_loop_over_the_data_hears_that_it_is_to_stop(name: str) -> None:
    num_asked = 0

    def is_cancelled() -> bool:
        nonlocal num_asked
        num_asked += 1
        return num_asked > NUM_ROWS // 2

    with pytest.raises(Cancelled), cancellable(is_cancelled):
        WORK[name]()
    assert num_asked == NUM_ROWS // 2 + 1
    WORK[name]()  # nobody asks it to stop now


def test_the_question_belongs_to_the_work_around() -> None:
    check_cancelled()
    with cancellable(lambda: True):
        with cancellable(lambda: False):
            check_cancelled()
        with pytest.raises(Cancelled):
            check_cancelled()
    check_cancelled()
