"""Split: how labelled items are shared out between training, choosing and testing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Split:
    """Shares of the items for training, for choosing the cell, and for the one test at the end; they sum to 1."""

    train: float = 0.6
    validation: float = 0.2
    test: float = 0.2
