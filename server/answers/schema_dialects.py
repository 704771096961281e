"""Rewrites one JSON schema, as generators and older drafts write it, in the keywords that llguidance enforces.

Keywords that say nothing are left out. The result means the same, or is narrower. Subschemas are left as they are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard
from urllib.parse import quote, unquote

from llguidance import LLMatcher

from server.answers.schema_refused import SchemaRefused

_COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
_ENFORCED_FORMATS = frozenset(
    {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"}
)
_NARROWER_FORMATS = {"idn-email": "email", "idn-hostname": "hostname", "iri": "uri"}
_UNENFORCED_FORMATS = frozenset({"regex", "uri-template"})
_POINTER = "(/([^~/]|~[01])*)*"
_URI_PART = "([A-Za-z0-9._~!$&'()*+,;=@-]|%[0-9A-Fa-f]{2})"
_URI_REFERENCE = (
    rf"^([A-Za-z][A-Za-z0-9+.-]*:)?(//[A-Za-z0-9.-]+(:[0-9]+)?(/{_URI_PART}*)*|/?({_URI_PART}+(/{_URI_PART}*)*)?)"
    rf"(\?({_URI_PART}|[/:?])*)?(#({_URI_PART}|[/:?])*)?$"
)
_FORMAT_PATTERNS = {
    "json-pointer": f"^{_POINTER}$",
    "relative-json-pointer": f"^(0|[1-9][0-9]*)(#|{_POINTER})$",
    "uri-reference": _URI_REFERENCE,
    "iri-reference": _URI_REFERENCE,
}
_ONLY_NAMES = re.compile(r"\^(?:\((?:\?:)?)?([\w -]+(?:\|[\w -]+)*)\)?\$")
"""A pattern that lists whole names, such as `^name$` or `^(a|b)$`."""

_COMBINING = frozenset({"$ref", "allOf", "anyOf", "oneOf", "if", "dependentSchemas"})
_SAYS_NOTHING: tuple[Any, ...] = ({}, True)


def rewrite(schema: Mapping[str, Any], root: Mapping[str, Any]) -> dict[str, Any] | bool:
    """`schema`, a part of `root`, in other words. Raises `SchemaRefused` for what cannot be said in any."""
    plain = dict(schema)
    if "not" in plain:
        if plain["not"] in _SAYS_NOTHING:
            return False
        if plain["not"] is not False:
            raise SchemaRefused("not: only supported with an empty schema")
        del plain["not"]
    if not _are_names(plain.get("required", [])):
        raise SchemaRefused("required: expected a list of names")
    _whole_counts(plain)
    _bounds_of_draft_4(plain)
    _items_of_draft_7(plain)
    _conditions(plain)
    _names(plain, root)
    _patterns_over_names(plain)
    _closed(plain)
    _format(plain)
    if plain.get("uniqueItems") is False or _at_most_one_item(plain):
        plain.pop("uniqueItems", None)
    if isinstance(plain.get("$ref"), str):
        plain["$ref"] = quote(unquote(plain["$ref"]), safe="#/~!$&'()*+,;=:@?._-")
    return plain


def require_pattern(schema: dict[str, Any], pattern: str) -> None:
    """Add a pattern to those that `schema` has."""
    if "pattern" in schema:
        schema["allOf"] = [*schema.get("allOf", ()), {"pattern": pattern}]
    else:
        schema["pattern"] = pattern


def _whole_counts(schema: dict[str, Any]) -> None:
    for key in _COUNTS:
        count = schema.get(key)
        if isinstance(count, float):
            if not count.is_integer():
                raise SchemaRefused(f"{key}: expected an integer, got {count}")
            schema[key] = int(count)


def _bounds_of_draft_4(schema: dict[str, Any]) -> None:
    """`exclusiveMinimum: true` makes `minimum` exclusive."""
    for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if not isinstance(schema.get(exclusive), bool):
            continue
        if schema.pop(exclusive):
            if bound not in schema:
                raise SchemaRefused(f"{exclusive}: expected a number, or true beside {bound}")
            schema[exclusive] = schema.pop(bound)


def _items_of_draft_7(schema: dict[str, Any]) -> None:
    """A list as `items` is `prefixItems`, and `additionalItems` what follows; without a list it says nothing."""
    rest = schema.pop("additionalItems", True)
    if isinstance(schema.get("items"), list) and "prefixItems" not in schema:
        schema["prefixItems"] = schema.pop("items")
        schema["items"] = rest


def _conditions(schema: dict[str, Any]) -> None:
    """Leave out conditions that change nothing."""
    if all(schema.get(key, True) in _SAYS_NOTHING for key in ("then", "else")) or "if" not in schema:
        for key in ("if", "then", "else"):
            schema.pop(key, None)
    required = schema.get("required", [])
    for key in ("dependentRequired", "dependencies"):
        wanted = schema.get(key)
        if isinstance(wanted, Mapping) and all(_is_within(names, required) for names in wanted.values()):
            del schema[key]


def _is_within(names: Any, required: list[str]) -> bool:
    return isinstance(names, list) and all(name in required for name in names)


def _names(schema: dict[str, Any], root: Mapping[str, Any]) -> None:
    """Say `propertyNames` by `properties` or `patternProperties`."""
    if "propertyNames" not in schema:
        return
    names = _resolved(schema.pop("propertyNames"), root)
    asked = names if isinstance(names, Mapping) else {}
    said = {key: value for key, value in asked.items() if key not in ("title", "description")}
    if names is True or said in ({}, {"type": "string"}):
        return
    said.pop("type", None)
    rest = schema.get("additionalProperties", True)
    listed = said.get("enum", [said["const"]] if "const" in said else None)
    is_by_pattern = "patternProperties" in schema
    given = schema.get("properties", {})
    if not isinstance(given, Mapping):
        raise SchemaRefused("properties: expected an object of schemas")
    if _are_names(listed) and len(said) == 1 and not is_by_pattern:
        if not set(schema.get("required", ())) <= set(listed):
            raise SchemaRefused("propertyNames: expected to allow every required property")
        schema["properties"] = {
            name: given.get(name, rest)
            for name in dict.fromkeys([*(name for name in given if name in listed), *listed])
            if name in given or rest is not False
        }
    elif list(said) == ["pattern"] and "properties" not in schema and not is_by_pattern:
        schema["patternProperties"] = {said["pattern"]: rest}
    else:
        raise SchemaRefused("propertyNames: only supported with an enum, or with a pattern and no listed properties")
    schema["additionalProperties"] = False


def _are_names(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _patterns_over_names(schema: dict[str, Any]) -> None:
    """A listed property obeys the patterns that match its name as well."""
    patterns, properties = schema.get("patternProperties"), schema.get("properties")
    if not isinstance(patterns, Mapping) or not isinstance(properties, Mapping):
        return
    kept, listed = dict(patterns), dict(properties)
    for pattern, also in patterns.items():
        only = _ONLY_NAMES.fullmatch(pattern)
        names = set() if only is None else set(only[1].split("|"))
        if not names or not names <= set(properties):
            if properties and _overlap(pattern, properties):
                raise SchemaRefused(
                    f"patternProperties: {pattern[:60]!r} also matches a listed property; expected its schema there"
                )
            continue
        for name in names:
            if also not in _SAYS_NOTHING and also != listed[name]:
                listed[name] = {"allOf": [listed[name], also]}
        del kept[pattern]
    schema["properties"] = listed
    schema["patternProperties"] = kept
    if not kept:
        del schema["patternProperties"]


def _overlap(pattern: str, names: Iterable[str]) -> bool:
    """True when `pattern` matches one of `names`; llguidance decides, whose time is bounded whatever the pattern."""
    listed = "|".join(re.escape(name) for name in names)
    both = {"type": "object", "patternProperties": {pattern: {}, f"^({listed})$": {}}, "additionalProperties": False}
    grammar = LLMatcher.grammar_from_lark(f"start: %json {json.dumps(both)}")
    return "not disjoint" in LLMatcher.validate_grammar(grammar)


def _closed(schema: dict[str, Any]) -> None:
    """Where nothing is combined, what is not evaluated is what is additional."""
    if not _COMBINING & schema.keys():
        for key, plain in (("unevaluatedProperties", "additionalProperties"), ("unevaluatedItems", "items")):
            if key in schema:
                schema.setdefault(plain, schema.pop(key))
                schema.pop(key, None)


def _format(schema: dict[str, Any]) -> None:
    """Formats are about strings; those that the standard does not define are notes for people."""
    if "format" not in schema:
        return
    kind, types = schema.pop("format"), schema.get("type", "string")
    if "string" not in (types if isinstance(types, list) else [types]):
        return
    if not isinstance(kind, str):
        raise SchemaRefused("format: expected a name")
    if kind in _UNENFORCED_FORMATS:
        raise SchemaRefused(f"format: {kind!r} cannot be enforced; expected none, or a pattern in its place")
    if kind in _FORMAT_PATTERNS:
        require_pattern(schema, _FORMAT_PATTERNS[kind])
    elif (enforced := _NARROWER_FORMATS.get(kind, kind)) in _ENFORCED_FORMATS:
        schema["format"] = enforced


def _at_most_one_item(schema: Mapping[str, Any]) -> bool:
    most = schema.get("maxItems")
    return isinstance(most, int) and most <= 1


def _resolved(schema: Any, root: Mapping[str, Any]) -> Any:
    """What a reference within `root` leads to; any other schema as it is."""
    reference = schema.get("$ref") if isinstance(schema, Mapping) else None
    if not isinstance(reference, str) or not reference.startswith("#/"):
        return schema
    found: Any = root
    for step in unquote(reference[2:]).split("/"):
        name = step.replace("~1", "/").replace("~0", "~")
        found = found.get(name) if isinstance(found, Mapping) else None
    return schema if found is None else found
