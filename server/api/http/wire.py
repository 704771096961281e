"""WireModel: the base of all JSON objects that clients send.

It refuses unknown fields by name, and fields of the API that this server does not support.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError


class WireModel(BaseModel):
    """A JSON object from a client: strict types, finite numbers, no unknown fields.

    `unsupported` maps fields of the API that this server does not support to the values that have no effect.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)
    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {}

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """The schema, including the unsupported fields and their allowed values."""
        shown = handler(schema)
        properties = handler.resolve_ref_schema(shown).setdefault("properties", {})
        for name, neutral in cls.unsupported.items():
            properties[name] = {
                "description": "Not supported by this server. Only values without effect are accepted.",
                "enum": [None, *neutral],
            }
        return shown

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not cls.unsupported:
            return data
        for name, neutral in cls.unsupported.items():
            value = data.get(name)
            if value is not None and not any(value == other and type(value) is type(other) for other in neutral):
                raise PydanticCustomError("unsupported_parameter", "not supported by this server", {"at": name})
        return {name: value for name, value in data.items() if name not in cls.unsupported}


UNIQUE: dict[str, Any] = {"uniqueItems": True}
"""For the schema of a list without duplicates."""
