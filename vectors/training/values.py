"""The kinds of values of training options: how each is read from JSON or text, written and described.

An invalid value raises `ValueError` with "expected …, got …"; the caller adds the option's name.
"""

from __future__ import annotations

import dataclasses
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vectors.errors import InvalidLayers
from vectors.shares import Split
from vectors.vocabulary import MAX_LAYER, parse_layers

_NULL = {"type": "null"}
_AUTO = "auto"
_ALL = "all"


class Value(ABC):
    """A kind of value. JSON's null means "not given" for every option and is handled by the caller."""

    @property
    @abstractmethod
    def expected(self) -> str:
        """The valid values, as messages state them after "expected"."""

    @abstractmethod
    def parse(self, given: object) -> Any:
        """The value read from JSON. Raises `ValueError`."""

    @abstractmethod
    def parse_text(self, text: str) -> Any:
        """JSON for the text after a flag; `parse` may still reject it. Raises `ValueError`."""

    @abstractmethod
    def schema(self) -> dict[str, Any]:
        """The JSON schema, null included."""

    def to_json(self, value: Any) -> Any:
        """JSON that `parse` reads as `value`."""
        return value

    def refusal(self, given: object) -> ValueError:
        """The error for an invalid value."""
        return ValueError(f"expected {self.expected}, got {given!r:.60}")


@dataclass(frozen=True, slots=True)
class Text(Value):
    """Any text; `what` describes it in messages."""

    what: str

    @property
    def expected(self) -> str:
        return self.what

    def parse(self, given: object) -> str:
        if not isinstance(given, str):
            raise self.refusal(given)
        return given

    def parse_text(self, text: str) -> str:
        return text

    def schema(self) -> dict[str, Any]:
        return {"type": ["string", "null"]}


@dataclass(frozen=True, slots=True)
class OneOf(Value):
    """One of some names."""

    names: tuple[str, ...]

    @property
    def expected(self) -> str:
        return f"one of {', '.join(self.names)}"

    def parse(self, given: object) -> str:
        if not isinstance(given, str) or given not in self.names:
            raise self.refusal(given)
        return given

    def parse_text(self, text: str) -> str:
        return text

    def schema(self) -> dict[str, Any]:
        return {"enum": [*self.names, None]}


@dataclass(frozen=True, slots=True)
class SomeOf(Value):
    """One name, a list of names, or `all`; a tuple in the order of `names`."""

    names: tuple[str, ...]

    @property
    def expected(self) -> str:
        return f"one or more of {', '.join(self.names)}, each once, or {_ALL}"

    def parse(self, given: object) -> tuple[str, ...]:
        listed = list(self.names) if given == _ALL else [given] if isinstance(given, str) else given
        if not isinstance(listed, list) or not listed or any(name not in self.names for name in listed):
            raise self.refusal(given)
        if len(set(listed)) != len(listed):
            raise self.refusal(given)
        return tuple(name for name in self.names if name in listed)

    def parse_text(self, text: str) -> str | list[str]:
        names = [name.strip() for name in text.split(",")]
        return names[0] if len(names) == 1 else names

    def to_json(self, value: Any) -> Any:
        return None if value is None else _ALL if value == self.names else list(value)

    def schema(self) -> dict[str, Any]:
        return {"anyOf": [{"enum": [*self.names, _ALL, None]}, _list_of({"enum": list(self.names)})]}


@dataclass(frozen=True, slots=True)
class Whole(Value):
    """A whole number within limits, both included."""

    smallest: int
    largest: int

    @property
    def expected(self) -> str:
        return f"a whole number from {self.smallest} to {self.largest}"

    def parse(self, given: object) -> int:
        if type(given) is not int or not self.smallest <= given <= self.largest:
            raise self.refusal(given)
        return given

    def parse_text(self, text: str) -> int:
        if re.fullmatch(r"\s*\d{1,12}\s*", text) is None:
            raise self.refusal(text)
        return int(text)

    def schema(self) -> dict[str, Any]:
        return {"type": ["integer", "null"], "minimum": self.smallest, "maximum": self.largest}


@dataclass(frozen=True, slots=True)
class Number(Value):
    """A number from `smallest` to `largest`, both included."""

    smallest: float
    largest: float

    @property
    def expected(self) -> str:
        return f"a number from {self.smallest:g} to {self.largest:g}"

    def parse(self, given: object) -> float:
        if isinstance(given, bool) or not isinstance(given, int | float):
            raise self.refusal(given)
        if not self.smallest <= given <= self.largest:  # NaN fails too
            raise self.refusal(given)
        return float(given)

    def parse_text(self, text: str) -> float:
        return _number(text, self)

    def schema(self) -> dict[str, Any]:
        return {"type": ["number", "null"], "minimum": self.smallest, "maximum": self.largest}


@dataclass(frozen=True, slots=True)
class Switch(Value):
    """True or false; a flag without a value."""

    @property
    def expected(self) -> str:
        return "true or false"

    def parse(self, given: object) -> bool:
        if not isinstance(given, bool):
            raise self.refusal(given)
        return given

    def parse_text(self, text: str) -> bool:
        raise self.refusal(text)

    def schema(self) -> dict[str, Any]:
        return {"type": ["boolean", "null"]}


@dataclass(frozen=True, slots=True)
class Layers(Value):
    """A list of layers, or `auto`; a tuple in ascending order, or None."""

    @property
    def expected(self) -> str:
        return f"a list of layers, or {_AUTO}"

    def parse(self, given: object) -> tuple[int, ...] | None:
        if given == _AUTO:
            return None
        if not isinstance(given, list) or not all(type(layer) is int for layer in given):
            raise self.refusal(given)
        return tuple(sorted(_checked_layers(given)))

    def parse_text(self, text: str) -> str | list[int]:
        return _AUTO if text.strip() == _AUTO else list(_checked_layers(text))

    def to_json(self, value: Any) -> Any:
        return _AUTO if value is None else list(value)

    def schema(self) -> dict[str, Any]:
        layer = {"type": "integer", "minimum": 0, "maximum": MAX_LAYER}
        return {"anyOf": [{"enum": [_AUTO, None]}, _list_of(layer, MAX_LAYER + 1)]}


@dataclass(frozen=True, slots=True)
class Scales(Value):
    """A list of at most `most` scales in the order given, or `auto`; a tuple, or None."""

    most: int
    smallest: float = 1e-6
    largest: float = 1e6

    @property
    def expected(self) -> str:
        return (
            f"a list of at most {self.most} numbers from {self.smallest:g} to {self.largest:g} of either sign, "
            f"each once, or {_AUTO}"
        )

    def parse(self, given: object) -> tuple[float, ...] | None:
        if given == _AUTO:
            return None
        if not isinstance(given, list) or not 0 < len(given) <= self.most:
            raise self.refusal(given)
        for scale in given:
            if type(scale) not in (int, float) or not self.smallest <= abs(scale) <= self.largest:
                raise self.refusal(scale)
        if len(set(given)) != len(given):
            raise self.refusal(given)
        return tuple(float(scale) for scale in given)

    def parse_text(self, text: str) -> str | list[float]:
        return _AUTO if text.strip() == _AUTO else [_number(number, self) for number in text.split(",")]

    def to_json(self, value: Any) -> Any:
        return _AUTO if value is None else list(value)

    def schema(self) -> dict[str, Any]:
        signs = ((self.smallest, self.largest), (-self.largest, -self.smallest))
        scale = {"anyOf": [{"type": "number", "minimum": low, "maximum": high} for low, high in signs]}
        return {"anyOf": [{"enum": [_AUTO, None]}, _list_of(scale, self.most)]}


@dataclass(frozen=True, slots=True)
class Shares(Value):
    """The shares of a `Split`, by name."""

    @property
    def expected(self) -> str:
        return f"the shares {', '.join(_SHARES)}, each between 0 and 1, with the sum 1"

    def parse(self, given: object) -> Split:
        if not isinstance(given, Mapping) or set(given) != set(_SHARES):
            raise self.refusal(given)
        for share in given.values():
            if type(share) not in (int, float) or not 0.0 < share < 1.0:
                raise self.refusal(share)
        if not math.isclose(sum(given.values()), 1.0, abs_tol=1e-6):
            raise ValueError(f"expected shares that sum to 1, got {sum(given.values()):g}")
        return Split(**{name: float(given[name]) for name in _SHARES})

    def parse_text(self, text: str) -> dict[str, float]:
        shares = [_number(share, self) for share in text.split(",")]
        if len(shares) != len(_SHARES):
            raise ValueError(f"expected {len(_SHARES)} shares, as in 0.6,0.2,0.2, got {text[:60]!r}")
        return dict(zip(_SHARES, shares, strict=True))

    def to_json(self, value: Any) -> Any:
        return dataclasses.asdict(value)

    def schema(self) -> dict[str, Any]:
        share = {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}
        shares = {
            "type": "object",
            "properties": dict.fromkeys(_SHARES, share),
            "required": list(_SHARES),
            "additionalProperties": False,
            "description": "Shares of the items; they sum to 1.",
        }
        return {"anyOf": [shares, _NULL]}


@dataclass(frozen=True, slots=True)
class Sizes(Value):
    """A list of at most `most` numbers of items; a tuple in ascending order."""

    most: int
    smallest: int = 2
    largest: int = 1_000_000

    @property
    def expected(self) -> str:
        return f"a list of at most {self.most} whole numbers from {self.smallest} to {self.largest}, each once"

    def parse(self, given: object) -> tuple[int, ...]:
        if not isinstance(given, list) or not 0 < len(given) <= self.most:
            raise self.refusal(given)
        if not all(type(size) is int and self.smallest <= size <= self.largest for size in given):
            raise self.refusal(given)
        if len(set(given)) != len(given):
            raise self.refusal(given)
        return tuple(sorted(given))

    def parse_text(self, text: str) -> list[int]:
        return [Whole(self.smallest, self.largest).parse_text(size) for size in text.split(",")]

    def to_json(self, value: Any) -> Any:
        return list(value)

    def schema(self) -> dict[str, Any]:
        size = {"type": "integer", "minimum": self.smallest, "maximum": self.largest}
        return {"anyOf": [_list_of(size, self.most), _NULL]}


@dataclass(frozen=True, slots=True)
class Share(Value):
    """A share of a whole, from 0 to below 1."""

    @property
    def expected(self) -> str:
        return "a number from 0 to below 1"

    def parse(self, given: object) -> float:
        if isinstance(given, bool) or not isinstance(given, int | float) or not 0 <= given < 1:
            raise self.refusal(given)
        return float(given)

    def parse_text(self, text: str) -> float:
        return _number(text, self)

    def schema(self) -> dict[str, Any]:
        return {"type": ["number", "null"], "minimum": 0, "exclusiveMaximum": 1}


@dataclass(frozen=True, slots=True)
class Fields(Value):
    """The fields of a file by their role: one of `roles`, each with a name or a list of names; tuples of names."""

    roles: tuple[str, ...]
    most: int = 32

    @property
    def expected(self) -> str:
        return f"fields by role, as in question=stem,choices=options; roles are {', '.join(self.roles)}"

    def parse(self, given: object) -> dict[str, tuple[str, ...]]:
        if not isinstance(given, Mapping):
            raise self.refusal(given)
        found: dict[str, tuple[str, ...]] = {}
        for role, names in given.items():
            listed = [names] if isinstance(names, str) else names
            if role not in self.roles or not isinstance(listed, list) or not 0 < len(listed) <= self.most:
                raise self.refusal({role: names})
            if not all(isinstance(name, str) and name for name in listed):
                raise self.refusal({role: names})
            found[role] = tuple(listed)
        return found

    def parse_text(self, text: str) -> dict[str, Any]:
        pairs: dict[str, Any] = {}
        for part in text.split(","):
            role, equals, names = part.partition("=")
            if not equals or not role.strip() or not names.strip() or role.strip() in pairs:
                raise self.refusal(text)
            listed = [name.strip() for name in names.split("+")]
            pairs[role.strip()] = listed[0] if len(listed) == 1 else listed
        return pairs

    def to_json(self, value: Any) -> Any:
        return {role: names[0] if len(names) == 1 else list(names) for role, names in value.items()}

    def schema(self) -> dict[str, Any]:
        name = {"type": "string", "minLength": 1}
        names = {"anyOf": [name, {"type": "array", "items": name, "minItems": 1, "maxItems": self.most}]}
        properties = dict.fromkeys(self.roles, names)
        return {"anyOf": [{"type": "object", "properties": properties, "additionalProperties": False}, _NULL]}


_SHARES = tuple(field.name for field in dataclasses.fields(Split))


def _list_of(items: dict[str, Any], most: int | None = None) -> dict[str, Any]:
    limit = {} if most is None else {"maxItems": most}
    return {"type": "array", "items": items, "minItems": 1, "uniqueItems": True, **limit}


def _checked_layers(given: str | list[int]) -> tuple[int, ...]:
    try:
        return parse_layers(given)
    except InvalidLayers as error:
        raise ValueError(str(error)) from None


def _number(text: str, value: Value) -> float:
    """A finite number, since JSON has no others. Raises the refusal of `value`."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise value.refusal(text)
    return number
