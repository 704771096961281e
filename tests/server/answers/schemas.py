"""Two hundred varied JSON schemas from a seed, and a judge of answers that knows nothing of how they came about.

Each schema says how many bytes the longest JSON under it has, so that a model that chooses at random, or for ever the
same token, must come to an end within as many tokens. Recursion and free property names have no such bound.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jsonschema

SEED = 20251125
MOST_BYTES = 600
_BYTES_PER_CHARACTER = 6  # \u0007
_FLOAT_BYTES = 28
_PATTERNS = (
    ("^[a-z]{2,5}$", 7),
    (r"^\d{3}-\d{4}$", 10),
    ("^(red|green|blue)( light)?$", 14),
    ("^[A-Z][a-z]{1,6}( [A-Z][a-z]{1,6})?$", 19),
    ("^[^a-z]{1,3}$", 20),
    ("^(é|ß|名){1,4}$", 20),
    (r'^["\\/]{1,3}$', 8),
    ("^$", 2),
)
_FORMATS = {"date": 12, "uuid": 38, "ipv4": 17, "ipv6": 41}
_LONG_FORMATS = {"date-time": 32, "time": 24, "email": 14, "hostname": 12, "duration": 16}
_OPEN = "may have more"
"""Title of objects that do not forbid other properties; beside `allOf` the server leaves such objects open."""

_NAMES = ("name", "age", "größe", "名前", "e-mail", "is open", 'a "quoted" one', "back\\slash", "line\nbreak", "😀", "",
          "x1", "$ref", "type", "properties")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Generated:
    """A schema; `most_bytes` of the longest JSON under it, None when nothing bounds it."""

    schema: dict[str, Any]
    most_bytes: int | None


def schemas(count: int = 200, seed: int = SEED) -> list[Generated]:
    """`count` schemas, the same for the same seed; each kind of root comes up again and again."""
    maker = _Maker(random.Random(seed))
    roots = (
        *maker.containers,
        maker.leaf,
        maker.deep,
        maker.shared,
        maker.tree,
        maker.linked,
        maker.open,
        maker.draft_07,
    )
    made: dict[str, Generated] = {}
    while len(made) < count:
        candidate = roots[len(made) % len(roots)](3)
        text = json.dumps(candidate.schema)
        is_short = candidate.most_bytes is None or candidate.most_bytes <= MOST_BYTES
        if is_short and not (_OPEN in text and "allOf" in text):
            made.setdefault(text, candidate)
    return list(made.values())


def judge(schema: dict[str, Any], text: str) -> None:
    """Raise unless `text` is JSON that `schema` says is valid, formats included."""
    validator = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    validator(schema, format_checker=validator.FORMAT_CHECKER).validate(json.loads(text))


def _length(value: Any) -> int:
    return len(json.dumps(value, ensure_ascii=False).encode())


class _Maker:
    """Makes schemas of at most so many levels; every method gives one with its bound."""

    def __init__(self, choose: random.Random) -> None:
        self._choose = choose
        self.containers: tuple[Callable[[int], Generated], ...] = (
            self.object, self.array, self.tuple, self.any_of, self.one_of, self.all_of, self.named_by_pattern,
        )  # fmt: skip
        self._leaves = (
            self.boolean, self.null, self.string, self.pattern, self.format, self.integer, self.multiple, self.number,
            self.quarters, self.enum, self.const, self.nullable, self.empty,
        )  # fmt: skip

    def any(self, levels: int) -> Generated:
        if levels <= 0 or self._choose.random() < 0.5:
            return self.leaf(levels)
        return self._choose.choice(self.containers)(levels - 1)

    def leaf(self, levels: int) -> Generated:
        return self._choose.choice(self._leaves)()

    def boolean(self) -> Generated:
        return Generated({"type": "boolean", "description": "yes or no", "default": True}, 5)

    def null(self) -> Generated:
        return Generated({"type": "null"}, 4)

    def string(self) -> Generated:
        least = self._choose.randrange(4)
        most = least + self._choose.randrange(6)
        return Generated({"type": "string", "minLength": least, "maxLength": most}, 2 + _BYTES_PER_CHARACTER * most)

    def pattern(self) -> Generated:
        pattern, most = self._choose.choice(_PATTERNS)
        return Generated({"type": "string", "pattern": pattern}, most)

    def format(self) -> Generated:
        if self._choose.random() < 0.5:
            kind, most = self._choose.choice(list(_FORMATS.items()))
            return Generated({"type": "string", "format": kind}, most)
        kind, most = self._choose.choice(list(_LONG_FORMATS.items()))
        return Generated({"type": "string", "format": kind, "maxLength": most}, most + 2)

    def integer(self) -> Generated:
        low = self._choose.randrange(-1000, 1000)
        high = low + self._choose.choice((0, 1, 7, 300, 10**6))
        lower = {"minimum": low} if self._choose.random() < 0.5 else {"exclusiveMinimum": low - 1}
        upper = {"maximum": high} if self._choose.random() < 0.5 else {"exclusiveMaximum": high + 1}
        schema = {"type": "integer"} | lower | upper
        if self._choose.random() < 0.2:
            return Generated({"type": "integer"}, 17)
        return Generated(schema, 8)

    def multiple(self) -> Generated:
        return Generated(
            {"type": "integer", "minimum": -50, "maximum": 500, "multipleOf": self._choose.choice((2, 7, 12, 25))}, 4
        )

    def number(self) -> Generated:
        low = self._choose.choice((0, 1, -1, -0.5, 0.25, 10))
        high = low + self._choose.choice((0.25, 0.5, 1, 1.5, 90))
        lower = {self._choose.choice(("minimum", "exclusiveMinimum")): low}
        upper = {self._choose.choice(("maximum", "exclusiveMaximum")): high}
        bounds = lower | upper if self._choose.random() < 0.8 else {}
        return Generated({"type": "number"} | bounds, _FLOAT_BYTES)

    def quarters(self) -> Generated:
        return Generated({"type": "number", "minimum": 0, "maximum": 99.5, "multipleOf": 0.25}, 8)

    def enum(self) -> Generated:
        values = self._choose.sample([1, "a", None, True, 2.5, "größe", [1, "two"], {"k": ["v"]}, -7, "x" * 9, ""], 4)
        return Generated({"enum": values}, max(map(_length, values)))

    def const(self) -> Generated:
        value: object = self._choose.choice(["yes", 0, None, False, {"a": [1, {"b": "é"}]}, [], {}, 'a "b"\\'])
        return Generated({"const": value}, _length(value) + 8)

    def nullable(self) -> Generated:
        return Generated({"type": ["string", "null"], "maxLength": 4}, 26)

    def empty(self) -> Generated:
        schema = self._choose.choice(
            ({"type": "object", "additionalProperties": False}, {"type": "array", "maxItems": 0}, {"type": "object",
             "properties": {}, "additionalProperties": False})
        )  # fmt: skip
        return Generated(schema, 2)

    def object(self, levels: int) -> Generated:
        names = self._choose.sample(_NAMES, self._choose.randrange(1, 5))
        parts = {name: self.any(levels - 1) for name in names}
        schema: dict[str, Any] = {
            "type": "object",
            "properties": {name: part.schema for name, part in parts.items()},
            "required": [name for name in names if self._choose.random() < 0.6],
        }
        schema |= {"title": _OPEN} if self._choose.random() < 0.2 else {"additionalProperties": False}
        return Generated(schema, 2 + self._sum(*parts.values()) + sum(_length(name) + 4 for name in names))

    def array(self, levels: int) -> Generated:
        item = self.any(levels - 1)
        least = self._choose.randrange(3)
        most = least + self._choose.randrange(3)
        bound = 2 + most * ((item.most_bytes or 0) + 2)
        schema = {"type": "array", "items": item.schema, "minItems": least, "maxItems": most}
        return Generated(schema, bound)

    def tuple(self, levels: int) -> Generated:
        items = [self.any(levels - 1) for _ in range(self._choose.randrange(1, 4))]
        schema: dict[str, Any] = {"type": "array", "prefixItems": [item.schema for item in items], "items": False}
        if self._choose.random() < 0.5:
            schema["minItems"] = len(items)
        return Generated(schema, 2 + self._sum(*items) + 2 * len(items))

    def any_of(self, levels: int) -> Generated:
        parts = [self.any(levels - 1) for _ in range(self._choose.randrange(2, 4))]
        return Generated({"anyOf": [part.schema for part in parts]}, max(part.most_bytes or 0 for part in parts))

    def one_of(self, levels: int) -> Generated:
        """Branches that a constant tells apart, as unions of classes are written."""
        parts = {kind: self.any(levels - 1) for kind in ("cat", "dog", "猫")}
        branches = [
            {
                "type": "object",
                "properties": {"kind": {"const": kind}, "value": part.schema},
                "required": ["kind", "value"],
                "additionalProperties": False,
            }
            for kind, part in parts.items()
        ]
        return Generated({"oneOf": branches}, 32 + max(part.most_bytes or 0 for part in parts.values()))

    def all_of(self, levels: int) -> Generated:
        part = self.any(levels - 1)
        first = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0}}, "required": ["n"]}
        second = {"properties": {"n": {"maximum": 9}, "m": part.schema}, "additionalProperties": False}
        second["required"] = ["m"] if self._choose.random() < 0.5 else []
        return Generated({"allOf": [first, {"properties": {"m": {}}}, second]}, 16 + (part.most_bytes or 0))

    def named_by_pattern(self, levels: int) -> Generated:
        part = self.any(levels - 1)
        schema = {
            "type": "object",
            "patternProperties": {"^[ab][0-9]$": part.schema},
            "additionalProperties": False,
            "maxProperties": 2,
        }
        if self._choose.random() < 0.5:
            schema["minProperties"] = 1
        return Generated(schema, 2 + 2 * (8 + (part.most_bytes or 0)))

    def deep(self, levels: int) -> Generated:
        part = self.leaf(0)
        schema, most, depth = part.schema, part.most_bytes or 0, self._choose.randrange(6, 25)
        for level in range(depth):
            if level % 2:
                schema = {"type": "array", "items": schema, "minItems": 1, "maxItems": 1}
            else:
                schema = {
                    "type": "object",
                    "properties": {"a": schema},
                    "required": ["a"],
                    "additionalProperties": False,
                }
        return Generated(schema, most + 8 * depth)

    def shared(self, levels: int) -> Generated:
        """One definition at several places, also as the root and beside other keywords."""
        part = self.any(levels - 1)
        schema = {
            "$defs": {"part": part.schema, "pair": {"type": "array", "prefixItems": [{"$ref": "#/$defs/part"}] * 2,
                      "items": False, "minItems": 2}},
            "type": "object",
            "properties": {"one": {"$ref": "#/$defs/part"}, "two": {"$ref": "#/$defs/pair", "description": "a pair"}},
            "required": ["one", "two"],
            "additionalProperties": False,
        }  # fmt: skip
        return Generated(schema, 24 + 3 * (part.most_bytes or 0))

    def tree(self, levels: int) -> Generated:
        node = {
            "type": "object",
            "properties": {
                "fruit": self.leaf(0).schema,
                "children": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 1},
            },
            "required": self._choose.choice(([], ["fruit"])),
            "additionalProperties": False,
        }
        return Generated({"$defs": {"node": node}, "$ref": "#/$defs/node"}, None)

    def linked(self, levels: int) -> Generated:
        """A list that ends with null, a mark or a number; `#` is the whole."""
        schema = {
            "type": "object",
            "properties": {
                "value": self.leaf(0).schema,
                "next": {"anyOf": [{"type": "null"}, {"enum": ["end", "stop"]}, {"$ref": "#"}]},
            },
            "required": ["next"],
            "additionalProperties": False,
        }
        return Generated(schema, None)

    def open(self, levels: int) -> Generated:
        """Property names as the model likes, with values of a schema or of any kind."""
        values: Any = self._choose.choice(
            (True, {"type": "boolean"}, {"type": ["integer", "null"]}, self.leaf(0).schema)
        )
        schema = {"type": "object", "properties": {"id": self.leaf(0).schema}, "required": ["id"]}
        return Generated(schema | {"additionalProperties": values}, None)

    def draft_07(self, levels: int) -> Generated:
        part = self.any(levels - 1)
        schema = {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "definitions": {"part": part.schema if "prefixItems" not in json.dumps(part.schema) else {"type": "null"}},
            "type": "array",
            "items": [{"$ref": "#/definitions/part"}, {"type": "boolean"}],
            "additionalItems": False,
        }
        return Generated(schema, 11 + (part.most_bytes or 0))

    @staticmethod
    def _sum(*parts: Generated) -> int:
        return sum(part.most_bytes or 0 for part in parts)
