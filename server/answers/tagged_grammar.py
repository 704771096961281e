"""The grammar of arguments that are not JSON: a key and a value between tags for each property of a schema."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from server.answers.call_shape import TaggedArguments
from server.answers.json_schema import SchemaRefused

_PYTHON_QUOTES = ("'", '"')
_OPEN_ENDED = frozenset({"anyOf", "oneOf", "allOf", "$ref", "patternProperties", "minProperties", "maxProperties"})
_ANNOTATIONS = frozenset({"type", "title", "description", "default", "examples", "enum", "const", "deprecated"})


def tagged_arguments(
    name: str,
    schema: Mapping[str, Any],
    tags: TaggedArguments,
    closing: str,
    quote: Callable[[str], str],
    json_rule: Callable[[Mapping[str, Any]], str],
) -> str:
    """The rules for arguments of `schema`, the first of them called `name`. `closing` follows the arguments.

    Properties come in the schema's order. `json_rule` gives the right-hand side of a JSON value. Raises
    `SchemaRefused` for what cannot be enforced in this form.
    """
    json_rule(schema)  # a schema that is no schema is refused as it is elsewhere
    properties = schema.get("properties", {})
    open_ended = {
        "anyOf",
        "oneOf",
        "allOf",
        "$ref",
        "patternProperties",
        "minProperties",
        "maxProperties",
    } & schema.keys()
    if open_ended or isinstance(schema.get("additionalProperties"), Mapping):
        keyword = min(open_ended) if open_ended else "additionalProperties"
        raise SchemaRefused(f"{keyword}: this model's calls list their arguments one by one, so it cannot be enforced")
    required = set(schema.get("required", ()))
    if missing := required - properties.keys():
        raise SchemaRefused(f"required: {min(missing)!r} is not among the properties")
    rules, follows = [], []
    definitions = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    for index, (key, value) in enumerate(properties.items()):
        rule = f"{name}_{index}"
        rules += [
            f"{rule}: {quote(tags.opening + key + tags.middle)} {rule}_value\n",
            *_value(rule, value, definitions, tags, quote, json_rule),
        ]
        follows.append((rule, key in required))
    return "".join([*_sequence(name, follows, quote(tags.separator)), *rules])


def _sequence(name: str, pairs: list[tuple[str, bool]], separator: str) -> list[str]:
    """The rules of a list of pairs, some of them optional, with separators between those that are there."""
    rules = []
    for number in range(len(pairs) + 1):
        for has_earlier in (False, True):
            head = name if number == 0 and not has_earlier else f"{name}_{'more' if has_earlier else 'from'}_{number}"
            if number == 0 and has_earlier:
                continue
            if number == len(pairs):
                rules.append(f'{head}: ""\n')
                continue
            pair, is_required = pairs[number]
            taken = f"{separator if has_earlier else ''} {pair} {name}_more_{number + 1}".strip()
            skipped = f"{name}_{'more' if has_earlier else 'from'}_{number + 1}"
            rules.append(f"{head}: {taken}\n" if is_required else f"{head}: {taken} | {skipped}\n")
    return rules


def _value(
    rule: str,
    schema: Any,
    definitions: Mapping[str, Any],
    tags: TaggedArguments,
    quote: Callable[[str], str],
    json_rule: Callable[[Mapping[str, Any]], str],
) -> list[str]:
    """The rules of one value with what closes it."""
    value = dict(schema) if isinstance(schema, Mapping) else {}
    closing = quote(tags.closing)
    if tags.quote in _PYTHON_QUOTES:
        return [f"{rule}_value: {rule}_json {closing}\n", f"{rule}_json: {json_rule({**value, **definitions})}\n"]
    choices = _texts_of(value)
    if choices is not None:
        end = tags.quote + tags.closing
        if wrong := [text for text in choices if end and end.strip() in text]:
            raise SchemaRefused(f"enum: {wrong[0]!r} contains the text that ends a value in this model's calls")
        written = " | ".join(f"{quote(tags.quote + text + end)}" for text in choices)
        return [f"{rule}_value: {written}\n"]
    if value.get("type") == "string":
        if unknown := value.keys() - _ANNOTATIONS:
            raise SchemaRefused(f"{min(unknown)}: cannot be enforced, because this model writes strings without quotes")
        return _free_text(rule, tags, quote)
    kind = value.get("type")
    is_plain = isinstance(kind, str) and (not tags.quote or kind not in ("object", "array"))
    if not is_plain:
        what = repr(kind) if kind is not None else "no type"
        raise SchemaRefused(f"type: expected one type that this model's calls can write, got {what}")
    return [f"{rule}_value: {rule}_json {closing}\n", f"{rule}_json: {json_rule({**value, **definitions})}\n"]


def _free_text(rule: str, tags: TaggedArguments, quote: Callable[[str], str]) -> list[str]:
    end = quote(tags.quote + tags.closing)
    opening = quote(tags.quote)
    if end.startswith('"'):
        token = end.split(" <[", 1)
        rest = "" if len(token) == 1 else f" <[{token[1]}"
        text = f"{rule}_text[lazy]: {rule.upper()}_TEXT\n{rule.upper()}_TEXT: /(?s:.*)/ {token[0]}\n"
        return [f"{rule}_value: {opening} {rule}_text{rest}\n", text]
    return [f"{rule}_value: {opening} {rule.upper()}_TEXT {end}\n", f"{rule.upper()}_TEXT: /(?s:.*)/\n"]


def _texts_of(schema: Mapping[str, Any]) -> list[str] | None:
    """The values of a schema that lists strings; None for any other."""
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if not isinstance(values, list) or not values or not all(isinstance(value, str) for value in values):
        return None
    return values
