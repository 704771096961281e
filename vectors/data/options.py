"""ReadOptions: how labelled data is read where the file alone does not say it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

ROLES = (
    "question", "passage", "context", "choices", "answer", "correct", "incorrect", "prompt", "positive", "negative",
    "text", "label", "rows",
)  # fmt: skip
"""What a field of a file can be: the names that `map` has on its left."""

MAX_SKIPPED = 0.1

Turn = Literal["user", "assistant"]


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How to read a file.

    `map` gives fields their roles (`choices` and `incorrect` may be several fields); the other roles are found by the
    names of fields. `max_skipped` is the share of rows that may be left out because no item can be made of them.
    `positive_class` is the label of the wanted class, `first_answer` the number of the first option where answers are
    numbers, `turn` says whose words the texts are that stand without a prompt. None: the file says it.
    """

    map: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    max_skipped: float = MAX_SKIPPED
    positive_class: str | None = None
    first_answer: int | None = None
    turn: Turn | None = None

    def without_map(self) -> ReadOptions:
        """The same for a file with fields of its own, such as one for retention."""
        return dataclasses.replace(self, map={}, first_answer=None)
