"""Narrows JSON schemas: closes what a schema leaves open without need, so that a weak model comes to an end.

Whatever is valid under the narrowed schema is valid under the given one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LARGEST_INTEGER = 2**53 - 1
"""The largest integer that every JSON parser represents exactly (RFC 8259, section 6)."""

SMALLEST_STEP = 1e-9
"""The step of numbers, unless the schema gives a step or a range too short for this one."""

_SCHEMAS = frozenset({"items", "additionalProperties"})
_SCHEMA_LISTS = frozenset({"anyOf", "oneOf", "allOf", "prefixItems", "items"})
_SCHEMA_MAPS = frozenset({"properties", "patternProperties", "$defs", "definitions"})
_COMBINING = frozenset({"allOf", "if", "dependentSchemas", "unevaluatedProperties", "not"})
_SAYS_WHICH_PROPERTIES = frozenset({"additionalProperties", "patternProperties", "$ref", "anyOf", "oneOf"})


def narrow_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """`schema` with numbers within ±`LARGEST_INTEGER`, in steps of `SMALLEST_STEP`, and only the properties it names.

    The schema's own bounds and `additionalProperties` stay. Where schemas are combined (`allOf` and the like), no
    properties are excluded, because one schema does not see those of another.
    """
    return _narrow(schema, closes=not _combines(schema))


def _narrow_within(value: Any, *, closes: bool) -> Any:
    """`value`, from a place where a schema may be: a schema is narrowed, anything else is kept."""
    return _narrow(value, closes=closes) if isinstance(value, Mapping) else value


def _narrow(schema: Mapping[str, Any], *, closes: bool) -> dict[str, Any]:
    narrow = dict(schema)
    for key in _SCHEMAS & narrow.keys():
        narrow[key] = _narrow_within(narrow[key], closes=closes)
    for key in _SCHEMA_LISTS & narrow.keys():
        if isinstance(narrow[key], list):
            narrow[key] = [_narrow_within(entry, closes=closes) for entry in narrow[key]]
    for key in _SCHEMA_MAPS & narrow.keys():
        if isinstance(narrow[key], Mapping):
            narrow[key] = {name: _narrow_within(entry, closes=closes) for name, entry in narrow[key].items()}
    if _counts(narrow):
        _bound_number(narrow)
    if closes and isinstance(narrow.get("properties"), Mapping) and not _SAYS_WHICH_PROPERTIES & narrow.keys():
        named = set(narrow["properties"])
        if narrow.get("minProperties", 0) <= len(named) and named >= set(narrow.get("required", ())):
            narrow["additionalProperties"] = False
    return narrow


def holds_integers(schema: Mapping[str, Any]) -> bool:
    """True when integers are allowed, but no other numbers."""
    kind = schema.get("type")
    return kind == "integer" or (isinstance(kind, list) and "integer" in kind and "number" not in kind)


def _counts(schema: Mapping[str, Any]) -> bool:
    """True when numbers are allowed that are not listed one by one."""
    kind = schema.get("type")
    kinds = kind if isinstance(kind, list) else [kind]
    return ("integer" in kinds or "number" in kinds) and not {"enum", "const"} & schema.keys()


def _bound_number(schema: dict[str, Any]) -> None:
    """Limit the digits before and after the point: a model that begins to repeat a digit would never stop."""
    low = schema.get("exclusiveMinimum", schema.get("minimum"))
    high = schema.get("exclusiveMaximum", schema.get("maximum"))
    if low is None:
        schema["minimum"] = low = -LARGEST_INTEGER
    if high is None:
        schema["maximum"] = high = LARGEST_INTEGER
    if not holds_integers(schema) and "multipleOf" not in schema and high - low >= 1000 * SMALLEST_STEP:
        schema["multipleOf"] = SMALLEST_STEP


def _combines(value: Any) -> bool:
    """True when schemas are combined anywhere within. A property with such a name counts too, which is harmless."""
    if isinstance(value, Mapping):
        return bool(_COMBINING & value.keys()) or any(map(_combines, value.values()))
    return isinstance(value, list) and any(map(_combines, value))
