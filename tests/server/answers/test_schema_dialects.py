"""Schemas as generators write them: kept to, as an independent judge says, or refused by the keyword's name."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from server.answers.grammar_source import json_answer
from server.answers.json_schema import SchemaRefused, make_enforceable
from server.answers.narrowing import narrow_schema
from server.engine.grammar import allowed_tokens
from server.text import TextProcessor
from tests.server.api.serving import byte_tokenizer

X = {"enum": ["x"]}
INTEGER = {"type": "integer"}


TEXT = TextProcessor(byte_tokenizer())
COMPILER = TEXT.grammar_compiler(259, [2])


def allows(schema: dict[str, Any], value: Any) -> bool:
    """True when `value` may be the whole answer under `schema`."""
    state = COMPILER.compile(json_answer(schema)).start()
    for token_id in TEXT.encode(json.dumps(value)):
        if not allowed_tokens(state, 259)[token_id]:
            return False
        state.accept(token_id)
    return state.is_complete or bool(allowed_tokens(state, 259)[2])


def record(**fields: Any) -> dict[str, Any]:
    return {"type": "object", **fields}


REWRITTEN: list[tuple[dict[str, Any], list[Any], list[Any]]] = [
    (record(propertyNames={"type": "string"}, additionalProperties=INTEGER), [{"a": 1}], [{"a": "1"}]),
    (record(propertyNames=True, additionalProperties=INTEGER), [{"a": 1}], [{"a": "1"}]),
    (record(propertyNames={"enum": ["a", "b"]}, additionalProperties=INTEGER), [{}, {"a": 1}, {"a": 1, "b": 2}],
     [{"c": 1}, {"a": "1"}]),
    (record(propertyNames={"const": "a"}), [{"a": 1}], [{"b": 1}]),
    (record(propertyNames={"$ref": "#/$defs/N~1"}, **{"$defs": {"N/": {"enum": ["a"]}}}), [{"a": 1}], [{"b": 1}]),
    (record(propertyNames={"pattern": "^a+$"}, additionalProperties=INTEGER), [{"aa": 1}], [{"b": 1}, {"a": "1"}]),
    (record(propertyNames={"enum": ["a", "b"]}, properties={"a": X, "c": X}), [{"a": "x", "b": 3}], [{"a": 1}]),
    (record(properties={"a": INTEGER}, patternProperties={"^a$": {"minimum": 5}}, additionalProperties=False),
     [{"a": 5}], [{"a": 4}, {"b": 5}]),
    (record(properties={"a": {}, "b": {}}, patternProperties={"^(a|b)$": INTEGER}, additionalProperties=False),
     [{"a": 5}, {"a": 1, "b": 2}], [{"a": "4"}, {"b": "x"}]),
    (record(properties={"a": X}, patternProperties={"^b": INTEGER}, additionalProperties=False),
     [{"a": "x", "bb": 5}], [{"bb": "x"}, {"c": 1}]),
    ({"type": "string", "minLength": 2.0, "maxLength": 2.0}, ["ab"], ["a", "abc"]),
    ({"type": "array", "items": INTEGER, "minItems": 1.0, "maxItems": 1, "uniqueItems": True}, [[1]], [[], [1, 2]]),
    ({"type": "array", "items": INTEGER, "uniqueItems": False}, [[1, 1]], [["1"]]),
    ({"anyOf": [X, {"not": {}}]}, ["x"], ["y"]),
    ({"type": "string", "not": False}, ["x"], [1]),
    ({"type": "array", "prefixItems": [X], "items": False, "minItems": 1}, [["x"]], [["x", 1], []]),
    ({"type": "string", "if": {}, "then": {}}, ["x"], [1]),
    ({"type": "string", "then": X}, ["y"], [1]),
    (record(properties={"a": X, "b": X}, required=["b"], dependentRequired={"a": ["b"]}), [{"b": "x"}], [{"a": "x"}]),
    (record(properties={"a": X}, unevaluatedProperties=False), [{"a": "x"}], [{"a": "x", "b": 1}]),
    ({"$defs": {"Box[int]": X}, "$ref": "#/$defs/Box[int]"}, ["x"], ["y"]),
    ({"type": "string", "format": "password"}, ["anything"], [1]),
    ({"type": "integer", "format": "int64"}, [3], ["3"]),
    ({"type": "string", "format": "json-pointer"}, ["", "/a/b~0~1", "/a/"], ["a", "/~2"]),
    ({"type": "string", "format": "relative-json-pointer"}, ["0", "1/a", "2#"], ["/a", "01"]),
    ({"type": "string", "format": "uri-reference"}, ["/a/b", "../x?y=1#z", "http://a.de/b", "%20"], ["a b", "%2"]),
    ({"type": "string", "format": "idn-email"}, ["a@b.de"], ["a"]),
]  # fmt: skip
BY_FORMAT = jsonschema.FormatChecker()


@pytest.mark.parametrize(("schema", "good", "bad"), REWRITTEN, ids=[json.dumps(case[0])[:70] for case in REWRITTEN])
def test_what_is_rewritten_allows_no_more(schema: Any, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        jsonschema.validate(value, schema, format_checker=BY_FORMAT)
        assert allows(schema, value), value
    for value in bad:
        assert not allows(schema, value), value


OLD_DRAFTS: list[tuple[dict[str, Any], list[Any], list[Any]]] = [
    ({"type": "integer", "minimum": 0, "exclusiveMinimum": True, "maximum": 2, "exclusiveMaximum": False}, [1, 2], [0]),
    ({"type": "array", "items": [X], "additionalItems": False, "minItems": 1}, [["x"]], [["x", 1], []]),
    ({"type": "array", "items": [X], "additionalItems": INTEGER}, [["x", 1]], [["x", "x"]]),
    ({"type": "array", "items": INTEGER, "additionalItems": False}, [[1, 2]], [["x"]]),
]


@pytest.mark.parametrize(("schema", "good", "bad"), OLD_DRAFTS, ids=[json.dumps(case[0])[:70] for case in OLD_DRAFTS])
def test_older_drafts_mean_what_they_meant(schema: Any, good: list[Any], bad: list[Any]) -> None:
    judge = jsonschema.Draft4Validator(schema)
    for value in (*good, *bad):
        assert judge.is_valid(value) is (value in good) is allows(schema, value), value


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"type": "string", "minLength": 1.5}, "minLength"),
    ({"type": "integer", "exclusiveMaximum": True}, "exclusiveMaximum"),
    ({"not": {"const": 1}}, "not"),
    ({"type": "string", "format": "regex"}, "format"),
    ({"type": "string", "format": 3}, "format"),
    (record(propertyNames={"minLength": 3}), "propertyNames"),
    (record(propertyNames={"enum": [1]}), "propertyNames"),
    (record(propertyNames={"enum": ["a"]}, required=["b"]), "propertyNames"),
    (record(propertyNames={"pattern": "a"}, properties={"a": {}}), "propertyNames"),
    (record(properties={"a1": {}}, patternProperties={"^a": INTEGER}), "patternProperties"),
    (record(properties={"a": {}}, patternProperties={"^(a|b)$": INTEGER}), "patternProperties"),
    (record(required=True), "required"),
    ({"not": {}}, "no answer"),
]


@pytest.mark.parametrize(("schema", "word"), REFUSED, ids=[json.dumps(schema)[:70] for schema, _ in REFUSED])
def test_what_cannot_be_kept_is_refused_by_name(schema: dict[str, Any], word: str) -> None:
    with pytest.raises(SchemaRefused, match=word):
        make_enforceable(schema)


def test_the_given_schema_is_not_changed() -> None:
    for schema, _, _ in REWRITTEN:
        before = json.dumps(schema)
        narrow_schema(make_enforceable(schema))
        assert json.dumps(schema) == before


def test_a_hostile_pattern_over_names_takes_no_time() -> None:
    schema = record(properties={"a" * 60 + "b": {}}, patternProperties={"(a+)+$": INTEGER, "^(x|x)*y$": INTEGER})
    make_enforceable(schema)
