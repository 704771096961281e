"""The prompts of labelled items, as text: lettered questions, statements, solved examples.

The lettered prompt is exactly that of Painless Activation Steering (Cui & Chen 2025).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vectors.data.items import LETTERS, Message, PairItem, ShownItem


@dataclass(frozen=True, slots=True)
class Statement:
    """A prompt with one continuation, such as an item's question and one of its options, without letters.

    `speaker`: whose words the text is. Of the user, `prompt` is all of it and `reply` is empty: it is asked, and the
    assistant is about to answer. None: not known, which matters for a `reply` without a prompt in a chat.
    """

    prompt: str | tuple[Message, ...]
    reply: str
    speaker: Literal["user", "assistant"] | None = "assistant"


@dataclass(frozen=True, slots=True)
class LetteredAnswer:
    """A lettered prompt with the letter at `place` as its answer."""

    shown: ShownItem
    place: int


Text = ShownItem | Statement | LetteredAnswer
"""A text to read activations from: a lettered prompt, without or with an answer, or a statement."""


def lettered_prompt(shown: ShownItem) -> str:
    """The question with its options and a request for a letter, which would follow."""
    lines = [shown.item.question]
    lines += [f"{letter}: {choice}" for letter, choice in zip(LETTERS, shown.choices, strict=False)]
    if shown.item.context is not None:
        lines.append(f"Remember, {shown.item.context}.")
    return "\n".join([*lines, "Respond with a single letter.", "Answer:"])


def solved_example(shown: ShownItem, spelling: str = " {}") -> str:
    """A lettered prompt with its right answer, as shown before the next prompt; the authors' `spelling` is `{}`."""
    return f"{lettered_prompt(shown)}{spelling.format(LETTERS[shown.answer])}\n\n"


def with_system(turns: Sequence[Message], system: str) -> tuple[Message, ...]:
    """A chat under a system prompt; the chat's own comes after it, in the same turn. Empty: as it is."""
    if not system:
        return tuple(turns)
    if turns and turns[0].role == "system":
        return (Message("system", f"{system}\n\n{turns[0].content}"), *turns[1:])
    return (Message("system", system), *turns)


def statement_of(shown: ShownItem, place: int) -> Statement:
    """The item's question with the option at `place`, without options or context."""
    return Statement(shown.item.question, shown.choices[place])


def statements_of(pair: PairItem) -> tuple[Statement, Statement]:
    """The pair's two texts, the positive one first; in the user's turn if they are what a user asks."""
    other = pair.prompt if pair.negative_prompt is None else pair.negative_prompt
    if pair.turn == "user" and not pair.prompt and not other:
        return Statement(pair.positive, "", "user"), Statement(pair.negative, "", "user")
    before, after = ("assistant" if prompt else pair.turn for prompt in (pair.prompt, other))
    return Statement(pair.prompt, pair.positive, before), Statement(other, pair.negative, after)


def raw_text(statement: Statement) -> tuple[str, str]:
    """Prompt and reply as raw text: one chat turn per line, and a space between the two unless one is there."""
    prompt = statement.prompt
    text = prompt if isinstance(prompt, str) else "\n".join(message.content for message in prompt)
    needs_space = bool(text) and bool(statement.reply) and not text[-1].isspace() and not statement.reply[:1].isspace()
    return text, f" {statement.reply}" if needs_space else statement.reply


def turns_of(statement: Statement) -> tuple[Message, ...]:
    """The prompt as the turns of a chat."""
    prompt = statement.prompt
    return (Message("user", prompt),) if isinstance(prompt, str) else prompt
