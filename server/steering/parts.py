"""The interface through which the engine learns which part of a response the next token belongs to.

Steering may be limited to some parts (see `plan.py`). Whoever makes a `PartReader` knows how to distinguish them.
"""

from __future__ import annotations

from typing import Protocol

from vectors.vocabulary import Part


class PartReaderState(Protocol):
    """The part of the response that one sequence is in. Used only by the engine's thread."""

    @property
    def part(self) -> Part:
        """The part that the next token belongs to."""
        ...

    def accept(self, token_id: int) -> None:
        """Advance by one response token."""
        ...


class PartReader(Protocol):
    """Distinguishes the parts of a response; immutable."""

    def start(self) -> PartReaderState:
        """The state before the first response token."""
        ...
