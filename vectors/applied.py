"""AppliedVector: a vector as it is applied to a model, every default filled in and checked against the model.

Steering a plain model and planning an engine's request both resolve vectors here, so the same parameters mean the same
in both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vectors.errors import CannotSteer
from vectors.operations import RULES, PlaceChange, combine
from vectors.vector import SteeringVector
from vectors.vocabulary import OPERATIONS, POSITIONS, Operation, Place, Positions, Site

_LARGEST = torch.finfo(torch.float32).max


class SteerableModel(Protocol):
    """What decides whether and where a vector can steer a model."""

    @property
    def num_layers(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def sites(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class AppliedVector:
    """Directions with the parameters of their use. `directions` maps each of `layers` to its direction, `[hidden]`."""

    site: Site
    layers: tuple[int, ...]
    scale: float
    positions: Positions
    operation: Operation
    preserve_norm: bool
    directions: Mapping[int, Tensor]

    @property
    def is_active(self) -> bool:
        """False when nothing is changed by definition, as by `add` at scale 0."""
        return self.scale != 0.0 or not RULES[self.operation].does_nothing_at_zero

    @property
    def places(self) -> tuple[Place, ...]:
        """The places where it is applied."""
        return tuple((self.site, layer) for layer in self.layers)


def resolve_vector(
    vector: SteeringVector,
    model: SteerableModel,
    *,
    scale: float | None = None,
    layers: Sequence[int] | None = None,
    positions: Positions | None = None,
    operation: Operation | None = None,
    preserve_norm: bool = False,
    name: str | None = None,
) -> AppliedVector:
    """`vector` as it is applied to `model`; None means the vector's own default.

    A vector with a single direction is applied at every layer named; any other vector must have a direction for each of
    them. Raises `CannotSteer`; its message refers to the vector by `name`.
    """
    called = "the vector" if name is None else f"vector {name!r}"
    operation = vector.operation if operation is None else operation
    positions = vector.positions if positions is None else positions
    _check_choice("operation", operation, OPERATIONS)
    _check_choice("positions", positions, POSITIONS)
    if vector.hidden_size != model.hidden_size:
        raise CannotSteer(
            f"{called} has hidden size {vector.hidden_size}, but the model has {model.hidden_size}",
            None,
            "vector_does_not_fit",
        )
    if vector.site not in model.sites:
        raise CannotSteer(
            f"{called} steers site {vector.site!r}, but this model's sites are {', '.join(model.sites)}",
            None,
            "site_not_available",
        )
    scale = vector.default_scale if scale is None else float(scale)
    if layers is None and vector.default_layers == "none":
        raise CannotSteer(
            f"{called} is applied at layers that the request names, and it names none: expected layers, some of "
            f"{_show(vector.layers)}; or set its default_layers to all",
            "layers",
            "invalid_layers",
        )
    directions = _directions_at(vector, vector.layers if layers is None else layers, model, called)
    longest = max(vector.norms.values())
    if not abs(scale) * longest < _LARGEST:  # also true of NaN
        raise CannotSteer(
            f"scale {scale:g} times a direction of length {longest:.3g} is outside the range of float32",
            "scale",
            "invalid_scale",
        )
    return AppliedVector(
        site=vector.site,
        layers=tuple(directions),
        scale=scale,
        positions=positions,
        operation=operation,
        preserve_norm=preserve_norm,
        directions=directions,
    )


def change_at(applied: Iterable[AppliedVector], place: Place) -> PlaceChange:
    """The combined change that the active vectors of `applied` make at `place`."""
    site, layer = place
    here = [one for one in applied if one.is_active and one.site == site and layer in one.directions]
    changes = (RULES[one.operation].change(one.directions[layer], one.scale) for one in here)
    return combine(changes, preserves_norm=any(one.preserve_norm for one in here))


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise CannotSteer(f"{name}: expected one of {', '.join(choices)}, got {value!r:.60}", name, f"invalid_{name}")


def _directions_at(
    vector: SteeringVector, layers: Sequence[int], model: SteerableModel, called: str
) -> dict[int, Tensor]:
    outside = [layer for layer in layers if not 0 <= layer < model.num_layers]
    if outside:
        raise CannotSteer(
            f"layers {_show(outside)} are outside the model, which has blocks 0 to {model.num_layers - 1}",
            "layers",
            "invalid_layers",
        )
    if len(vector.directions) == 1:
        (single,) = vector.directions.values()
        return dict.fromkeys(layers, single)
    missing = [layer for layer in layers if layer not in vector.directions]
    if missing:
        raise CannotSteer(
            f"{called} has no direction at layers {_show(missing)}; its layers are {_show(vector.layers)}",
            "layers",
            "invalid_layers",
        )
    return {layer: vector.directions[layer] for layer in layers}


def _show(layers: Sequence[int]) -> str:
    """The layers as messages show them, at most the first 16."""
    shown = ", ".join(map(str, layers[:16]))
    return shown if len(layers) <= 16 else f"{shown}, … ({len(layers)} in all)"
