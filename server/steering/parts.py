"""The parts of a response as the engine sees them: which part the next token of a sequence belongs to.

Steering may leave a part alone (see `plan.py`). It does not know how parts are told apart: who makes a `PartReader`
does.
"""

from __future__ import annotations

from typing import Protocol

from vectors.vocabulary import Part


class PartReaderState(Protocol):
    """Which part of the response one sequence is in. Used by the engine's thread only."""

    @property
    def part(self) -> Part:
        """The part that the next token belongs to."""
        ...

    def accept(self, token_id: int) -> None:
        """Take the response token that came."""
        ...


class PartReader(Protocol):
    """Tells the parts of a response apart; immutable."""

    def start(self) -> PartReaderState:
        """The state before the first response token."""
        ...
