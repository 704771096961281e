"""AppliedVector: a vector as it is applied to a model, every default filled in and checked against the model.

Steering a plain model and planning an engine's request both resolve vectors here, so the same parameters mean the same
in both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from vectors.errors import CannotSteer, InvalidPositions
from vectors.operations import RULES, Feature, PlaceChange, Setting, combine
from vectors.positions import Positions, WindowJson, checked_positions
from vectors.vector import SteeringVector
from vectors.vocabulary import DEFAULT_ACTIVATION, OPERATIONS, SITES_IN_ORDER, Activation, Operation, Place, Site

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
    """Directions with the parameters of their use.

    `directions` maps each of `layers` to what it writes, `[hidden]` or `[rank, hidden]`; `reads` and `biases` to its
    read directions and their biases, if it has its own. `min` and `max` are the interval of `cap`; None is an open end.
    """

    site: Site
    layers: tuple[int, ...]
    scale: float
    positions: Positions
    operation: Operation
    preserve_norm: bool
    directions: Mapping[int, Tensor]
    reads: Mapping[int, Tensor] = field(default_factory=dict)
    biases: Mapping[int, Tensor] = field(default_factory=dict)
    activation: Activation = DEFAULT_ACTIVATION
    min: float | None = None
    max: float | None = None

    @property
    def is_active(self) -> bool:
        """False when nothing is changed by definition, as by `add` at scale 0."""
        return self.scale != 0.0 or not RULES[self.operation].does_nothing_at_zero

    @property
    def places(self) -> tuple[Place, ...]:
        """The places where it is applied."""
        return tuple((self.site, layer) for layer in self.layers)

    def feature(self, layer: int) -> Feature:
        """What it reads and writes at one of `layers`."""
        return Feature(self.directions[layer], self.reads.get(layer), self.biases.get(layer), self.activation)

    @property
    def setting(self) -> Setting:
        """How its operation is applied."""
        low, high = (-math.inf if self.min is None else self.min, math.inf if self.max is None else self.max)
        return Setting(self.scale, low, high)


def resolve_vector(
    vector: SteeringVector,
    model: SteerableModel,
    *,
    scale: float | None = None,
    layers: Sequence[int] | None = None,
    positions: Positions | WindowJson | None = None,
    operation: Operation | None = None,
    preserve_norm: bool = False,
    min: float | None = None,
    max: float | None = None,
    name: str | None = None,
) -> AppliedVector:
    """`vector` as it is applied to `model`; None means the vector's own default.

    `min` and `max` are the interval of `cap`, in the vector's own unit; if either is given, the other one is open.
    A vector with a single direction is applied at every layer named; any other vector must have a direction for each of
    them. Raises `CannotSteer`; its message refers to the vector by `name`.
    """
    called = "the vector" if name is None else f"vector {name!r}"
    operation = vector.operation if operation is None else operation
    _check_choice("operation", operation, OPERATIONS)
    try:
        covered = vector.positions if positions is None else checked_positions(positions)
    except InvalidPositions as error:
        raise CannotSteer(f"positions: {error}", "positions", "invalid_positions") from None
    scale = vector.default_scale if scale is None else float(scale)
    numbers = _layers_at(vector, layers, model, called)
    low, high = (vector.min, vector.max) if min is None and max is None else (min, max)
    _check_interval(low, high, operation, is_given=not (min is None and max is None))
    longest = sorted(vector.norms.values())[-1]
    for field_name, number in (("scale", scale), ("min", low), ("max", high)):
        if number is not None and not abs(number) * longest < _LARGEST:  # also true of NaN
            raise CannotSteer(
                f"{field_name} {number:g} times a direction of length {longest:.3g} is outside the range of float32",
                field_name,
                "invalid_scale" if field_name == "scale" else "invalid_interval",
            )
    if operation == "add" and vector.rank > 1:
        others = ", ".join(other for other in OPERATIONS if other != "add")
        raise CannotSteer(
            f"{called} has {vector.rank} directions a layer, which cannot be added: expected operation {others}",
            "operation",
            "invalid_operation",
        )
    takes_interval = RULES[operation].takes_interval
    return AppliedVector(
        site=vector.site,
        layers=tuple(numbers),
        scale=scale,
        positions=covered,
        operation=operation,
        preserve_norm=preserve_norm,
        directions={layer: vector.directions[own] for layer, own in numbers.items()},
        reads={layer: vector.reads[own] for layer, own in numbers.items() if own in vector.reads},
        biases={layer: vector.biases[own] for layer, own in numbers.items() if own in vector.biases},
        activation=vector.activation,
        min=low if takes_interval else None,
        max=high if takes_interval else None,
    )


def features_of(
    vector: SteeringVector, model: SteerableModel, layers: Sequence[int] | None, name: str | None = None
) -> dict[int, Feature]:
    """What `vector` reads of `model` as a probe, at `layers` (None: its own), by layer. Raises `CannotSteer`; its
    message refers to the vector by `name`.
    """
    called = "the vector" if name is None else f"vector {name!r}"
    numbers = _layers_at(vector, layers, model, called)
    if vector.rank > 1:
        raise CannotSteer(
            f"{called} has {vector.rank} read directions a layer, and a probe has one score",
            None,
            "invalid_probes",
        )
    return {
        layer: Feature(vector.directions[own], vector.reads.get(own), vector.biases.get(own), vector.activation)
        for layer, own in numbers.items()
    }


def gate_feature(
    probe: SteeringVector,
    applied: AppliedVector,
    model: SteerableModel,
    layer: int | None,
    name: str | None = None,
) -> tuple[Place, Feature]:
    """Where a gate of `applied` reads `probe`, at `layer` (None: its only one), and what. Raises `CannotSteer`; its
    message refers to the probe by `name`.
    """
    features = features_of(probe, model, None if layer is None else (layer,), name)
    called = "the probe" if name is None else f"the probe {name!r}"
    if len(features) > 1:
        raise CannotSteer(
            f"{called} has several layers, and a gate reads at one: expected layer, one of "
            f"{', '.join(map(str, features))}",
            "when",
            "invalid_gate",
        )
    ((own, feature),) = features.items()
    place = (probe.site, own)
    first = min(applied.places, key=_order)
    if _order(place) > _order(first):
        raise CannotSteer(
            f"{called} reads {place[0]} of layer {own}, which comes after {first[0]} of layer {first[1]}, where the "
            "entry acts: expected a probe at that layer or before it",
            "when",
            "invalid_gate",
        )
    return place, feature


def _order(place: Place) -> tuple[int, int]:
    """When a model computes a place."""
    site, layer = place
    return layer, SITES_IN_ORDER.index(site)


def change_at(applied: Iterable[AppliedVector], place: Place) -> PlaceChange:
    """The combined change that the active vectors of `applied` make at `place`."""
    site, layer = place
    here = [one for one in applied if one.is_active and one.site == site and layer in one.directions]
    changes = (RULES[one.operation].change(one.feature(layer), one.setting) for one in here)
    return combine(changes, preserves_norm=any(one.preserve_norm for one in here))


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise CannotSteer(f"{name}: expected one of {', '.join(choices)}, got {value!r:.60}", name, f"invalid_{name}")


def _check_interval(low: float | None, high: float | None, operation: Operation, *, is_given: bool) -> None:
    if not RULES[operation].takes_interval:
        if is_given:
            raise CannotSteer(
                f"min and max are the interval of operation cap, got them with {operation}",
                "max" if low is None else "min",
                "invalid_interval",
            )
        return
    if low is None and high is None:
        raise CannotSteer(
            "operation cap keeps what the vector reads within an interval: expected min, max or both",
            "min",
            "invalid_interval",
        )
    if low is not None and high is not None and not low <= high:
        raise CannotSteer(f"expected min at most max, got {low:g} and {high:g}", "min", "invalid_interval")


def _layers_at(
    vector: SteeringVector, layers: Sequence[int] | None, model: SteerableModel, called: str
) -> dict[int, int]:
    """For each layer where a vector that fits is applied, the one of its own whose directions are."""
    if vector.hidden_size != model.hidden_size:
        raise CannotSteer(
            f"{called} has hidden size {vector.hidden_size}, but the model has {model.hidden_size}",
            None,
            "vector_does_not_fit",
        )
    if vector.site not in model.sites:
        raise CannotSteer(
            f"{called} is for site {vector.site!r}, but this model's sites are {', '.join(model.sites)}",
            None,
            "site_not_available",
        )
    if layers is None and vector.default_layers == "none":
        raise CannotSteer(
            f"{called} is applied at layers that the request names, and it names none: expected layers, some of "
            f"{_show(vector.layers)}; or set its default_layers to all",
            "layers",
            "invalid_layers",
        )
    layers = vector.layers if layers is None else layers
    outside = [layer for layer in layers if not 0 <= layer < model.num_layers]
    if outside:
        raise CannotSteer(
            f"layers {_show(outside)} are outside the model, which has blocks 0 to {model.num_layers - 1}",
            "layers",
            "invalid_layers",
        )
    if len(vector.directions) == 1:
        (single,) = vector.directions
        return dict.fromkeys(layers, single)
    missing = [layer for layer in layers if layer not in vector.directions]
    if missing:
        raise CannotSteer(
            f"{called} has no direction at layers {_show(missing)}; its layers are {_show(vector.layers)}",
            "layers",
            "invalid_layers",
        )
    return {layer: layer for layer in layers}


def _show(layers: Sequence[int]) -> str:
    """The layers as messages show them, at most the first 16."""
    shown = ", ".join(map(str, layers[:16]))
    return shown if len(layers) <= 16 else f"{shown}, … ({len(layers)} in all)"
