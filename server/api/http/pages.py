"""Pages of a list: the query's `limit`, `after` and `order`, and OpenAI's list object."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from starlette.requests import Request

from server.api.http.objects import Listed, Page
from server.errors import InvalidRequest
from server.jobs.schema import is_id


def limit_of(request: Request, *, default: int, most: int) -> int:
    """The `limit` of the query. Raises `InvalidRequest`."""
    text = request.query_params.get("limit")
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and 1 <= int(text) <= most):
        raise InvalidRequest(
            f"limit: expected a number from 1 to {most}, got {text[:40]!r}", code="invalid_value", param="limit"
        )
    return int(text)


def after_of(request: Request, kind: str) -> str | None:
    """The id after which the page begins; its object may be gone. Raises `InvalidRequest` if it is malformed."""
    text = request.query_params.get("after")
    if text is not None and not is_id(text, kind):
        raise InvalidRequest(
            f"after: expected an id of the listed objects, got {text[:80]!r}", code="invalid_value", param="after"
        )
    return text


def order_of(request: Request, default: Literal["asc", "desc"]) -> Literal["asc", "desc"]:
    """The `order` of the query; `asc` is oldest first. Raises `InvalidRequest`."""
    text = request.query_params.get("order", default)
    if text == "asc":
        return "asc"
    if text == "desc":
        return "desc"
    raise InvalidRequest(f"order: expected one of asc, desc, got {text[:40]!r}", code="invalid_value", param="order")


def page_of(objects: Sequence[Listed], limit: int) -> Page[Listed]:
    """The list object of the first `limit` of `objects`; fetch one more to find out whether there are more."""
    shown = list(objects[:limit])
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": len(objects) > limit,
    }
