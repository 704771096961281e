"""The turns of a terminal chat, and the steering asked for."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from vectors.defaults import DEFAULTS
from vectors.errors import InvalidPositions
from vectors.positions import PositionsJson, parse_positions, positions_json
from vectors.vocabulary import PARTS

_CHOICES = {
    row.in_request: row.choices
    for row in DEFAULTS
    if row.in_request and row.choices and row.name not in ("parts", "positions")
}


class InvalidCommand(Exception):
    """A line that begins with `/` and is not a valid command."""


class Conversation:
    """The turns so far; whole exchanges are added, so roles always alternate."""

    def __init__(self, system: str | None = None) -> None:
        self.system: str | None = None
        self.steering: list[dict[str, Any]] = []
        self._turns: list[dict[str, str]] = []
        self.begin(system)

    def begin(self, system: str | None) -> None:
        """Start over; the steering stays."""
        self.system = system
        self._turns = [{"role": "system", "content": system}] if system else []

    def messages_with(self, text: str) -> list[dict[str, str]]:
        """The messages of a request with `text` as the next turn."""
        return [*self._turns, {"role": "user", "content": text}]

    def add(self, text: str, answer: str) -> None:
        """Add an exchange."""
        self._turns = [*self.messages_with(text), {"role": "assistant", "content": answer}]

    def steer(self, command: str) -> None:
        """Carry out `/steer` with nothing, `off`, or an entry after it. Raises `InvalidCommand`."""
        if command == "off":
            self.steering = []
        elif command:
            entry = parse_entry(command)
            kept = [other for other in self.steering if other["vector"] != entry["vector"]]
            self.steering = [*kept, entry]


def parse_entry(command: str) -> dict[str, Any]:
    """`honest 1.5 layers=12-16 positions=all` -> an entry of a request's `steering`. Raises `InvalidCommand`."""
    name, *rest = command.split()
    entry: dict[str, Any] = {"vector": name}
    for part in rest:
        field, separator, value = part.partition("=")
        if not separator:
            field, value = "scale", part
        if field in entry:
            raise InvalidCommand(f"{field} is given twice")
        if field in ("scale", "min", "max"):
            entry[field] = _number(field, value)
        elif (field == "layers" and value) or value in _CHOICES.get(field, ()):
            entry[field] = value
        elif field == "parts":
            entry[field] = _parts(value)
        elif field == "positions":
            entry[field] = _positions(value)
        elif field in _CHOICES:
            raise InvalidCommand(f"{field}: expected one of {', '.join(_CHOICES[field])}, got {value!r}")
        else:
            raise InvalidCommand(
                f"unexpected {part!r}; usage: /steer NAME [SCALE] [layers=…] [positions=…] [parts=…] [operation=…] "
                "[min=…] [max=…]"
            )
    return entry


def describe_entry(entry: Mapping[str, Any]) -> str:
    """An entry as the user asked for it."""
    shown = {field: json.dumps(value) if isinstance(value, dict) else value for field, value in entry.items()}
    return " ".join([entry["vector"], *(f"{field}={value}" for field, value in shown.items() if field != "vector")])


def _parts(text: str) -> list[str]:
    parts = text.split(",")
    if not set(parts) <= set(PARTS):
        raise InvalidCommand(f"parts: expected some of {', '.join(PARTS)}, got {text!r}")
    return parts


def _positions(text: str) -> PositionsJson:
    try:
        return positions_json(parse_positions(text))
    except InvalidPositions as error:
        raise InvalidCommand(f"positions: {error}") from None


def _number(field: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InvalidCommand(f"{field}: expected a number, got {text!r}")
    return number
