"""Narrower JSON schemas: what a schema leaves open beyond need is closed, so that a weak model comes to an end.

Whatever is valid under the narrower schema is valid under the given one. It does not know grammars.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LARGEST_INTEGER = 2**53 - 1
"""The largest integer that every JSON reader holds exactly (RFC 8259, section 6)."""

SMALLEST_STEP = 1e-9
"""What numbers are multiples of, where the schema gives no step and no range too short for it."""

_SCHEMAS = frozenset({"items", "additionalProperties"})
_SCHEMA_LISTS = frozenset({"anyOf", "oneOf", "allOf", "prefixItems", "items"})
_SCHEMA_MAPS = frozenset({"properties", "patternProperties", "$defs", "definitions"})
_COMBINING = frozenset({"allOf", "if", "dependentSchemas", "unevaluatedProperties", "not"})
_SAYS_WHICH_PROPERTIES = frozenset({"additionalProperties", "patternProperties", "$ref", "anyOf", "oneOf"})


def narrowed(schema: Mapping[str, Any]) -> dict[str, Any]:
    """`schema` with numbers within ±`LARGEST_INTEGER`, by `SMALLEST_STEP`, and no properties but those it names.

    Bounds and `additionalProperties` that the schema gives itself stay. Where schemas are combined (`allOf` and its
    like), one does not see the properties of another, and nothing is closed.
    """
    return _narrowed(schema, closes=not _combines(schema))


def _narrowed_within(value: Any, *, closes: bool) -> Any:
    """`value`, where a schema may stand: a schema is narrowed, anything else stays."""
    return _narrowed(value, closes=closes) if isinstance(value, Mapping) else value


def _narrowed(schema: Mapping[str, Any], *, closes: bool) -> dict[str, Any]:
    narrow = dict(schema)
    for key in _SCHEMAS & narrow.keys():
        narrow[key] = _narrowed_within(narrow[key], closes=closes)
    for key in _SCHEMA_LISTS & narrow.keys():
        if isinstance(narrow[key], list):
            narrow[key] = [_narrowed_within(entry, closes=closes) for entry in narrow[key]]
    for key in _SCHEMA_MAPS & narrow.keys():
        if isinstance(narrow[key], Mapping):
            narrow[key] = {name: _narrowed_within(entry, closes=closes) for name, entry in narrow[key].items()}
    if _counts(narrow):
        _bound_number(narrow)
    if closes and isinstance(narrow.get("properties"), Mapping) and not _SAYS_WHICH_PROPERTIES & narrow.keys():
        named = set(narrow["properties"])
        if narrow.get("minProperties", 0) <= len(named) and named >= set(narrow.get("required", ())):
            narrow["additionalProperties"] = False
    return narrow


def holds_integers(schema: Mapping[str, Any]) -> bool:
    """True where integers may stand, and no other numbers."""
    kind = schema.get("type")
    return kind == "integer" or (isinstance(kind, list) and "integer" in kind and "number" not in kind)


def _counts(schema: Mapping[str, Any]) -> bool:
    """True where a number may stand that is not one of a list."""
    kind = schema.get("type")
    kinds = kind if isinstance(kind, list) else [kind]
    return ("integer" in kinds or "number" in kinds) and not {"enum", "const"} & schema.keys()


def _bound_number(schema: dict[str, Any]) -> None:
    """Fewer digits before the point, and after it: a model that has begun to repeat one would go on for ever."""
    low = schema.get("exclusiveMinimum", schema.get("minimum"))
    high = schema.get("exclusiveMaximum", schema.get("maximum"))
    if low is None:
        schema["minimum"] = low = -LARGEST_INTEGER
    if high is None:
        schema["maximum"] = high = LARGEST_INTEGER
    if not holds_integers(schema) and "multipleOf" not in schema and high - low >= 1000 * SMALLEST_STEP:
        schema["multipleOf"] = SMALLEST_STEP


def _combines(value: Any) -> bool:
    """True when schemas are combined anywhere within; a property of such a name counts too, which does no harm."""
    if isinstance(value, Mapping):
        return bool(_COMBINING & value.keys()) or any(map(_combines, value.values()))
    return isinstance(value, list) and any(map(_combines, value))
