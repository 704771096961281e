"""OpenAI's error envelope."""

from __future__ import annotations

from typing_extensions import TypedDict


class ErrorDetails(TypedDict):
    """What went wrong: `message` for people, `code` for programs, `param` the dotted path of the offending field."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorEnvelope(TypedDict):
    """Every error, and the last event of a stream that failed."""

    error: ErrorDetails
