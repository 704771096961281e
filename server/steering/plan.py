"""From what a request asks to what will be done: SteeringSpec -> SteeringPlan.

A plan is resolved once, when a request is accepted: names become revisions, defaults are filled in, everything is
checked against the model. It never changes afterwards, so a swap of a vector cannot touch a running request.
This module knows the semantics of sites, positions and operations; it does not know tensors of a batch
(`bank.py`), hooks (`hooks.py`) or pages.

The tokens of a request fall into three **phases**; which entries are in scope is constant within one:

    phase      positions (prompt of P tokens)   entries in scope
    PROMPT     0 … P-2                          positions `prompt`, `all`
    BOUNDARY   P-1                              positions `prompt`, `response`, `all`
    RESPONSE   P …                              positions `response`, `all`

What steers the response steers only the **parts** of it that the entry names (content, reasoning, tool calls …). A
position belongs to the part that its next token will be in, as far as the tokens up to it tell.
"""

from __future__ import annotations

import enum
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from server.errors import InvalidRequest, from_vectors_error
from vectors.errors import InvalidVector, VectorsError
from vectors.vector import SteeringVector, checked_parts
from vectors.vocabulary import DEFAULT_PARTS, PARTS, Operation, Part, Positions, Site


class Phase(enum.IntEnum):
    """Where a token stands with respect to its request's prompt; see the module's table."""

    PROMPT = 0
    BOUNDARY = 1
    RESPONSE = 2


_IN_SCOPE: dict[Phase, frozenset[str]] = {
    Phase.PROMPT: frozenset({"prompt", "all"}),
    Phase.BOUNDARY: frozenset({"prompt", "response", "all"}),
    Phase.RESPONSE: frozenset({"response", "all"}),
}


@dataclass(frozen=True, slots=True)
class SteeringSpec:
    """One entry of a request's `steering`, as asked: None means the vector's own default.

    `revision` is a prefix of a revision's hash. `param` is the dotted path that errors name.
    """

    vector: str
    revision: str | None = None
    scale: float | None = None
    layers: tuple[int, ...] | None = None
    positions: Positions | None = None
    operation: Operation | None = None
    preserve_norm: bool = False
    parts: tuple[Part, ...] | None = None
    param: str = "steering.0"


@dataclass(frozen=True)
class PlanEntry:
    """One entry of a plan: a pinned revision with its effective parameters.

    `directions` maps each of `layers` to the stored direction, `[hidden]`.
    """

    vector: str
    revision: str
    site: Site
    layers: tuple[int, ...]
    scale: float
    positions: Positions
    operation: Operation
    preserve_norm: bool
    directions: Mapping[int, Tensor]
    parts: tuple[Part, ...] = DEFAULT_PARTS

    @property
    def is_active(self) -> bool:
        """False when the entry changes nothing by definition: `add` or `ablate` at scale 0."""
        return self.scale != 0.0 or self.operation == "clamp"

    @cached_property
    def fingerprint(self) -> bytes:
        """Hash of everything that changes activations in the entry's scope (not the name, positions and parts)."""
        parts = [
            self.revision,
            self.site,
            list(self.layers),
            self.scale.hex(),
            self.operation,
            self.preserve_norm,
        ]
        return hashlib.sha256(json.dumps(parts).encode()).digest()

    def steers(self, phase: Phase, part: Part) -> bool:
        """True when tokens of `phase` that belong to `part` are in the entry's scope."""
        if not self.is_active or self.positions not in _IN_SCOPE[phase]:
            return False
        is_prompt = phase is Phase.PROMPT or (phase is Phase.BOUNDARY and self.positions != "response")
        return is_prompt or part in self.parts


class SteeringPlan:
    """The resolved, checked and pinned steering of one request. Immutable; `UNSTEERED` is the empty one."""

    def __init__(self, entries: Iterable[PlanEntry] = ()) -> None:
        self.entries: tuple[PlanEntry, ...] = tuple(entries)
        self._in_scope = {
            (phase, part): tuple(entry for entry in self.entries if entry.steers(phase, part))
            for phase in Phase
            for part in PARTS
        }
        self._fingerprints = {
            scope: hashlib.sha256(b"".join(entry.fingerprint for entry in entries)).digest() if entries else b""
            for scope, entries in self._in_scope.items()
        }

    def in_scope(self, phase: Phase, part: Part = "content") -> tuple[PlanEntry, ...]:
        """The active entries that steer tokens of `phase` and `part`, in the order given."""
        return self._in_scope[phase, part]

    def fingerprint(self, phase: Phase, part: Part = "content") -> bytes:
        """32 bytes that differ whenever the steering of `phase` and `part` differs; empty when it is unsteered."""
        return self._fingerprints[phase, part]

    @property
    def is_steered(self) -> bool:
        """True when at least one position can change."""
        return any(self._in_scope.values())

    @property
    def depends_on_parts(self) -> bool:
        """True when some part of the response is steered otherwise than another."""
        return len({self._fingerprints[Phase.RESPONSE, part] for part in PARTS}) > 1

    def fingerprint_of_span(
        self, start: int, end: int, num_prompt_tokens: int, parts: Sequence[Part] | None = None
    ) -> bytes:
        """What steering did to positions `start … end-1`: empty when unsteered, equal exactly when equal.

        `parts[i]` is the part of position `num_prompt_tokens - 1 + i`; None: all are content. This is the steering
        half of the prefix cache's key for a page that covers these positions.
        """
        boundary = num_prompt_tokens - 1
        spans: list[tuple[Phase, Part, int, int]] = [(Phase.PROMPT, "content", start, min(end, boundary))]
        if parts is None:
            spans.append((Phase.BOUNDARY, "content", max(start, boundary), min(end, boundary + 1)))
            spans.append((Phase.RESPONSE, "content", max(start, boundary + 1), end))
        else:
            for position in range(max(start, boundary), end):
                phase = Phase.BOUNDARY if position == boundary else Phase.RESPONSE
                spans.append((phase, parts[position - boundary], position, position + 1))
        merged: list[tuple[bytes, int]] = []
        for phase, part, first, last in spans:
            if first >= last:
                continue
            fingerprint = self._fingerprints[phase, part]
            if merged and merged[-1][0] == fingerprint:
                merged[-1] = (fingerprint, merged[-1][1] + last - first)
            else:
                merged.append((fingerprint, last - first))
        if all(not fingerprint for fingerprint, _ in merged):
            return b""
        return b"".join(fingerprint + length.to_bytes(4, "little") for fingerprint, length in merged)


_LARGEST = torch.finfo(torch.float32).max

UNSTEERED = SteeringPlan()
"""The plan of a request without steering."""


class SteerableModel(Protocol):
    """What resolution must know of the model; `ModelInfo` has it."""

    @property
    def num_layers(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def sites(self) -> tuple[str, ...]: ...


class PinnedVector(Protocol):
    """A name's revision as the registry hands it out."""

    @property
    def name(self) -> str: ...
    @property
    def revision(self) -> str: ...
    @property
    def vector(self) -> SteeringVector: ...


class VectorLookup(Protocol):
    """The registry, as far as resolution needs it; `VectorStore` has it."""

    def get(self, name: str, revision_prefix: str | None = None) -> PinnedVector: ...


def _listed(layers: Sequence[int]) -> str:
    """The layers as a message shows them: the first ones of many."""
    shown = ", ".join(map(str, layers[:16]))
    return shown if len(layers) <= 16 else f"{shown}, … ({len(layers)} in all)"


def _resolve_entry(spec: SteeringSpec, lookup: VectorLookup, model: SteerableModel) -> PlanEntry:
    try:
        pinned = lookup.get(spec.vector, spec.revision)
    except VectorsError as error:
        raise from_vectors_error(error, "model" if spec.param == "model" else f"{spec.param}.vector") from error
    vector = pinned.vector
    layers_param = spec.param if spec.param == "model" else f"{spec.param}.layers"
    if vector.hidden_size != model.hidden_size:
        raise InvalidRequest(
            f"vector {pinned.name!r} has hidden size {vector.hidden_size}, the model {model.hidden_size}",
            code="vector_does_not_fit",
            param=spec.param,
        )
    if vector.site not in model.sites:
        raise InvalidRequest(
            f"vector {pinned.name!r} steers site {vector.site!r}, which this model lacks; it has "
            f"{', '.join(model.sites)}",
            code="site_not_available",
            param=spec.param,
        )
    layers = spec.layers if spec.layers is not None else vector.layers
    outside = [layer for layer in layers if not 0 <= layer < model.num_layers]
    if outside:
        raise InvalidRequest(
            f"layers {_listed(outside)} are outside the model, which has blocks 0 to {model.num_layers - 1}",
            code="invalid_layers",
            param=layers_param,
        )
    if len(vector.directions) == 1:
        (single,) = vector.directions.values()
        directions = dict.fromkeys(layers, single)
    else:
        missing = [layer for layer in layers if layer not in vector.directions]
        if missing:
            raise InvalidRequest(
                f"vector {pinned.name!r} holds no direction at layers {_listed(missing)}; it has "
                f"{_listed(vector.layers)}",
                code="invalid_layers",
                param=layers_param,
            )
        directions = {layer: vector.directions[layer] for layer in layers}
    scale = spec.scale if spec.scale is not None else vector.default_scale
    longest = max(vector.norms.values())
    if not abs(scale) * longest < _LARGEST:  # also true of NaN
        raise InvalidRequest(
            f"scale {scale:g} times a direction of length {longest:.3g} is outside float32",
            code="invalid_scale",
            param=spec.param if spec.param == "model" else f"{spec.param}.scale",
        )
    return PlanEntry(
        vector=pinned.name,
        revision=pinned.revision,
        site=vector.site,
        layers=tuple(layers),
        scale=float(scale),
        positions=spec.positions or vector.positions,
        operation=spec.operation or vector.operation,
        preserve_norm=spec.preserve_norm,
        directions=directions,
        parts=vector.parts if spec.parts is None else _parts_of(spec),
    )


def _parts_of(spec: SteeringSpec) -> tuple[Part, ...]:
    try:
        return checked_parts(spec.parts)
    except InvalidVector as error:
        raise InvalidRequest(str(error), code="invalid_parts", param=f"{spec.param}.parts") from None


def resolve_plan(specs: Sequence[SteeringSpec], lookup: VectorLookup, model: SteerableModel) -> SteeringPlan:
    """Pin `specs` to the registry's current revisions and check them against the model.

    Raises `NotFound` for unknown names and revisions, and `InvalidRequest` naming the field for anything that is
    malformed or does not fit. Nothing is dropped: what is returned is what will be done.
    """
    if not specs:
        return UNSTEERED
    return SteeringPlan(_resolve_entry(spec, lookup, model) for spec in specs)
