"""Which tokens `positions` covers: the prompt's, the response's, both, or a **window** of one of the two.

Of a prompt of P tokens, the prompt's tokens are at 0 … P-1, and the response's at P-1, P, …: each position whose logits
choose a token of the response. P-1 is both. A window counts its tokens from 0, in JSON:

    {"of": "prompt", "first": 4}            its first 4
    {"of": "prompt", "last": 4}             its last 4; the end of a response is not known while it is written
    {"of": "response", "from": 8}           from number 8 on
    {"of": "response", "from": 8, "to": 16} from number 8 on, and before number 16
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, NotRequired, TypeAlias, assert_never, get_args

from typing_extensions import TypedDict

from vectors.errors import InvalidPositions
from vectors.vocabulary import POSITIONS, NamedPositions

WindowOf: TypeAlias = Literal["prompt", "response"]
"""What a window is part of."""

MAX_POSITION: Final = 10_000_000
"""The largest number in a window, beyond any context."""

_OPEN = sys.maxsize


WindowJson = TypedDict(
    "WindowJson",
    {
        "of": WindowOf,
        "first": NotRequired[int],
        "last": NotRequired[int],
        "from": NotRequired[int],
        "to": NotRequired[int],
    },
)
"""A window of the prompt's or the response's tokens, counted from 0."""

PositionsJson: TypeAlias = NamedPositions | WindowJson
"""Positions in JSON."""


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens `start … end-1` of the prompt or the response; `end` None: to its end.

    A negative `start` counts from the end of the prompt. `checked_positions` makes windows and checks them.
    """

    of: WindowOf
    start: int
    end: int | None = None

    def to_json(self) -> WindowJson:
        """The object that `checked_positions` reads."""
        if self.start < 0:
            return {"of": self.of, "last": -self.start}
        if self.end is None:
            return {"of": self.of, "from": self.start}
        if self.start == 0:
            return {"of": self.of, "first": self.end}
        return {"of": self.of, "from": self.start, "to": self.end}


Positions: TypeAlias = NamedPositions | Window
"""Which tokens are steered or read. Equal meanings are equal values."""

_NUMBER = {"type": "integer", "minimum": 1, "maximum": MAX_POSITION}


def _window_schema(of: Iterable[WindowOf], needed: str, *others: str) -> dict[str, Any]:
    numbers = dict.fromkeys((needed, *others), _NUMBER)
    return {
        "type": "object",
        "properties": {"of": {"type": "string", "enum": list(of)}, **numbers},
        "required": ["of", needed],
        "additionalProperties": False,
    }


POSITIONS_SCHEMA: Final[Mapping[str, Any]] = {
    "anyOf": [
        {"type": "string", "enum": list(POSITIONS)},
        _window_schema(get_args(WindowOf), "first"),
        _window_schema(["prompt"], "last"),
        _window_schema(get_args(WindowOf), "from", "to"),
    ]
}
"""The JSON schema of `positions`."""


def checked_positions(value: object) -> Positions:
    """Positions of their JSON value, a name or the object of a window; raises `InvalidPositions`."""
    if isinstance(value, Window):
        value = value.to_json()
    for name in POSITIONS:
        if isinstance(value, str) and value == name:
            return name
    if not isinstance(value, Mapping):
        raise InvalidPositions(
            f'expected one of {", ".join(POSITIONS)}, or an object such as {{"of": "prompt", "last": 4}}, got '
            f"{value!r:.60}"
        )
    return _window(value)


def _window(value: Mapping[Any, Any]) -> Window:
    names = ("of", "first", "last", "from", "to")
    if unknown := [name for name in value if name not in names]:
        raise InvalidPositions(f"expected {', '.join(names[:-1])} or to, got {unknown[0]!r:.60}")
    of = next((known for known in get_args(WindowOf) if value.get("of") == known), None)
    if of is None:
        raise InvalidPositions(f"of: expected prompt or response, got {value.get('of')!r:.60}")
    numbers = {name: _number(name, value[name]) for name in names[1:] if name in value}
    match numbers:
        case {"first": first, **others} if not others:
            return Window(of, 0, first)
        case {"last": last, **others} if not others and of == "prompt":
            return Window(of, -last)
        case {"last": _, **others} if not others:
            raise InvalidPositions(
                "last: expected of: prompt, because where a response ends is not known while it is written; its "
                "first tokens, or those from one on, can be named"
            )
        case {"from": start, "to": end, **others} if not others and start < end:
            return Window(of, start, end)
        case {"from": start, "to": end, **others} if not others:
            raise InvalidPositions(f"to: expected a number above from, {start}, got {end}")
        case {"from": start, **others} if not others:
            return Window(of, start)
        case _:
            raise InvalidPositions(
                f"expected one of first, last and from, and to only with from, got {', '.join(numbers) or 'none'}"
            )


def _number(name: str, value: object) -> int:
    value = int(value) if isinstance(value, float) and value.is_integer() else value  # as JSON Schema has integers
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_POSITION:
        raise InvalidPositions(f"{name}: expected a whole number from 1 to {MAX_POSITION}, got {value!r:.40}")
    return value


def parse_positions(text: str) -> Positions:
    """Positions of text, a name or the object as JSON, as a command line has them; raises `InvalidPositions`."""
    if not text.startswith("{"):
        return checked_positions(text)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidPositions(f"expected JSON, got {text[:60]!r}") from None
    return checked_positions(value)


def positions_json(positions: Positions) -> PositionsJson:
    """The JSON value that `checked_positions` reads."""
    return positions.to_json() if isinstance(positions, Window) else positions


@dataclass(frozen=True, slots=True)
class Coverage:
    """The positions that are covered as the prompt's and as the response's; an open end is `sys.maxsize`."""

    prompt: range
    response: range

    def __contains__(self, position: int) -> bool:
        return position in self.prompt or position in self.response

    @property
    def first(self) -> int:
        """The first position covered, or `sys.maxsize`."""
        return min((own.start for own in (self.prompt, self.response) if own), default=_OPEN)


@functools.lru_cache(maxsize=4096)  # a search asks for every cell and prompt
def coverage_of(positions: Positions, num_prompt: int) -> Coverage:
    """What `positions` covers with a prompt of `num_prompt` tokens."""
    prompt, response, nothing = range(num_prompt), range(num_prompt - 1, _OPEN), range(0)
    if isinstance(positions, Window):
        window = slice(positions.start, positions.end)
        if positions.of == "prompt":
            return Coverage(prompt[window], nothing)
        return Coverage(nothing, response[window])
    match positions:
        case "prompt":
            return Coverage(prompt, nothing)
        case "response":
            return Coverage(nothing, response)
        case "all":
            return Coverage(prompt, response)
        case _:
            assert_never(positions)
