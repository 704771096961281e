"""What labelled data is made of: items with options, and pairs of texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

MAX_CHOICES = 26
"""One for each letter of the alphabet."""

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, slots=True)
class ChoiceItem:
    """A question with 2 to `MAX_CHOICES` different options, `answer` the index of the right one.

    `context` is what a prompt asks the model to remember, such as a user's opinion. `line` (1-based) is where it was
    read. Items of the same `group` are not independent, such as several questions about one text.
    """

    question: str
    choices: tuple[str, ...]
    answer: int
    context: str | None = None
    line: int = 0
    group: str | None = None

    @property
    def answer_text(self) -> str:
        """The right option."""
        return self.choices[self.answer]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class PairItem:
    """Two texts; `positive` is the wanted one.

    `prompt` is text (empty when the data has none) or the turns of a chat. `negative_prompt` is that of the negative
    text, None if both texts have the same. `turn` says whose words texts without a prompt are: of the user, who asks
    them, or of the assistant; None if the data does not say it. `group` as for a `ChoiceItem`.
    """

    positive: str
    negative: str
    prompt: str | tuple[Message, ...] = ""
    line: int = 0
    turn: Literal["user", "assistant"] | None = None
    negative_prompt: str | tuple[Message, ...] | None = None
    group: str | None = None


@dataclass(frozen=True, slots=True)
class TextItem:
    """A plain text whose perplexity shows what a vector costs."""

    text: str
    line: int = 0


Item = ChoiceItem | PairItem


@dataclass(frozen=True, slots=True, kw_only=True)
class Understood:
    """What a file was taken for. `fields` is the field of each role, `rows` the number of rows.

    `skipped`: how many rows were left out, by reason. `classes`: how many texts each class has, if there are classes.
    `notes`: what else is worth knowing, in sentences.
    """

    format: str
    shape: str
    fields: Mapping[str, str]
    rows: int
    skipped: Mapping[str, int] = field(default_factory=dict)
    classes: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def num_skipped(self) -> int:
        """How many rows were left out."""
        return sum(self.skipped.values())


@dataclass(frozen=True, slots=True)
class DataSet:
    """Items of one kind, in the order of their file.

    `sha256` (64 hex digits) is the hash of the file's bytes, or of all files' bytes one after the other. `understood`
    says how a user's file was read; None for items that were not read from one.
    """

    name: str
    sha256: str
    items: tuple[ChoiceItem, ...] | tuple[PairItem, ...]
    understood: Understood | None = None

    def described(self) -> dict[str, Any]:
        """What was understood, as JSON: `format`, `shape`, `fields`, `rows`, `items`, `skipped`, `classes`, `notes`,
        `first`."""
        first = self.items[0]
        shown: dict[str, Any] = {"items": len(self.items)}
        if self.understood is not None:
            shown = dataclasses.asdict(self.understood) | {"notes": list(self.understood.notes)} | shown
        if isinstance(first, ChoiceItem):
            item = {"question": _short(first.question), "choices": [_short(choice) for choice in first.choices]}
            return shown | {"first": item | {"answer": LETTERS[first.answer]}}
        prompt = first.prompt if isinstance(first.prompt, str) else first.prompt[-1].content
        item = {"prompt": _short(prompt), "positive": _short(first.positive), "negative": _short(first.negative)}
        return shown | {"first": item | {"turn": first.turn}}


@dataclass(frozen=True, slots=True)
class ShownItem:
    """A choice item with its options in a prompt's order: `order[place]` is the index of the option at that place."""

    item: ChoiceItem
    order: tuple[int, ...]

    @property
    def choices(self) -> tuple[str, ...]:
        """The options as shown."""
        return tuple(self.item.choices[index] for index in self.order)

    @property
    def answer(self) -> int:
        """The place of the right option, 0 for A."""
        return self.order.index(self.item.answer)

    def rotations(self) -> tuple[ShownItem, ...]:
        """The item under every rotation of its options, beginning with this one."""
        order = self.order
        return tuple(ShownItem(self.item, order[first:] + order[:first]) for first in range(len(order)))


def kind_of(items: Sequence[Item]) -> type[ChoiceItem] | type[PairItem]:
    """The kind of all items of a data set."""
    return type(items[0])


def summary_of(data: DataSet) -> str:
    """What was understood, in a line: format, shape, items, classes, what was left out."""
    found = data.understood
    if found is None:
        return f"{len(data.items)} items"
    parts = [f"{found.format}: {found.shape}, {len(data.items)} items of {found.rows} rows"]
    if found.classes:
        parts.append("classes " + ", ".join(f"{name} ({count})" for name, count in found.classes.items()))
    if found.skipped:
        parts.append("left out " + ", ".join(f"{count} with {reason}" for reason, count in found.skipped.items()))
    return "; ".join([*parts, *found.notes])


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 160 else f"{line[:159]}…"
