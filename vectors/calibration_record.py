"""Calibration: what a calibration found of a vector, as it is kept with it and read when a request is steered."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from vectors.errors import InvalidPositions, InvalidVector
from vectors.positions import Positions, checked_positions
from vectors.vocabulary import OPERATIONS


@dataclass(frozen=True, slots=True)
class Calibration:
    """The part of a vector's `calibration` that requests are held against; the rest is for readers.

    `safe_scale`: the lowest and the highest scale, at most and at least 0, that the vector may have when it is used
    with this operation, at these positions and layers, on the model of this fingerprint ("": any). `norms`: the mean
    ‖h‖ at each layer of the vector's site, over the texts of the calibration.
    """

    safe_scale: tuple[float, float]
    operation: str
    positions: Positions
    layers: tuple[int, ...]
    norms: Mapping[int, float]
    fingerprint: str

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> Self:
        """Read the record of a vector. Raises `InvalidVector`, naming `calibration`."""
        low, high = _two_numbers(given.get("safe_scale"))
        operation, positions = given.get("operation"), given.get("positions")
        layers, norms, fingerprint = given.get("layers"), given.get("norms"), given.get("fingerprint")
        if not low <= 0.0 <= high or low == high:
            raise _refused("safe_scale: expected a range of scales that contains 0")
        if operation not in OPERATIONS:
            raise _refused("expected an operation and positions")
        try:
            covered = checked_positions(positions)
        except InvalidPositions:
            raise _refused("expected an operation and positions") from None
        if not isinstance(layers, list) or not layers or not all(type(layer) is int for layer in layers):
            raise _refused("layers: expected a list of layers")
        if not isinstance(norms, Mapping) or not all(
            isinstance(layer, str) and layer.isascii() and layer.isdigit() and _is_number(norm) and norm > 0
            for layer, norm in norms.items()
        ):
            raise _refused("norms: expected positive numbers by layer")
        if not isinstance(fingerprint, str):
            raise _refused("fingerprint: expected text")
        found = {int(layer): float(norm) for layer, norm in norms.items()}
        return cls((low, high), operation, covered, tuple(layers), found, fingerprint)


def _two_numbers(given: object) -> tuple[float, float]:
    if not isinstance(given, list) or len(given) != 2 or not all(map(_is_number, given)):
        raise _refused("safe_scale: expected two numbers")
    return float(given[0]), float(given[1])


def _is_number(given: object) -> bool:
    return isinstance(given, int | float) and not isinstance(given, bool) and math.isfinite(given)


def _refused(reason: str) -> InvalidVector:
    return InvalidVector(f"calibration: {reason}", "calibration")
