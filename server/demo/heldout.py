"""Held-out prompts: what the figures and the vectors are measured on.

Facts are asked in combinations of fact and wording that training never sees (or, `new`, in a wording that it
never sees at all), with fresh options and beliefs; everyday prompts are combinations of question and thing
that it never sees.
"""

from __future__ import annotations

import random
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
