"""Checks a client's JSON schema, and narrows what llguidance would take more widely than the standard does.

What llguidance takes but cannot keep, and what is no schema at all, is refused here; what it does not take it refuses
itself. It does not know grammars, nor how an answer is brought to an end (`narrowing.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

from server.answers.narrowing import LARGEST_INTEGER, holds_integers

_MOST_LEVELS = 60
_SCHEMAS = frozenset({"items", "additionalProperties"})
_SCHEMA_LISTS = frozenset({"anyOf", "oneOf", "allOf", "prefixItems", "items"})
_SCHEMA_MAPS = frozenset({"properties", "patternProperties", "$defs", "definitions"})
_NUMBERS = (
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
)

_LEAP_YEAR = "([0-9]{2}(0[48]|[2468][048]|[13579][26])|(0[48]|[2468][048]|[13579][26])00)"
_DAY = f"^([0-9]*[1-9][0-9]*-(0[13-9]|1[0-2]|02-[01]|02-2[0-8])|{_LEAP_YEAR}-02-29)"
_SECOND = "[0-9:]{6}[0-5]"
_NARROWER = {"date": _DAY, "time": f"^{_SECOND}", "date-time": f"{_DAY}[Tt]{_SECOND}"}
"""Days that the calendar has, from the year 1, and no leap seconds: readers of dates know no others."""


class SchemaRefused(Exception):
    """A schema that no answer could be kept to; the message says why."""


def enforceable(schema: Mapping[str, Any]) -> dict[str, Any]:
    """`schema`, or a narrower one: whatever is valid under it is valid under `schema`. Raises `SchemaRefused`."""
    checked = _checked(schema, 0)
    assert isinstance(checked, dict)
    return checked


def _checked(schema: Any, level: int) -> Any:
    if isinstance(schema, bool):
        return schema
    if not isinstance(schema, Mapping):
        raise SchemaRefused(f"where a schema belongs there is {repr(schema)[:40]}")
    if level > _MOST_LEVELS:
        raise SchemaRefused(f"it is nested more than {_MOST_LEVELS} levels deep")
    checked = dict(schema)
    for key in (_SCHEMAS | _SCHEMA_LISTS | _SCHEMA_MAPS) & checked.keys():
        checked[key] = _checked_within(key, checked[key], level + 1)
    for key in _NUMBERS:
        if key in checked and not _is_number(checked[key]):
            raise SchemaRefused(f"{key}: this must be a number")
    _check_counts(checked)
    _check_values(checked)
    _clamp_integers(checked)
    _exclude_bounds(checked)
    _narrow_format(checked)
    return checked


def _checked_within(key: str, value: Any, level: int) -> Any:
    """The schemas that a keyword holds."""
    if key in _SCHEMA_MAPS and isinstance(value, Mapping):
        return {name: _checked(entry, level) for name, entry in value.items()}
    if key in _SCHEMA_LISTS and isinstance(value, list):
        return [_checked(entry, level) for entry in value]
    if key in _SCHEMAS:
        return _checked(value, level)
    raise SchemaRefused(f"{key}: this must be {'an object' if key in _SCHEMA_MAPS else 'a list'} of schemas")


def _check_counts(schema: Mapping[str, Any]) -> None:
    """Refuse a count of properties that one name given twice would seem to reach."""
    required = schema.get("required", [])
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        raise SchemaRefused("required: this must be a list of names")
    if schema.get("minProperties", 0) > len(set(required)) + 1:
        raise SchemaRefused("minProperties: this can be at most one more than the properties that are required")


def _check_values(schema: Mapping[str, Any]) -> None:
    """Refuse wanted values that would be written with other digits."""
    values = [schema.get("const"), schema.get("enum")]
    while values:
        value = values.pop()
        if isinstance(value, Mapping):
            values.extend(value.values())
        elif isinstance(value, list):
            values.extend(value)
        elif isinstance(value, int) and abs(value) > LARGEST_INTEGER:
            raise SchemaRefused(f"const and enum: JSON readers hold integers exactly to {LARGEST_INTEGER}, not {value}")


def _clamp_integers(schema: dict[str, Any]) -> None:
    """Keep the bounds of integers to where llguidance counts exactly."""
    if not holds_integers(schema):
        return
    for plain, exclusive, sign in (("minimum", "exclusiveMinimum", -1), ("maximum", "exclusiveMaximum", 1)):
        bounds = [schema[key] for key in (plain, exclusive) if _is_number(schema.get(key))]
        if bounds and all(bound * sign > LARGEST_INTEGER for bound in bounds):
            schema.pop(exclusive, None)
            schema[plain] = sign * LARGEST_INTEGER
        elif any(abs(bound) > LARGEST_INTEGER for bound in bounds):
            raise SchemaRefused(f"{plain}: no integer is left within ±{LARGEST_INTEGER}")


def _exclude_bounds(schema: dict[str, Any]) -> None:
    """Move an exclusive bound a little inwards where the range is so short that llguidance takes the bound itself."""
    low = schema.get("exclusiveMinimum", schema.get("minimum"))
    high = schema.get("exclusiveMaximum", schema.get("maximum"))
    if not _is_number(low) or not _is_number(high) or not 0 < high - low < 1 or holds_integers(schema):
        return
    margin = (high - low) * 1e-6
    if "exclusiveMinimum" in schema:
        schema["exclusiveMinimum"] = low + margin
    if "exclusiveMaximum" in schema:
        schema["exclusiveMaximum"] = high - margin


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _narrow_format(schema: dict[str, Any]) -> None:
    kind = schema.get("format")
    pattern = _NARROWER.get(kind) if isinstance(kind, str) else None
    if pattern is None:
        return
    if "pattern" in schema:
        schema["allOf"] = [*schema.get("allOf", ()), {"pattern": pattern}]
    else:
        schema["pattern"] = pattern
