"""The race: a search that stops asking cells that cannot become the best, and finds the one that the whole grid would.

All cells are asked the first items. The one that is then ahead is asked all the others, and from then on a cell drops
out as soon as the best finished one stays before it even if it answers everything that is left correctly. That is
certain, not likely: the choice never depends on the race, and what a dropped cell would have scored is known as an
interval only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from vectors.training.examiner import Advance, Examiner, Question, Steerings, answers_of

Right: TypeAlias = npt.NDArray[np.int8]
"""`[steerings, questions]`: 1 answered right, 0 wrong, `NOT_ASKED`."""

NOT_ASKED = -1

_LEAST_ITEMS = 4
_PARTS = 25
"""A round has this part of all items, and at least so many."""

_LEAST_ANSWERS = 256
"""The answers that a round asks for at least, so that cells share batches."""


def race(
    steerings: Steerings,
    fields: Sequence[Sequence[int]],
    ties: Sequence[float],
    questions: Sequence[Question],
    examiner: Examiner,
    advance: Advance,
) -> Right:
    """Which questions each of `steerings` answers right, until it drops out.

    `fields`: the numbers of the steerings that race each other; those in no field are asked everything. The best of a
    field is the one with the most right answers, of equals the one with the smallest of `ties`, one for each steering,
    then the first. It is asked everything too. `advance` receives about how many of the questions are done.
    """
    course = _Course(steerings, ties, questions, examiner, advance)
    running = [list(field) for field in fields]
    best: list[int | None] = [None] * len(fields)
    others = sorted(set(range(len(steerings))).difference(*fields))
    least = max(_LEAST_ITEMS, len(questions) // _PARTS)
    num_asked = min(len(questions), least)
    course.ask(range(len(steerings)), 0, num_asked)
    while num_asked < len(questions) and (others or any(running)):
        ahead = [course.ahead(field, before, num_asked) for field, before in zip(running, best, strict=True)]
        course.ask([*others, *(number for number in ahead if number is not None)], num_asked, len(questions))
        others = []
        for place, number in enumerate(ahead):
            best[place] = course.first([each for each in (best[place], number) if each is not None], len(questions))
            running[place] = [
                each for each in running[place] if each != number and course.can_precede(each, best[place])
            ]
        left = [number for each in running for number in each]
        until = min(len(questions), num_asked + max(least, _LEAST_ANSWERS // max(1, len(left))))
        course.ask(left, num_asked, until)
        num_asked = until
    return course.right


class _Course:
    """What has been answered, and the order that follows from it."""

    def __init__(
        self,
        steerings: Steerings,
        ties: Sequence[float],
        questions: Sequence[Question],
        examiner: Examiner,
        advance: Advance,
    ) -> None:
        self.right: Right = np.full((len(steerings), len(questions)), NOT_ASKED, dtype=np.int8)
        self._steerings, self._ties = steerings, ties
        self._questions, self._answers = questions, answers_of(questions)
        self._examiner, self._advance = examiner, advance
        self._num_shown = 0

    def ask(self, numbers: Sequence[int], first: int, last: int) -> None:
        """Ask the steerings `numbers` the questions from `first` to `last` (exclusive)."""
        if not numbers:
            return

        def advance(num_done: int) -> None:
            if first + num_done > self._num_shown:
                self._num_shown = first + num_done
                self._advance(self._num_shown)

        asked = [self._steerings[number] for number in numbers]
        chosen = self._examiner.choose(self._questions[first:last], asked, advance)
        self.right[numbers, first:last] = chosen == self._answers[first:last]

    def first(self, numbers: Sequence[int], num_asked: int) -> int | None:
        """The best of `numbers` on the first `num_asked` questions; None of none."""
        return min(numbers, key=lambda number: self._rank(number, num_asked), default=None)

    def ahead(self, running: Sequence[int], best: int | None, num_asked: int) -> int | None:
        """The best of `running` so far, if it has more right than `best` has of the same questions."""
        first = self.first(running, num_asked)
        if first is None or best is None:
            return first
        return first if self._rank(first, num_asked)[0] < self._rank(best, num_asked)[0] else None

    def can_precede(self, number: int, best: int | None) -> bool:
        """True unless `best`, which was asked everything, comes first even if `number` has all the rest right."""
        if best is None:
            return True
        num_wrong = int(np.count_nonzero(self.right[number] == 0))
        most = (num_wrong - len(self._questions), self._ties[number], number)
        return most < self._rank(best, len(self._questions))

    def _rank(self, number: int, num_asked: int) -> tuple[int, float, int]:
        """The smallest comes first."""
        num_right = int(np.count_nonzero(self.right[number, :num_asked] == 1))
        return (-num_right, self._ties[number], number)
