"""What a measurement shows: lines and a table to print, JSON, and a plot; and how its arguments are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from server.cli.errors import USAGE, CommandFailed

if TYPE_CHECKING:
    from server.bench.spread import Spread

DEFAULT_NUMBERS = "1,8,32"
"""Of requests at once, and of vectors among them."""

_LONGEST_LIST = 16
_LARGEST = 1 << 20

Progress = Callable[[int], AbstractContextManager[Callable[[], None]]]
"""From a number of steps to a context whose function says that one is done."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a measurement shows: lines before and after a table, its rows (the head first), JSON, and a plot.

    `plot`: makes a PNG; raises `MissingDependency`.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    foot: Sequence[str]
    json: Mapping[str, Any]
    plot: Callable[[], bytes]


def numbers(flag: str, text: str | None) -> list[int]:
    """Comma-separated whole numbers above 0, in ascending order; None: the default ones. Raises `CommandFailed`."""
    text = DEFAULT_NUMBERS if text is None else text
    found = text.split(",")
    is_whole = all(part.strip().isdecimal() and 0 < int(part) <= _LARGEST for part in found)
    if not is_whole or len(found) > _LONGEST_LIST:
        raise CommandFailed(f"{flag}: expected whole numbers above 0 such as 1,8,32, got {text[:60]!r}", USAGE)
    return sorted({int(part) for part in found})


def shown(spread: Spread, form: str, factor: float = 1.0) -> str:
    """The median, with the smallest and largest in brackets, each times `factor`."""
    low, high = factor * spread.low, factor * spread.high
    return f"{factor * spread.median:{form}} ({low:{form}}–{high:{form}})"
