"""The prompts of labelled items, as text: lettered questions, statements, solved examples.

The lettered prompt is exactly that of Painless Activation Steering (Cui & Chen 2025).
"""

from __future__ import annotations

from dataclasses import dataclass

from vectors.data.items import LETTERS, Message, PairItem, ShownItem


@dataclass(frozen=True, slots=True)
class Statement:
    """A prompt with one continuation, such as an item's question and one of its options, without letters."""

    prompt: str | tuple[Message, ...]
    reply: str


Text = ShownItem | Statement
"""A text to read activations from: a lettered prompt or a statement."""


def lettered_prompt(shown: ShownItem) -> str:
    """The question with its options and a request for a letter, which would follow."""
    lines = [shown.item.question]
    lines += [f"{letter}: {choice}" for letter, choice in zip(LETTERS, shown.choices, strict=False)]
    if shown.item.context is not None:
        lines.append(f"Remember, {shown.item.context}.")
    return "\n".join([*lines, "Respond with a single letter.", "Answer:"])


def solved_example(shown: ShownItem) -> str:
    """A lettered prompt with its right answer, as shown before the next prompt."""
    return f"{lettered_prompt(shown)} {LETTERS[shown.answer]}\n\n"


def statement_of(shown: ShownItem, place: int) -> Statement:
    """The item's question with the option at `place`, without options or context."""
    return Statement(shown.item.question, shown.choices[place])


def statements_of(pair: PairItem) -> tuple[Statement, Statement]:
    """The pair's two texts, the positive one first."""
    return Statement(pair.prompt, pair.positive), Statement(pair.prompt, pair.negative)


def raw_text(statement: Statement) -> tuple[str, str]:
    """Prompt and reply as raw text: one chat turn per line, and a space between the two unless one is there."""
    prompt = statement.prompt
    text = prompt if isinstance(prompt, str) else "\n".join(message.content for message in prompt)
    needs_space = bool(text) and not text[-1].isspace() and not statement.reply[:1].isspace()
    return text, f" {statement.reply}" if needs_space else statement.reply


def turns_of(statement: Statement) -> tuple[Message, ...]:
    """The prompt as the turns of a chat."""
    prompt = statement.prompt
    return (Message("user", prompt),) if isinstance(prompt, str) else prompt
