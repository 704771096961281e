"""WireModel: the base of all JSON objects that clients send.

It refuses unknown fields by name, and fields of the API that this server does not support.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

_LARGEST_EXACT = 2**53
"""Beyond this, a float does not say which integer was meant."""


class WireModel(BaseModel):
    """A JSON object from a client: strict types, finite numbers, no unknown fields.

    As in JSON Schema, `8.0` is an integer.

    `unsupported` maps fields of the API that this server does not support to the values that have no effect; a subclass
    adds to those of its base. `instead` says what to use in place of some of them. `ignored` are fields that come with
    what other programs send back: they are accepted and not read.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)
    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {}
    instead: ClassVar[dict[str, str]] = {}
    ignored: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def ignored_in(cls, data: Mapping[str, Any]) -> Collection[str]:
        """The names of the fields of `data` to accept and not to read."""
        return [name for name in data if name in cls.ignored]

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """The schema, including the fields that are ignored, and the unsupported ones with their allowed values."""
        shown = handler(schema)
        properties = handler.resolve_ref_schema(shown).setdefault("properties", {})
        for name, neutral in _unsupported_of(cls).items():
            properties[name] = {
                "description": "Not supported by this server. Only values without effect are accepted.",
                "enum": [None, *neutral],
            }
        for name in cls.ignored:
            properties[name] = {"description": "Accepted and not read."}
        return shown

    @model_validator(mode="before")
    @classmethod
    def _prepare(cls, data: Any) -> Any:
        """Refuse unsupported fields, and take out what has no effect."""
        if not isinstance(data, dict):
            return data
        unsupported = _unsupported_of(cls)
        for name, neutral in unsupported.items():
            value = data.get(name)
            if value is not None and not any(value == other and type(value) is type(other) for other in neutral):
                way_out = f"; use {cls.instead[name]}" if name in cls.instead else ""
                raise PydanticCustomError(
                    "unsupported_parameter", "not supported by this server{way_out}", {"at": name, "way_out": way_out}
                )
        dropped = {*unsupported, *cls.ignored_in(data)}
        return {name: _as_integer(value) for name, value in data.items() if name not in dropped}


@functools.cache
def _unsupported_of(model: type[WireModel]) -> dict[str, tuple[Any, ...]]:
    """The unsupported fields of `model` and of its bases."""
    inherited: dict[str, tuple[Any, ...]] = {}
    for base in reversed(model.__mro__[1:]):
        inherited |= base.__dict__.get("unsupported", {})
    return {name: given for name, given in inherited.items() if name not in model.model_fields} | model.unsupported


def _as_integer(value: Any) -> Any:
    is_whole = type(value) is float and value.is_integer() and abs(value) <= _LARGEST_EXACT
    return int(value) if is_whole else value


UNIQUE: dict[str, Any] = {"uniqueItems": True}
"""For the schema of a list without duplicates."""
