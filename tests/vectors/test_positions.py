"""Which tokens `positions` covers, counted out as the documents say it."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from vectors.errors import InvalidPositions
from vectors.positions import (
    MAX_POSITION,
    POSITIONS_SCHEMA,
    checked_positions,
    coverage_of,
    parse_positions,
    positions_json,
)

NUM_PROMPT, NUM_TOKENS = 4, 8
COVERED: list[tuple[Any, set[int]]] = [
    ("prompt", {0, 1, 2, 3}),
    ("response", {3, 4, 5, 6, 7}),
    ("all", {0, 1, 2, 3, 4, 5, 6, 7}),
    ({"of": "prompt", "first": 2}, {0, 1}),
    ({"of": "prompt", "first": 9}, {0, 1, 2, 3}),
    ({"of": "prompt", "last": 1}, {3}),
    ({"of": "prompt", "last": 3}, {1, 2, 3}),
    ({"of": "prompt", "last": 9}, {0, 1, 2, 3}),
    ({"of": "prompt", "from": 1}, {1, 2, 3}),
    ({"of": "prompt", "from": 1, "to": 3}, {1, 2}),
    ({"of": "prompt", "from": 4}, set()),
    ({"of": "response", "first": 1}, {3}),
    ({"of": "response", "first": 3}, {3, 4, 5}),
    ({"of": "response", "from": 1}, {4, 5, 6, 7}),
    ({"of": "response", "from": 2, "to": 4}, {5, 6}),
    ({"of": "response", "from": 7}, set()),
]


@pytest.mark.parametrize(("value", "covered"), COVERED)
def test_covers_the_tokens_that_the_documents_name(value: Any, covered: set[int]) -> None:
    positions = checked_positions(value)
    coverage = coverage_of(positions, NUM_PROMPT)
    assert {token for token in range(NUM_TOKENS) if token in coverage} == covered
    assert coverage.first == min(covered, default=coverage.first)
    assert set(range(NUM_TOKENS)) & set(coverage.prompt) <= {0, 1, 2, 3}
    jsonschema.validate(value, dict(POSITIONS_SCHEMA))


@pytest.mark.parametrize("value", [value for value, _ in COVERED])
def test_each_meaning_has_one_form(value: Any) -> None:
    positions = checked_positions(value)
    assert positions_json(positions) == value
    assert checked_positions(positions) == positions
    assert hash(checked_positions(json.loads(json.dumps(value)))) == hash(positions)
    assert parse_positions(value if isinstance(value, str) else json.dumps(value)) == positions


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("everywhere", "expected one of prompt, response, all"),
        (None, "expected one of"),
        (["prompt"], "expected one of"),
        ({}, "of: expected prompt or response"),
        ({"of": "all", "first": 1}, "of: expected prompt or response"),
        ({"of": "prompt"}, "expected one of first, last and from"),
        ({"of": "prompt", "first": 1, "last": 1}, "got first, last"),
        ({"of": "prompt", "first": 2, "to": 4}, "to only with from"),
        ({"of": "response", "last": 2}, "last: expected of: prompt, because where a response ends is not known"),
        ({"of": "prompt", "from": 3, "to": 3}, "to: expected a number above from, 3, got 3"),
        ({"of": "prompt", "first": 0}, "first: expected a whole number from 1"),
        ({"of": "prompt", "from": -1}, "from: expected a whole number from 1"),
        ({"of": "prompt", "first": True}, "first: expected a whole number"),
        ({"of": "prompt", "first": 1.5}, "first: expected a whole number"),
        ({"of": "prompt", "first": MAX_POSITION + 1}, "first: expected a whole number"),
        ({"of": "prompt", "until": 1}, "got 'until'"),
    ],
)
def test_anything_else_is_refused_with_the_reason(value: Any, words: str) -> None:
    with pytest.raises(InvalidPositions, match=words):
        checked_positions(value)


@pytest.mark.parametrize("text", ["{", "{}", "[1]", '{"of": "prompt", "last": 1'])
def test_text_that_is_not_positions_is_refused(text: str) -> None:
    with pytest.raises(InvalidPositions, match="expected"):
        parse_positions(text)
