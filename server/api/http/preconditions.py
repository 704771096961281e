"""`If-Match` and `If-None-Match` as the registry supports them: one revision, or `*`.

Anything else is refused, and so is either header where a call does not support it.
"""

from __future__ import annotations

import re

from starlette.requests import Request

from server.errors import InvalidRequest

_TAG = re.compile(r'"([0-9a-fA-F]{64})"')


def refuse_preconditions(request: Request, *names: str) -> None:
    """Raise if the request has any of these headers, which its call does not support."""
    for name in names:
        if name in request.headers:
            raise InvalidRequest(f"{name}: not supported by this call", code="invalid_header", param=name)


def if_match_of(request: Request) -> str | None:
    """The revision that must be current, `*` for any, or None without the header."""
    text = request.headers.get("if-match")
    if text is None or text.strip() == "*":
        return text and "*"
    match = _TAG.fullmatch(text.strip())
    if match is None:
        raise InvalidRequest(
            'If-Match: expected "<revision>" (64 hex digits in quotes, as in ETag) or *',
            code="invalid_header",
            param="If-Match",
        )
    return match[1].lower()


def if_none_match_of(request: Request) -> bool:
    """True when the name must be free."""
    text = request.headers.get("if-none-match")
    if text is not None and text.strip() != "*":
        raise InvalidRequest(
            "If-None-Match: expected *, for a name that must be free",
            code="invalid_header",
            param="If-None-Match",
        )
    return text is not None
