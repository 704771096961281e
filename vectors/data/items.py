"""What labelled data is made of: items with options, and pairs of texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

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
    """Two texts after the same prompt; `positive` is the wanted one.

    `prompt` is text (empty when the data has none) or the turns of a chat; `group` as for a `ChoiceItem`.
    """

    positive: str
    negative: str
    prompt: str | tuple[Message, ...] = ""
    line: int = 0
    group: str | None = None


@dataclass(frozen=True, slots=True)
class TextItem:
    """A plain text whose perplexity shows what a vector costs."""

    text: str
    line: int = 0


Item = ChoiceItem | PairItem


@dataclass(frozen=True, slots=True)
class DataSet:
    """Items of one kind, in the order of their file.

    `sha256` (64 hex digits) is the hash of the file's bytes, or of all files' bytes one after the other.
    """

    name: str
    sha256: str
    items: tuple[ChoiceItem, ...] | tuple[PairItem, ...]


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
