"""Parameters of the registry's routes, for the API document. The routes check their values."""

from __future__ import annotations

from server.api.generation.wire import VECTOR_NAME_SCHEMA
from server.api.http.description import Header, Parameter

NAME = Parameter("name", "The vector's name.", VECTOR_NAME_SCHEMA, "path")

IF_MATCH = Parameter(
    "If-Match",
    "Proceed only if this revision (as in `ETag`) is current, or, with `*`, if the name exists; else 412.",
    {"anyOf": [{"const": "*"}, {"type": "string", "pattern": '^"[0-9a-fA-F]{64}"$'}]},
    "header",
)
IF_NONE_MATCH = Parameter("If-None-Match", "Proceed only if the name is free; else 412.", {"const": "*"}, "header")

ETAG = Header("etag", "The revision, in quotes.", {"type": "string", "pattern": '^"[0-9a-f]{64}"$'})
