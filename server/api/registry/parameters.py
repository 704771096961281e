"""Parameters of the registry's routes, as the API document shows them. They check nothing: the routes do."""

from __future__ import annotations

from server.api.generation.wire import VECTOR_NAME_SCHEMA
from server.api.http.description import Header, Parameter

NAME = Parameter("name", "The vector's name.", VECTOR_NAME_SCHEMA, "path")

IF_MATCH = Parameter(
    "If-Match",
    "Only if this revision is current (as `ETag` has it), or `*`: if there is any; else 412.",
    {"anyOf": [{"const": "*"}, {"type": "string", "pattern": '^"[0-9a-fA-F]{64}"$'}]},
    "header",
)
IF_NONE_MATCH = Parameter("If-None-Match", "Only if the name is free; else 412.", {"const": "*"}, "header")

ETAG = Header("etag", "The revision, in quotes.", {"type": "string", "pattern": '^"[0-9a-f]{64}"$'})
