"""AppliedVector: a vector as it is applied to a model, every default filled in and checked against the model.

Both who steers a plain model and who plans a request for an engine resolve vectors here, so that the same words mean
the same everywhere.
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
    """What must be known of a model to tell whether and where a vector can steer it."""

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
        """Where it is applied."""
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

    A vector with one single direction is applied at every layer named, others must hold each. Raises `CannotSteer`,
    whose message calls the vector by `name`.
    """
    called = "the vector" if name is None else f"vector {name!r}"
    operation = vector.operation if operation is None else operation
    positions = vector.positions if positions is None else positions
    _check_choice("operation", operation, OPERATIONS)
    _check_choice("positions", positions, POSITIONS)
    if vector.hidden_size != model.hidden_size:
        raise CannotSteer(
            f"{called} has hidden size {vector.hidden_size}, the model {model.hidden_size}", None, "vector_does_not_fit"
        )
    if vector.site not in model.sites:
        raise CannotSteer(
            f"{called} steers site {vector.site!r}, which this model lacks; it has {', '.join(model.sites)}",
            None,
            "site_not_available",
        )
    scale = vector.default_scale if scale is None else float(scale)
    directions = _directions_at(vector, vector.layers if layers is None else layers, model, called)
    longest = max(vector.norms.values())
    if not abs(scale) * longest < _LARGEST:  # also true of NaN
        raise CannotSteer(
            f"scale {scale:g} times a direction of length {longest:.3g} is outside float32", "scale", "invalid_scale"
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
    """What the active ones of `applied` that touch `place` do there together."""
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
            f"layers {_listed(outside)} are outside the model, which has blocks 0 to {model.num_layers - 1}",
            "layers",
            "invalid_layers",
        )
    if len(vector.directions) == 1:
        (single,) = vector.directions.values()
        return dict.fromkeys(layers, single)
    missing = [layer for layer in layers if layer not in vector.directions]
    if missing:
        raise CannotSteer(
            f"{called} holds no direction at layers {_listed(missing)}; it has {_listed(vector.layers)}",
            "layers",
            "invalid_layers",
        )
    return {layer: vector.directions[layer] for layer in layers}


def _listed(layers: Sequence[int]) -> str:
    """The layers as a message shows them: the first ones of many."""
    shown = ", ".join(map(str, layers[:16]))
    return shown if len(layers) <= 16 else f"{shown}, … ({len(layers)} in all)"
