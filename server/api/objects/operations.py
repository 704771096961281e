"""Objects of `/health`, `/ready` and `/version`."""

from __future__ import annotations

from typing import Literal

from typing_extensions import TypedDict


class Health(TypedDict):
    """The process is alive."""

    status: Literal["ok"]


class Readiness(TypedDict):
    """New work is accepted."""

    status: Literal["ready"]


class Version(TypedDict):
    """The server's version."""

    version: str
