"""Simulated trainings: data and a model whose answers are drawn, with the effect that is planted and no other.

A model has an opinion on some items, which it gives under every rotation, and guesses on the others. A cell of the
search changes the answers to some items in one of the ways that vectors do: other opinions, one letter for everything,
or one text for everything. As in a training, the best cell on the validation items is tested on others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.random import Generator

from vectors.training.held_out import held_out_result
from vectors.training.method import Method
from vectors.training.outcomes import Answers, ItemOutcome
from vectors.training.verdict import Verdict, verdict_of

Kind = Literal["random", "letter", "text", "unknown", "groups"]
NO_RETENTION = {"accuracy": None, "perplexity": None}
UNKNOWN = ("Unknown", "Not known", "Cannot be determined", "Can't answer", "Not enough info")
IN_A_GROUP = 8


@dataclass(frozen=True)
class Question:
    """An item before it is asked: its first order and the option that the model believes, if it believes one."""

    choices: tuple[str, ...]
    answer: int
    order: tuple[int, ...]
    group: str | None
    opinion: int | None

    @property
    def orders(self) -> tuple[tuple[int, ...], ...]:
        return tuple(self.order[first:] + self.order[:first] for first in range(len(self.order)))


def questions(kind: Kind, count: int, num_options: int, chance: Generator, *, belief: float = 0.5) -> list[Question]:
    """Items of a set in which there is nothing to learn but a letter, a text, or what copies of an item share."""
    made: list[Question] = []
    while len(made) < count:
        number = len(made)
        choices = tuple(f"option {number} {place}" for place in range(num_options))
        answer = int(chance.integers(num_options))
        opinion = int(chance.integers(num_options)) if chance.random() < belief else None
        if kind == "text":
            choices, answer = ("Yes", "No"), int(chance.random() < 0.8)
            opinion = int(chance.integers(2))
        elif kind == "unknown":
            choices = (UNKNOWN[chance.integers(len(UNKNOWN))], *choices[1:])
            answer = 0 if chance.random() < 0.6 else answer
        elif kind == "letter" and opinion == answer:
            # as a sycophant, below chance: any letter for everything is a gain
            opinion = (answer + 1) % num_options
        copies = IN_A_GROUP if kind == "groups" else 1
        for _ in range(copies):
            order = tuple(int(place) for place in chance.permutation(len(choices)))
            made.append(Question(choices, answer, order, f"group {number}" if copies > 1 else None, opinion))
    return made[:count]


def answers_of(question: Question, chance: Generator) -> Answers:
    """What the model says: its opinion, or a guess at each asking."""
    if question.opinion is not None:
        return (question.opinion,) * len(question.orders)
    return tuple(int(chance.integers(len(question.choices))) for _ in question.orders)


def steered(asked: Sequence[Question], before: Sequence[Answers], kind: Kind, chance: Generator) -> list[Answers]:
    """A cell's answers: `strength` of the items change, copies of an item together."""
    strength = chance.random()
    ways = {"letter": ("letter",), "text": ("text",), "unknown": ("text",)}.get(kind, ("opinion", "letter"))
    way = ways[chance.integers(len(ways))]
    place = int(chance.integers(len(asked[0].choices)))
    changes: dict[object, tuple[bool, int]] = {}
    found = []
    for number, (question, answers) in enumerate(zip(asked, before, strict=True)):
        key = number if question.group is None else question.group
        drawn = (bool(chance.random() < strength), int(chance.integers(len(question.choices))))
        changed, option = changes.setdefault(key, drawn)
        if not changed:
            found.append(answers)
        elif way == "letter":
            found.append(tuple(order[place] for order in question.orders))
        else:
            chosen = (0 if kind == "unknown" else 1) if way == "text" else option
            found.append((chosen,) * len(question.orders))
    return found


def training(kind: Kind, seed: int, *, num_options: int = 3, num_test: int = 160, num_cells: int = 36) -> Verdict:
    """The verdict on one set: the best of `num_cells` on 80 validation items, tested on others."""
    chance = np.random.default_rng([seed, num_options])
    asked = questions(kind, 80 + num_test, num_options, chance)
    before = [answers_of(question, chance) for question in asked]
    best, best_right = before, -1
    for _ in range(num_cells):
        after = steered(asked, before, kind, chance)
        right = num_right(asked[:80], after[:80])
        if right > best_right:
            best, best_right = after, right
    return verdict_of(
        held_out_result(outcomes_of(asked[80:], before[80:], best[80:])),
        Method(),
        NO_RETENTION,
        unsteered_wins=num_right(asked[:80], before[:80]) >= best_right,
    )


def num_right(asked: Sequence[Question], answers: Sequence[Answers]) -> int:
    """How many are right in the first order."""
    return sum(found[0] == question.answer for question, found in zip(asked, answers, strict=True))


def outcomes_of(
    asked: Sequence[Question], before: Sequence[Answers], after: Sequence[Answers]
) -> tuple[ItemOutcome, ...]:
    """The outcomes of a test."""
    return tuple(
        ItemOutcome(line, question.group, question.choices, question.answer, question.orders, *answers)
        for line, (question, *answers) in enumerate(zip(asked, before, after, strict=True), 1)
    )


def planted(seed: int, num_options: int, gain: float, *, count: int = 160, belief: float = 0.5) -> Verdict:
    """The verdict on a vector that makes the model right where it was wrong, in `gain` of all items."""
    chance = np.random.default_rng([seed, num_options, 1])
    asked = questions("random", count, num_options, chance, belief=belief)
    before = [answers_of(question, chance) for question in asked]
    share = gain / (1 - 1 / num_options)
    after = [
        (question.answer,) * len(question.orders) if chance.random() < share else answers
        for question, answers in zip(asked, before, strict=True)
    ]
    return verdict_of(held_out_result(outcomes_of(asked, before, after)), Method(), NO_RETENTION)
