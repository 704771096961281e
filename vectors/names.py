"""What a vector may be called, wherever it is kept. Knows no store and no server."""

from __future__ import annotations

import re

from vectors.errors import InvalidVectorName

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def check_name(name: str) -> str:
    """`name`, if it may name a vector; raises `InvalidVectorName`."""
    if _NAME.fullmatch(name) is None:
        raise InvalidVectorName(name)
    return name
