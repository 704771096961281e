"""Wire models of what the vector registry is told in JSON. They do not know what makes a vector valid.

What is checked later, where its error belongs, is in the schemas all the same.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ConfigDict, Field, WithJsonSchema

from server.api.generation.wire import VECTOR_NAME_SCHEMA
from server.api.http.wire import UNIQUE, WireModel
from vectors.vocabulary import MAX_DESCRIPTION, OPERATIONS, PARTS, POSITIONS, SITES

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
_PARTS_SCHEMA = {
    "anyOf": [
        {"type": "array", "items": {"enum": list(PARTS)}, "minItems": 1, **UNIQUE},
        {"type": "null"},
    ]
}


def _one_of(choices: tuple[str, ...]) -> dict[str, Any]:
    """For the schema of a text that is checked later, where its error belongs."""
    return {"enum": [*choices, None]}


class VectorDefaults(WireModel):
    """What holds where a request says nothing, and what is said about a vector."""

    default_scale: float | None = None
    operation: Annotated[str | None, Field(json_schema_extra=_one_of(OPERATIONS))] = None
    positions: Annotated[str | None, Field(json_schema_extra=_one_of(POSITIONS))] = None
    parts: Annotated[list[str] | None, WithJsonSchema(_PARTS_SCHEMA)] = None
    description: Annotated[str | None, Field(json_schema_extra={"maxLength": MAX_DESCRIPTION})] = None
    metadata: dict[str, Any] | None = None


class CreateVectorRequest(VectorDefaults):
    """Body of `POST /v1/steering/vectors`."""

    name: Annotated[str, WithJsonSchema(VECTOR_NAME_SCHEMA)]
    directions: Annotated[dict[str, Any], WithJsonSchema(_DIRECTIONS_SCHEMA)]
    """By decoder block, the direction: as many numbers as the model's hidden size, or base64 of them as float32."""
    site: Annotated[str | None, Field(json_schema_extra=_one_of(SITES))] = None


class PatchVectorRequest(VectorDefaults):
    """Body of `PATCH /v1/steering/vectors/{name}`: what is given changes, what is not given or null stays."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})


class RollbackRequest(WireModel):
    """Body of `POST /v1/steering/vectors/{name}/rollback`."""

    revision: Annotated[str, Field(json_schema_extra={"pattern": "^[0-9a-fA-F]{6,64}$"})]
    """A revision of the vector's history, or at least 6 of its first characters."""
