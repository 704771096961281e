"""Turns the steering that a request asks for (`SteeringSpec`) into what will be done (`SteeringPlan`).

Names become revisions, defaults are filled in, and everything is checked against the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from server.steering.dose import NO_POLICY, DosePolicy, SafeShare
from server.steering.inline import InlineVectors
from server.steering.plan import UNSTEERED, PlanEntry, PlanGate, PlanProbe, SteeringPlan
from vectors.applied import AppliedVector, SteerableModel, features_of, gate_feature, resolve_vector
from vectors.errors import CannotSteer, InvalidRevision, InvalidVector, RevisionNotFound, VectorsError
from vectors.operations import Feature
from vectors.positions import Positions, Window
from vectors.vector import SteeringVector, checked_parts
from vectors.vocabulary import DEFAULT_POSITIONS, Latch, Operation, Part, Place


@dataclass(frozen=True, slots=True)
class GateSpec:
    """When to steer, as the request asks for it: the vector to read, and what it must read; see `PlanGate`.

    `layer` None: the vector's own, if it has one only.
    """

    vector: str
    threshold: float
    revision: str | None = None
    layer: int | None = None
    is_above: bool = True
    sharpness: float | None = None
    latch: Latch = "token"


@dataclass(frozen=True, slots=True)
class SteeringSpec:
    """One vector to steer with, as the request asks for it. None means the vector's own default.

    `revision` is a prefix of a revision's hash. With `directions`, see `inline.py`, the request brings the vector,
    which has no name.
    """

    vector: str
    revision: str | None = None
    scale: float | SafeShare | None = None
    layers: tuple[int, ...] | None = None
    positions: Positions | None = None
    operation: Operation | None = None
    preserve_norm: bool = False
    parts: tuple[Part, ...] | None = None
    min: float | None = None
    max: float | None = None
    gate: GateSpec | None = None
    directions: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class ProbeSpec:
    """A vector to read, as the request asks for it. None means the vector's own default.

    `name` is the key of its scores; None: the vector's name, and the layer where it is read at several. `directions` as
    in `SteeringSpec`.
    """

    vector: str
    revision: str | None = None
    layers: tuple[int, ...] | None = None
    positions: Positions = DEFAULT_POSITIONS
    before: bool = False
    threshold: float | None = None
    name: str | None = None
    directions: Mapping[str, str] | None = None


MAX_READINGS = 256
"""The most layers at which the probes of one request read."""

MAX_WINDOWS = 8
"""The most different windows in the positions of one request: each may need rows of the bank of its own."""


class SteeringRefused(Exception):
    """A spec cannot be resolved because of `reason`, whose message it has.

    `index` counts the specs of its list from 0, those of probes if `is_probe`. `field` names the spec's field at fault
    (None: the spec as a whole). `code` says, for programs, what is wrong with the vector; it is None when the registry
    refused it.
    """

    def __init__(
        self, index: int, field: str | None, reason: VectorsError, code: str | None, *, is_probe: bool = False
    ) -> None:
        super().__init__(str(reason))
        self.index = index
        self.field = field
        self.reason = reason
        self.code = code
        self.is_probe = is_probe


class PinnedVector(Protocol):
    """A revision as the registry returns it."""

    @property
    def name(self) -> str: ...
    @property
    def revision(self) -> str: ...
    @property
    def vector(self) -> SteeringVector: ...


@dataclass(frozen=True, slots=True)
class _Inline:
    """A vector that came with the request."""

    revision: str
    vector: SteeringVector
    name: str = ""


class VectorLookup(Protocol):
    """The part of the registry that resolution needs; `VectorStore` implements it."""

    def get(self, name: str, revision_prefix: str | None = None) -> PinnedVector: ...


def resolve_plan(
    specs: Sequence[SteeringSpec],
    lookup: VectorLookup,
    model: SteerableModel,
    policy: DosePolicy = NO_POLICY,
    probes: Sequence[ProbeSpec] = (),
    inline: InlineVectors | None = None,
) -> SteeringPlan:
    """Pin `specs` and `probes` to the registry's current revisions, check them against the model, and hold the specs to
    `policy`. `inline` remembers the vectors of directions.

    Raises `SteeringRefused` for the first one that is unknown, malformed or does not fit. None is dropped silently.
    """
    if not specs and not probes:
        return UNSTEERED
    known = _Known(lookup, InlineVectors() if inline is None else inline, model)
    entries = [_resolve_entry(index, spec, known, policy) for index, spec in enumerate(specs)]
    read = _resolve_probes(probes, known)
    _check_windows([entry.applied.positions for entry in entries], [spec.positions for spec in probes])
    return SteeringPlan(entries, read)


def _check_windows(steered: Sequence[Positions], read: Sequence[Positions]) -> None:
    """Raise `SteeringRefused` where there are too many different windows."""
    found: set[Positions] = set()
    for is_probe, every in ((False, steered), (True, read)):
        for index, positions in enumerate(every):
            found |= {positions} if isinstance(positions, Window) else set()
            if len(found) > MAX_WINDOWS:
                problem = InvalidVector(
                    f"expected at most {MAX_WINDOWS} different windows of positions in a request", "positions"
                )
                raise SteeringRefused(index, "positions", problem, "invalid_positions", is_probe=is_probe)


def plan_of_vectors(steering: Iterable[tuple[SteeringVector, float]], model: SteerableModel) -> SteeringPlan:
    """The plan of vectors that need not be in a registry, each at a scale and otherwise with its own defaults.

    Raises `CannotSteer`.
    """
    return SteeringPlan(
        PlanEntry("", vector.revision, resolve_vector(vector, model, scale=scale), vector.parts)
        for vector, scale in steering
    )


def _resolve_probes(specs: Sequence[ProbeSpec], known: _Known) -> list[PlanProbe]:
    found: list[PlanProbe] = []
    names: set[str] = set()
    for index, spec in enumerate(specs):
        pinned = known.pinned(index, spec, is_probe=True)
        try:
            features = features_of(pinned.vector, known.model, spec.layers, pinned.name or None)
        except CannotSteer as error:
            raise SteeringRefused(index, error.param, error, error.code, is_probe=True) from error
        for layer, feature in features.items():
            name = pinned.name if spec.name is None else spec.name
            name = f"{name}.{layer}" if len(features) > 1 else name
            if name in names:
                problem = InvalidVector(f"two probes are called {name!r}: expected a name for one of them", "name")
                raise SteeringRefused(index, "name", problem, "invalid_probes", is_probe=True)
            names.add(name)
            found.append(_probe(name, spec, pinned, (pinned.vector.site, layer), feature))
        if len(found) > MAX_READINGS:
            problem = InvalidVector(f"expected probes at no more than {MAX_READINGS} layers in all", "layers")
            raise SteeringRefused(index, "layers", problem, "invalid_probes", is_probe=True)
    return found


def _probe(name: str, spec: ProbeSpec, pinned: PinnedVector, place: Place, feature: Feature) -> PlanProbe:
    threshold = pinned.vector.threshold if spec.threshold is None else spec.threshold
    if threshold is None:
        threshold = 0.5 if feature.activation in ("sigmoid", "step") else 0.0
    return PlanProbe(name, pinned.name, pinned.revision, place, feature, spec.positions, spec.before, threshold)


@dataclass(frozen=True, slots=True)
class _Known:
    """Where vectors are found, and the model that they are for."""

    lookup: VectorLookup
    inline: InlineVectors
    model: SteerableModel

    def pinned(self, index: int, spec: SteeringSpec | ProbeSpec | GateSpec, *, is_probe: bool = False) -> PinnedVector:
        """The vector of spec number `index`. Raises `SteeringRefused`."""
        if not isinstance(spec, GateSpec) and spec.directions is not None:
            try:
                vector = self.inline.get(spec.directions, self.model)
            except InvalidVector as error:
                raise SteeringRefused(index, "directions", error, "invalid_vector", is_probe=is_probe) from error
            return _Inline(vector.revision, vector)
        try:
            return self.lookup.get(spec.vector, spec.revision)
        except VectorsError as error:
            field = "revision" if isinstance(error, InvalidRevision | RevisionNotFound) else "vector"
            field = "when" if isinstance(spec, GateSpec) else field
            raise SteeringRefused(index, field, error, None, is_probe=is_probe) from error


def _resolve_entry(index: int, spec: SteeringSpec, known: _Known, policy: DosePolicy) -> PlanEntry:
    pinned = known.pinned(index, spec)
    try:
        applied = resolve_vector(
            pinned.vector,
            known.model,
            scale=None if isinstance(spec.scale, SafeShare) else spec.scale,
            layers=spec.layers,
            positions=spec.positions,
            operation=spec.operation,
            preserve_norm=spec.preserve_norm,
            min=spec.min,
            max=spec.max,
            name=pinned.name or None,
        )
        called = f"vector {pinned.name!r}" if pinned.name else "the vector"
        if isinstance(spec.scale, SafeShare):
            applied = replace(applied, scale=policy.scale_of(spec.scale, pinned.vector, applied, called))
        applied, dose = policy.hold(pinned.vector, applied, called)
    except CannotSteer as error:
        raise SteeringRefused(index, error.param, error, error.code) from error
    try:
        parts = pinned.vector.parts if spec.parts is None else checked_parts(spec.parts)
    except InvalidVector as error:
        raise SteeringRefused(index, "parts", error, "invalid_parts") from error
    gate = None if spec.gate is None else _resolve_gate(index, spec.gate, applied, known)
    return PlanEntry(pinned.name, pinned.revision, applied, parts, gate, dose)


def _resolve_gate(index: int, spec: GateSpec, applied: AppliedVector, known: _Known) -> PlanGate:
    pinned = known.pinned(index, spec)
    try:
        place, feature = gate_feature(pinned.vector, applied, known.model, spec.layer, pinned.name)
    except CannotSteer as error:
        raise SteeringRefused(index, "when", error, error.code) from error
    return PlanGate(
        pinned.name,
        pinned.revision,
        place,
        feature,
        spec.threshold,
        spec.is_above,
        spec.sharpness,
        spec.latch,
        is_before=place in applied.places,
    )
