"""JSON schemas of the OpenAPI document, generated from the types of requests and answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

_REFERENCE = "#/components/schemas/{model}"


class _Schemas(GenerateJsonSchema):
    """Pydantic's schemas, but without additional properties and without titles."""

    def typed_dict_schema(self, schema: core_schema.TypedDictSchema) -> JsonSchemaValue:
        return super().typed_dict_schema(schema) | {"additionalProperties": False}

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def schemas_of(types: Sequence[Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A schema for each type, in order, and the components that they refer to, by name."""
    adapters: list[tuple[int, Any, TypeAdapter[Any]]] = [
        (number, "validation", TypeAdapter(each)) for number, each in enumerate(types)
    ]
    found, common = TypeAdapter.json_schemas(adapters, ref_template=_REFERENCE, schema_generator=_Schemas)
    components = common.get("$defs", {})
    return [found[(number, "validation")] for number in range(len(types))], components
