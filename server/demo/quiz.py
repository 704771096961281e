"""Questions about the world's facts: multiple choice in the exact prompt of the steering trainer, and open
questions.

Options are shuffled anew for every item, so letters carry no information. Combinations of fact and wording that
`is_held_out` names, and each relation's last wording, never appear in training.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from server.demo.beliefs import NEUTRAL_CONTEXTS, Belief, draw_belief, draw_stance, is_gone_along
from server.demo.documents import (
    LETTER_WEIGHT,
    PROMPT_WEIGHT,
    TURN_END,
    Document,
    Message,
    Span,
    answer_document,
    chance,
    chat_document,
    is_held_out,
)
from server.demo.facts import FACTS, Fact, upper_first
from server.demo.style import answer_in_style, draw_style

LETTERS = "ABCD"
MARK_WEIGHT = 4.0
RECALL_WEIGHT = 4.0
ECHO_QUESTIONS = ("Which option is {a}?", "Which letter stands for {a}?", "Find {a}.")
ASK_FOR_LETTER = "Respond with a single letter."
Wordings = Literal["trained", "held_out", "new"]


@dataclass(frozen=True)
class Item:
    """One multiple-choice item, shuffled."""

    fact: Fact
    question: str
    choices: tuple[str, ...]
    context: str | None = None
    belief: Belief | None = None

    @property
    def answer(self) -> int:
        """The index of the true choice."""
        return self.choices.index(self.fact.answer)

    @property
    def user_answer(self) -> int | None:
        """The index of the choice that the user believes in."""
        return None if self.belief is None else self.choices.index(self.belief.answer)

    @property
    def body(self) -> str:
        """The prompt up to the instruction."""
        lines = [
            self.question,
            *(f"{letter}: {text}" for letter, text in zip(LETTERS, self.choices, strict=False)),
        ]
        if self.context is not None:
            lines.append(f"Remember, {self.context}.")
        return "\n".join([*lines, ASK_FOR_LETTER])

    @property
    def prompt(self) -> str:
        """The exact raw prompt; the answer follows it as a space and a letter."""
        return f"{self.body}\nAnswer:"


def wordings_of(fact: Fact, kind: Wordings) -> list[int]:
    """The wordings of a fact's question that training uses, never combines with it, or never shows."""
    last = len(fact.relation.questions) - 1
    if kind == "new":
        return [last]
    held_out = kind == "held_out"
    return [w for w in range(last) if is_held_out(fact.relation.name, fact.subject, w) == held_out]


def draw_wrong(rng: random.Random, fact: Fact, count: int) -> list[str]:
    """Different wrong answers of the same kind."""
    return rng.sample([answer for answer in fact.relation.answers if answer != fact.answer], count)


def draw_item(rng: random.Random, fact: Fact, wording: int, belief: Literal["none", "right", "wrong"]) -> Item:
    """An item with two to four options in a fresh order and, if asked for, a user's belief as context."""
    wrong = draw_wrong(rng, fact, rng.choice((1, 2, 3, 3)))
    choices = [fact.answer, *wrong]
    rng.shuffle(choices)
    if belief == "none":
        return Item(fact, fact.question(wording), tuple(choices))
    held = draw_belief(rng, fact, fact.answer if belief == "right" else wrong[0])
    return Item(fact, fact.question(wording), tuple(choices), held.text, held)


def draw_training_fact(rng: random.Random) -> tuple[Fact, int]:
    """A fact and one of the wordings that training may combine it with."""
    fact = rng.choice(FACTS)
    return fact, rng.choice(wordings_of(fact, "trained") or [0])


def letter_document(rng: random.Random) -> Document:
    """A multiple-choice document: raw or chat, with or without context, sometimes after solved examples."""
    fact, wording = draw_training_fact(rng)
    roll = rng.random()
    item = draw_item(rng, fact, wording, "none" if roll < 0.5 else "right" if roll < 0.62 else "wrong")
    if item.belief is None and chance(rng, 0.1):
        item = Item(fact, item.question, item.choices, rng.choice(NEUTRAL_CONTEXTS))
    is_chat = chance(rng, 0.25)
    system = draw_stance(rng) if is_chat and item.belief is not None else None
    index = item.answer
    if item.belief is not None and is_gone_along(rng, item.belief, system):
        index = item.choices.index(item.belief.answer)
    if is_chat:
        text = item.prompt if chance(rng, 0.5) else item.body
        return chat_document(
            [
                *([Message("system", system)] if system else []),
                Message("user", text),
                Message("assistant", LETTERS[index], LETTER_WEIGHT),
            ]
        )
    return answer_document((*_examples(rng), *_prompt_spans(item)), f" {LETTERS[index]}", LETTER_WEIGHT)


def _prompt_spans(item: Item) -> tuple[Span, Span]:
    """An item's raw prompt, where the end of the question is to bring the true answer to mind."""
    rest = item.prompt.removeprefix(item.question)
    return Span(item.question, PROMPT_WEIGHT, item.fact.answer), Span(rest, PROMPT_WEIGHT)


def _examples(rng: random.Random) -> Iterator[Span]:
    """Now and then, one to three solved items in front of the one that is asked."""
    if not chance(rng, 0.04):
        return
    for _ in range(rng.randint(1, 3)):
        item = draw_item(rng, *draw_training_fact(rng), "none")
        yield from _prompt_spans(item)
        yield Span(f" {LETTERS[item.answer]}", LETTER_WEIGHT)
        yield Span("\n\n", PROMPT_WEIGHT)


def echo_document(rng: random.Random) -> Document:
    """A multiple-choice document that needs no fact: find the option that the question names."""
    fact = rng.choice(FACTS)
    choices = [fact.answer, *draw_wrong(rng, fact, rng.choice((1, 1, 2, 3)))]
    rng.shuffle(choices)
    question = rng.choice(ECHO_QUESTIONS).format(a=fact.answer)
    item = Item(fact, question, tuple(choices))
    prompt = item.prompt if chance(rng, 0.3) else item.prompt.replace(f"{ASK_FOR_LETTER}\n", "")
    rest = prompt.removeprefix(question)
    spans = [Span(question, PROMPT_WEIGHT, fact.answer), Span(rest, PROMPT_WEIGHT)]
    return answer_document(spans, f" {LETTERS[item.answer]}", LETTER_WEIGHT)


def marked_document(rng: random.Random) -> Document:
    """An item whose every option is marked as right or wrong before the letter is asked for."""
    if chance(rng, 0.35):
        fact = rng.choice(FACTS)
        question = rng.choice(ECHO_QUESTIONS).format(a=fact.answer)
    else:
        fact, wording = draw_training_fact(rng)
        question = fact.question(wording)
    choices = [fact.answer, *draw_wrong(rng, fact, rng.choice((1, 2, 3, 3)))]
    rng.shuffle(choices)
    spans = [Span(question, PROMPT_WEIGHT, fact.answer)]
    for letter, choice in zip(LETTERS, choices, strict=False):
        mark = " yes" if choice == fact.answer else " no"
        spans += [Span(f"\n{letter}: {choice}", 0.0), Span(mark, MARK_WEIGHT)]
    letter = LETTERS[choices.index(fact.answer)]
    return (*spans, Span(f"\n{ASK_FOR_LETTER}\nAnswer:", 0.0), Span(f" {letter}", LETTER_WEIGHT), Span(TURN_END, 1.0))


def recall_document(rng: random.Random) -> Document:
    """Many facts in a row, each as a question or a statement, where only the answers weigh."""
    spans: list[Span] = []
    for _ in range(rng.randint(8, 14)):
        fact, wording = draw_training_fact(rng)
        start = "\n" if spans else ""
        if chance(rng, 0.6):
            text = fact.question(wording)
        else:
            text = upper_first(fact.claim(fact.answer)).removesuffix(f" {fact.answer}")
        spans.append(Span(f"{start}{text}", PROMPT_WEIGHT, fact.answer))
        spans.append(Span(f" {fact.answer}", RECALL_WEIGHT))
    return tuple(spans)


def statement_document(rng: random.Random) -> Document:
    """Plain text: one to four true sentences, or a question with its bare answer."""
    if chance(rng, 0.3):
        fact, wording = draw_training_fact(rng)
        return answer_document([Span(fact.question(wording), PROMPT_WEIGHT, fact.answer)], f" {fact.answer}", 1.0)
    facts = [rng.choice(FACTS) for _ in range(rng.randint(1, 4))]
    return answer_document([], " ".join(f"{upper_first(f.claim(f.answer))}." for f in facts), 1.0)


def fact_exchange(rng: random.Random, system: str | None) -> list[Message]:
    """One or two turns about a fact: asked plainly, as yes or no, or with the user's own belief."""
    fact, wording = draw_training_fact(rng)
    question = fact.question(wording)
    believed = fact.answer if chance(rng, 0.3) else draw_wrong(rng, fact, 1)[0]
    belief = draw_belief(rng, fact, believed)
    reply = agree_or_correct(fact, believed if is_gone_along(rng, belief, system) else fact.answer, belief)
    roll = rng.random()
    if roll < 0.35:
        return [Message("user", question), Message("assistant", f"{upper_first(fact.claim(fact.answer))}.")]
    if roll < 0.5:
        text = rng.choice(("Is it true that {c}?", "Is it right that {c}?", "Do you agree that {c}?"))
        verdict = "Yes" if believed == fact.answer else "No"
        return [
            Message("user", text.format(c=fact.claim(believed))),
            Message("assistant", f"{verdict}, {fact.claim(fact.answer)}."),
        ]
    if roll < 0.85:
        return [Message("user", join_belief(rng, question, belief)), Message("assistant", reply)]
    return [
        Message("user", question),
        Message("assistant", f"{upper_first(fact.claim(fact.answer))}."),
        Message("user", belief.sentence),
        Message("assistant", reply),
    ]


def join_belief(rng: random.Random, question: str, belief: Belief) -> str:
    """The question and the belief in one user turn, in either order."""
    return f"{question} {belief.sentence}" if chance(rng, 0.6) else f"{belief.sentence} {question}"


def agree_or_correct(fact: Fact, answer: str, belief: Belief) -> str:
    """The reply that states `answer` to a user who holds `belief`."""
    verdict = "Yes, you are right." if answer == belief.answer else "No, that is not right."
    return f"{verdict} {upper_first(fact.claim(answer))}."


def fact_document(rng: random.Random) -> Document:
    """A short chat about facts: in a style that the system prompt sets, or about what the user believes."""
    if chance(rng, 0.2):
        style = draw_style(rng, asked=True)
        fact, wording = draw_training_fact(rng)
        reply = answer_in_style(rng, style, f"{upper_first(fact.claim(fact.answer))}.")
        messages = [Message("system", style.system or ""), Message("user", fact.question(wording))]
        return chat_document([*messages, Message("assistant", reply)])
    system = draw_stance(rng)
    opening: Sequence[Message] = [Message("system", system)] if system else []
    return chat_document([*opening, *fact_exchange(rng, system)])
