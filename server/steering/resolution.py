"""Turns the steering that a request asks for (`SteeringSpec`) into what will be done (`SteeringPlan`).

Names become revisions, defaults are filled in, and everything is checked against the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from server.steering.dose import NO_POLICY, DosePolicy, SafeShare
from server.steering.plan import UNSTEERED, PlanEntry, SteeringPlan
from vectors.applied import SteerableModel, resolve_vector
from vectors.errors import CannotSteer, InvalidRevision, InvalidVector, RevisionNotFound, VectorsError
from vectors.vector import SteeringVector, checked_parts
from vectors.vocabulary import Operation, Part, Positions


@dataclass(frozen=True, slots=True)
class SteeringSpec:
    """One vector to steer with, as the request asks for it. None means the vector's own default.

    `revision` is a prefix of a revision's hash.
    """

    vector: str
    revision: str | None = None
    scale: float | SafeShare | None = None
    layers: tuple[int, ...] | None = None
    positions: Positions | None = None
    operation: Operation | None = None
    preserve_norm: bool = False
    parts: tuple[Part, ...] | None = None


class SteeringRefused(Exception):
    """A spec cannot be resolved because of `reason`, whose message it has.

    `index` counts the specs from 0, `field` names the spec's field at fault (None: the spec as a whole). `code`
    says, for programs, what is wrong with the vector; it is None when the registry refused it.
    """

    def __init__(self, index: int, field: str | None, reason: VectorsError, code: str | None) -> None:
        super().__init__(str(reason))
        self.index = index
        self.field = field
        self.reason = reason
        self.code = code


class PinnedVector(Protocol):
    """A revision as the registry returns it."""

    @property
    def name(self) -> str: ...
    @property
    def revision(self) -> str: ...
    @property
    def vector(self) -> SteeringVector: ...


class VectorLookup(Protocol):
    """The part of the registry that resolution needs; `VectorStore` implements it."""

    def get(self, name: str, revision_prefix: str | None = None) -> PinnedVector: ...


def resolve_plan(
    specs: Sequence[SteeringSpec], lookup: VectorLookup, model: SteerableModel, policy: DosePolicy = NO_POLICY
) -> SteeringPlan:
    """Pin `specs` to the registry's current revisions, check them against the model, and hold them to `policy`.

    Raises `SteeringRefused` for the first one that is unknown, malformed or does not fit. None is dropped silently.
    """
    if not specs:
        return UNSTEERED
    return SteeringPlan(_resolve_entry(index, spec, lookup, model, policy) for index, spec in enumerate(specs))


def plan_of_vectors(steering: Iterable[tuple[SteeringVector, float]], model: SteerableModel) -> SteeringPlan:
    """The plan of vectors that need not be in a registry, each at a scale and otherwise with its own defaults.

    Raises `CannotSteer`.
    """
    return SteeringPlan(
        PlanEntry("", vector.revision, resolve_vector(vector, model, scale=scale), vector.parts)
        for vector, scale in steering
    )


def _resolve_entry(
    index: int, spec: SteeringSpec, lookup: VectorLookup, model: SteerableModel, policy: DosePolicy
) -> PlanEntry:
    try:
        pinned = lookup.get(spec.vector, spec.revision)
    except VectorsError as error:
        field = "revision" if isinstance(error, InvalidRevision | RevisionNotFound) else "vector"
        raise SteeringRefused(index, field, error, None) from error
    try:
        applied = resolve_vector(
            pinned.vector,
            model,
            scale=None if isinstance(spec.scale, SafeShare) else spec.scale,
            layers=spec.layers,
            positions=spec.positions,
            operation=spec.operation,
            preserve_norm=spec.preserve_norm,
            name=pinned.name,
        )
        called = f"vector {pinned.name!r}"
        if isinstance(spec.scale, SafeShare):
            applied = replace(applied, scale=policy.scale_of(spec.scale, pinned.vector, applied, called))
        applied, dose = policy.hold(pinned.vector, applied, called)
    except CannotSteer as error:
        raise SteeringRefused(index, error.param, error, error.code) from error
    try:
        parts = pinned.vector.parts if spec.parts is None else checked_parts(spec.parts)
    except InvalidVector as error:
        raise SteeringRefused(index, "parts", error, "invalid_parts") from error
    return PlanEntry(pinned.name, pinned.revision, applied, parts, dose)
