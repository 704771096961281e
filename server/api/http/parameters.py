"""Parameters that several operations have, as the document shows them. They check nothing: the routes do."""

from __future__ import annotations

from typing import Any

from server.api.http.description import Header, Parameter

DISPOSITION = Header("content-disposition", "A name for the file.", {"type": "string", "pattern": "^attachment; "})

_COUNT: dict[str, Any] = {"type": "string", "pattern": "^[0-9]+$"}

RATE_LIMITS = (
    Header("x-ratelimit-limit-requests", "Requests a minute; with `--rate-limit`.", _COUNT, is_always=False),
    Header("x-ratelimit-remaining-requests", "Requests that are left.", _COUNT, is_always=False),
    Header("x-ratelimit-reset-requests", "When all are there again.", {"type": "string"}, is_always=False),
)


def _ids(kind: str) -> str:
    return f"^{kind}-[0-9a-f]{{24}}$"


def limit(default: int, most: int) -> Parameter:
    """How many a page has."""
    schema = {"type": "integer", "minimum": 1, "maximum": most, "default": default}
    return Parameter("limit", "The most that the page has.", schema)


def order(default: str) -> Parameter:
    """In which order a list is."""
    return Parameter("order", "In which order.", {"type": "string", "enum": ["asc", "desc"], "default": default})


def identifier(kind: str) -> Parameter:
    """The id in a path."""
    return Parameter("identifier", "The id.", {"type": "string", "pattern": _ids(kind)}, "path")


def after(kind: str) -> Parameter:
    """The id after which a page begins."""
    schema = {"type": "string", "pattern": _ids(kind)}
    return Parameter("after", "The `last_id` of the page before.", schema)
