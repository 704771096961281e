"""Parameters that several operations share, for the API document. The routes check their values."""

from __future__ import annotations

from typing import Any

from server.api.http.description import Header, Parameter

DISPOSITION = Header("content-disposition", "The suggested file name.", {"type": "string", "pattern": "^attachment; "})

_COUNT: dict[str, Any] = {"type": "string", "pattern": "^[0-9]+$"}

RATE_LIMITS = tuple(
    header
    for unit, option in (("requests", "--rate-limit"), ("tokens", "--token-limit"))
    for header in (
        Header(f"x-ratelimit-limit-{unit}", f"The limit per minute; with `{option}`.", _COUNT, is_always=False),
        Header(f"x-ratelimit-remaining-{unit}", f"{unit.capitalize()} left.", _COUNT, is_always=False),
        Header(
            f"x-ratelimit-reset-{unit}", "Time until the limit is fully restored.", {"type": "string"}, is_always=False
        ),
    )
)


def _ids(kind: str) -> str:
    return f"^{kind}-[0-9a-f]{{24}}$"


def limit(default: int, most: int) -> Parameter:
    """The query parameter `limit`."""
    schema = {"type": "integer", "minimum": 1, "maximum": most, "default": default}
    return Parameter("limit", "The maximum number of objects on the page.", schema)


def order(default: str) -> Parameter:
    """The query parameter `order`."""
    return Parameter("order", "The sort order.", {"type": "string", "enum": ["asc", "desc"], "default": default})


def identifier(kind: str) -> Parameter:
    """The id in the path."""
    return Parameter("identifier", "The object's id.", {"type": "string", "pattern": _ids(kind)}, "path")


def after(kind: str) -> Parameter:
    """The query parameter `after`."""
    schema = {"type": "string", "pattern": _ids(kind)}
    return Parameter("after", "The `last_id` of the previous page.", schema)
