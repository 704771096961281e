"""Split: how labelled items are divided into training, validation and test."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Split:
    """Shares of the items for training, validation and the one final test; they sum to 1."""

    train: float = 0.6
    validation: float = 0.2
    test: float = 0.2
