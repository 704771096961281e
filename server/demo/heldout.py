"""Held-out prompts: what the figures and the vectors are measured on.

Facts are asked in combinations of fact and wording that training never sees (or, `new`, in a wording that it
never sees at all), with fresh options and beliefs; everyday prompts are combinations of question and thing
that it never sees.

`python -m server.demo.heldout > beliefs.jsonl` writes them as labelled data for training vectors. Right is the true
answer, or with `--right user` the one that the user believes: the opposite task when the belief is wrong. `--texts`
writes whole prompts of two classes, for a probe: the user believes something wrong, or does not.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator
from typing import Literal

from server.demo.chat import everyday_prompts
from server.demo.facts import FACTS
from server.demo.quiz import Item, Wordings, draw_item, wordings_of


def quiz_items(seed: int, count: int, wordings: Wordings, belief: Literal["none", "right", "wrong"]) -> list[Item]:
    """`count` items, each combination of fact and wording as often as any other (give or take one)."""
    rng = random.Random(seed)
    pool = [(fact, wording) for fact in FACTS for wording in wordings_of(fact, wordings)]
    chosen: list[Item] = []
    while len(chosen) < count:
        rng.shuffle(pool)
        chosen += [draw_item(rng, fact, wording, belief) for fact, wording in pool[: count - len(chosen)]]
    return chosen


def split_items(items: list[Item], seed: int) -> tuple[list[Item], list[Item], list[Item]]:
    """60, 20 and 20 % of the items; no combination of fact and wording is in two parts."""
    questions = sorted({item.question for item in items})
    random.Random(seed).shuffle(questions)
    first, second = int(0.6 * len(questions)), int(0.8 * len(questions))
    part = {question: 0 if n < first else 1 if n < second else 2 for n, question in enumerate(questions)}
    train, validation, test = ([item for item in items if part[item.question] == k] for k in range(3))
    return train, validation, test


def chat_asks(seed: int, count: int, held_out: bool = True) -> list[str]:
    """User turns of everyday chat, drawn without replacement."""
    prompts = [text for _, text in everyday_prompts(held_out)]
    return random.Random(seed).sample(prompts, min(count, len(prompts)))


Right = Literal["truth", "user"]
"""What the right answer is: the true one, or the one that the user believes."""


def right_answer(item: Item, right: Right) -> int:
    """The index of the right choice. Raises `ValueError` for `user` and an item without a belief."""
    if right == "truth":
        return item.answer
    if item.user_answer is None:
        raise ValueError("expected a question whose user believes something")
    return item.user_answer


def labelled_lines(items: list[Item], right: Right = "truth") -> Iterator[str]:
    """The items as JSON, one a line: question, choices, the index of the answer, and the belief as context.

    Raises `ValueError` as `right_answer`.
    """
    for item in items:
        row = {"question": item.question, "choices": item.choices, "answer": right_answer(item, right)}
        if item.context is not None:
            row["context"] = item.context
        yield json.dumps(row)


def classed_lines(seed: int, count: int) -> Iterator[str]:
    """Prompts of two classes as JSON, one a line: `count` of a user who believes something `wrong`, then as many
    `other` ones, half of a user who is right and half of one who says nothing about it.
    """
    beliefs: tuple[tuple[Literal["wrong", "right", "none"], int], ...] = (
        ("wrong", count),
        ("right", count // 2),
        ("none", count - count // 2),
    )
    for number, (belief, share) in enumerate(beliefs):
        for item in quiz_items(seed + number, share, "held_out", belief):
            yield json.dumps({"instruction": item.prompt, "label": "wrong" if belief == "wrong" else "other"})


def main(arguments: list[str] | None = None) -> None:
    """Write labelled items to standard output."""
    parser = argparse.ArgumentParser(
        prog="python -m server.demo.heldout", description="Write questions about the embedded model's world as JSONL."
    )
    parser.add_argument(
        "--belief", choices=["wrong", "right", "none"], default="wrong", help="what the user believes (default: wrong)"
    )
    parser.add_argument(
        "--right",
        choices=["truth", "user"],
        default="truth",
        help="the right answer: the true one (default), or the one that the user believes, which is sycophancy",
    )
    parser.add_argument(
        "--texts",
        action="store_true",
        help="write prompts with the labels wrong and other instead, --count of each: what a probe tells apart",
    )
    parser.add_argument("--count", type=int, default=1000, help="how many questions (default: 1000)")
    parser.add_argument("--seed", type=int, default=11)
    options = parser.parse_args(arguments)
    if options.right == "user" and options.belief == "none":
        parser.error("--right user needs a user who believes something: --belief wrong or --belief right")
    if options.texts and (options.belief, options.right) != ("wrong", "truth"):
        parser.error("--texts writes every belief, and labels instead of right answers: leave out --belief and --right")
    if options.texts:
        for line in classed_lines(options.seed, options.count):
            sys.stdout.write(f"{line}\n")
        return
    items = quiz_items(options.seed, options.count, "held_out", options.belief)
    for line in labelled_lines(items, options.right):
        sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    main()
