"""Wire models of the vector registry's JSON bodies. A vector's defaults come from `vectors.defaults`.

The schemas also include the constraints that are checked later, where a vector is made.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import ConfigDict, Field, WithJsonSchema, create_model

from server.api.generation.wire import VECTOR_NAME_SCHEMA
from server.api.http.wire import WireModel
from vectors.defaults import DEFAULTS, Default
from vectors.vocabulary import REVISION_PATTERN

_DIRECTIONS_SCHEMA = {
    "type": "object",
    "propertyNames": {"pattern": "^[0-9]{1,4}$"},
    "minProperties": 1,
    "additionalProperties": {
        "anyOf": [
            {"type": "array", "items": {"type": "number"}, "minItems": 1},
            {"type": "string", "contentEncoding": "base64", "minLength": 8},
        ]
    },
}
_BIASES_SCHEMA = {
    "type": "object",
    "propertyNames": {"pattern": "^[0-9]{1,4}$"},
    "additionalProperties": {"type": "number"},
}
_TYPES: dict[str, Any] = {"number": float, "string": str, "array": list[str], "object": dict[str, Any]}
"""The types that are checked as the body is read, by JSON type; the rest is checked where a vector is made."""


def _fields(rows: Iterable[Default]) -> dict[str, Any]:
    """Optional fields of a body, with all of their constraints in the schema."""
    fields = {}
    for row in rows:
        shown = {"anyOf": [row.schema, {"type": "null"}], "description": f"{row.help[0].upper()}{row.help[1:]}."}
        fields[row.name] = (Annotated[_TYPES.get(row.schema.get("type", ""), Any) | None, WithJsonSchema(shown)], None)
    return fields


if TYPE_CHECKING:

    class VectorDefaults(WireModel):
        """The defaults that `PATCH` may change."""

    class CreatableDefaults(VectorDefaults):
        """The defaults that a vector made from numbers may have."""

else:
    VectorDefaults = create_model(
        "VectorDefaults", __base__=WireModel, **_fields(row for row in DEFAULTS if row.is_changeable)
    )
    CreatableDefaults = create_model(
        "CreatableDefaults",
        __base__=VectorDefaults,
        **_fields(row for row in DEFAULTS if row.is_creatable and not row.is_changeable),
    )


class CreateVectorRequest(CreatableDefaults):
    """Body of `POST /v1/steering/vectors`."""

    name: Annotated[str, WithJsonSchema(VECTOR_NAME_SCHEMA)]
    directions: Annotated[dict[str, Any], WithJsonSchema(_DIRECTIONS_SCHEMA)]
    """The direction of each decoder block: as many numbers as the model's hidden size, or base64 of float32."""
    reads: Annotated[dict[str, Any], WithJsonSchema(_DIRECTIONS_SCHEMA | {"minProperties": 0})] = Field(
        default_factory=dict
    )
    """The read directions, for all of these blocks or for none."""
    biases: Annotated[dict[str, float], WithJsonSchema(_BIASES_SCHEMA)] = Field(default_factory=dict)
    """The biases of read directions."""


class PatchVectorRequest(VectorDefaults):
    """Body of `PATCH /v1/steering/vectors/{name}`: absent fields stay, null ones get their default."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})


class RollbackRequest(WireModel):
    """Body of `POST /v1/steering/vectors/{name}/rollback`."""

    revision: Annotated[str, Field(json_schema_extra={"pattern": f"^{REVISION_PATTERN}$"})]
    """A revision from the vector's history, or at least its first 6 digits."""
