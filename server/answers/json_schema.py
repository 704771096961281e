"""Checks a client's JSON schema, and narrows it where llguidance is more permissive than the standard.

Refused here: what llguidance accepts but does not enforce, and what is not a schema. llguidance itself refuses the
keywords that it does not support.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

from server.answers.narrowing import LARGEST_INTEGER, holds_integers
from server.answers.schema_dialects import require_pattern, rewrite
from server.answers.schema_refused import SchemaRefused as SchemaRefused

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
"""Days of the calendar from the year 1, and no leap seconds: parsers of dates accept no others."""


def make_enforceable(schema: Mapping[str, Any]) -> dict[str, Any]:
    """`schema`, or a narrower one: whatever is valid under it is valid under `schema`. Raises `SchemaRefused`."""
    checked = _checked(schema, schema, 0)
    if not isinstance(checked, dict):
        raise SchemaRefused("no answer can satisfy it")
    return checked


def _checked(schema: Any, root: Mapping[str, Any], level: int) -> Any:
    if isinstance(schema, bool):
        return schema
    if not isinstance(schema, Mapping):
        raise SchemaRefused(f"expected a schema, got {repr(schema)[:40]}")
    if level > _MOST_LEVELS:
        raise SchemaRefused(f"expected at most {_MOST_LEVELS} nested levels")
    checked = rewrite(schema, root)
    if isinstance(checked, bool):
        return checked
    for key in (_SCHEMAS | _SCHEMA_LISTS | _SCHEMA_MAPS) & checked.keys():
        checked[key] = _checked_within(key, checked[key], root, level + 1)
    for key in _NUMBERS:
        if key in checked and not _is_number(checked[key]):
            raise SchemaRefused(f"{key}: expected a number")
    _check_counts(checked)
    _check_values(checked)
    _clamp_integers(checked)
    _exclude_bounds(checked)
    _narrow_format(checked)
    return checked


def _checked_within(key: str, value: Any, root: Mapping[str, Any], level: int) -> Any:
    """The checked value of a keyword that contains schemas."""
    if key in _SCHEMA_MAPS and isinstance(value, Mapping):
        return {name: _checked(entry, root, level) for name, entry in value.items()}
    if key in _SCHEMA_LISTS and isinstance(value, list):
        return [_checked(entry, root, level) for entry in value]
    if key in _SCHEMAS:
        return _checked(value, root, level)
    raise SchemaRefused(f"{key}: expected {'an object' if key in _SCHEMA_MAPS else 'a list'} of schemas")


def _check_counts(schema: Mapping[str, Any]) -> None:
    """Refuse a count of properties that repeating one name would satisfy."""
    if schema.get("minProperties", 0) > len(set(schema.get("required", ()))) + 1:
        raise SchemaRefused("minProperties: expected at most one more than the number of required properties")


def _check_values(schema: Mapping[str, Any]) -> None:
    """Refuse values that would be written with different digits."""
    values = [schema.get("const"), schema.get("enum")]
    while values:
        value = values.pop()
        if isinstance(value, Mapping):
            values.extend(value.values())
        elif isinstance(value, list):
            values.extend(value)
        elif isinstance(value, int) and abs(value) > LARGEST_INTEGER:
            raise SchemaRefused(f"const and enum: expected integers within ±{LARGEST_INTEGER}, got {value}")


def _clamp_integers(schema: dict[str, Any]) -> None:
    """Clamp the bounds of integers to the range in which llguidance is exact."""
    if not holds_integers(schema):
        return
    for plain, exclusive, sign in (("minimum", "exclusiveMinimum", -1), ("maximum", "exclusiveMaximum", 1)):
        bounds = [schema[key] for key in (plain, exclusive) if _is_number(schema.get(key))]
        if bounds and all(bound * sign > LARGEST_INTEGER for bound in bounds):
            schema.pop(exclusive, None)
            schema[plain] = sign * LARGEST_INTEGER
        elif any(abs(bound) > LARGEST_INTEGER for bound in bounds):
            raise SchemaRefused(f"{plain}: expected a bound that leaves integers within ±{LARGEST_INTEGER}")


def _exclude_bounds(schema: dict[str, Any]) -> None:
    """Move an exclusive bound slightly inwards where the range is so short that llguidance would include it."""
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
    if pattern is not None:
        require_pattern(schema, pattern)
