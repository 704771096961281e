"""SteeringPlan: what will be done to the activations of one request.

A plan is resolved once (`resolution.py`), when a request is accepted, and never changes afterwards, so a swap of a
vector cannot touch a running request. It says which entries steer which tokens: by phase (`vectors/positions.py`)
and, in the response, by part.

In the response, an entry steers only the **parts** that it names (content, reasoning, tool calls …). A position
belongs to the part that its next token will be in, as far as the tokens so far tell.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from server.steering.dose import UNKNOWN, Dose
from vectors.applied import AppliedVector
from vectors.operations import Feature
from vectors.positions import Phase, coverage_of
from vectors.vocabulary import PARTS, Latch, Part, Place, Positions


@dataclass(frozen=True)
class PlanGate:
    """When an entry acts: on tokens of which a pinned revision, read at `place`, says more or less than `threshold`.

    It opens wholly where the score is above the threshold (below it unless `is_above`), or with a `sharpness` k by
    `sigmoid(k·(score - threshold))`. A `latch` of `rest` keeps it open from there on. `is_before`: it reads before the
    steering at its place, which is the entry's own.
    """

    vector: str
    revision: str
    place: Place
    feature: Feature
    threshold: float
    is_above: bool
    sharpness: float | None
    latch: Latch
    is_before: bool

    @property
    def fingerprint(self) -> str:
        """Text that differs whenever it may let through other tokens."""
        sharpness = None if self.sharpness is None else self.sharpness.hex()
        return json.dumps(
            [self.revision, self.place, self.threshold.hex(), self.is_above, sharpness, self.latch, self.is_before]
        )


@dataclass(frozen=True)
class PlanEntry:
    """One entry of a plan: a pinned revision, what it does, the parts of the response that it steers, and when.

    `vector` is its name in the registry, or empty for a vector outside of any registry. `gate` None: always. `dose` is
    only said, not done.
    """

    vector: str
    revision: str
    applied: AppliedVector
    parts: tuple[Part, ...]
    gate: PlanGate | None = None
    dose: Dose = UNKNOWN

    @cached_property
    def fingerprint(self) -> bytes:
        """Hash of everything that changes activations in the entry's scope (not the name, positions and parts)."""
        applied = self.applied
        content = [
            self.revision,
            applied.site,
            list(applied.layers),
            applied.scale.hex(),
            applied.operation,
            applied.preserve_norm,
            *(None if bound is None else bound.hex() for bound in (applied.min, applied.max)),
        ]
        if self.gate is not None:
            content.append(self.gate.fingerprint)
        return hashlib.sha256(json.dumps(content).encode()).digest()

    def steers(self, phase: Phase, part: Part) -> bool:
        """True when tokens of `phase` that belong to `part` are in the entry's scope."""
        coverage = coverage_of(self.applied.positions)
        is_covered = coverage.covers_as_prompt(phase) or (coverage.covers_as_response(phase) and part in self.parts)
        return is_covered and self.applied.is_active


@dataclass(frozen=True)
class PlanProbe:
    """A pinned revision that is read at one place, in its own unit (`vectors/operations.py`), and changes nothing.

    `name` is the key of its scores in answers. It reads the activation after the steering at `place`, or with
    `is_before` before it. `threshold`: the score above which a token counts.
    """

    name: str
    vector: str
    revision: str
    place: Place
    feature: Feature
    positions: Positions
    is_before: bool
    threshold: float

    @cached_property
    def fingerprint(self) -> bytes:
        """Hash of what is read, and where."""
        return hashlib.sha256(json.dumps([self.revision, *self.place, self.is_before]).encode()).digest()


class SteeringPlan:
    """The resolved, checked and pinned steering and probes of one request. Immutable; `UNSTEERED` is the empty one."""

    def __init__(self, entries: Iterable[PlanEntry] = (), probes: Iterable[PlanProbe] = ()) -> None:
        self.entries: tuple[PlanEntry, ...] = tuple(entries)
        self.probes: tuple[PlanProbe, ...] = tuple(probes)
        self._in_scope = {
            (phase, part): tuple(entry for entry in self.entries if entry.steers(phase, part))
            for phase in Phase
            for part in PARTS
        }
        self._fingerprints = {
            scope: hashlib.sha256(b"".join(entry.fingerprint for entry in entries)).digest() if entries else b""
            for scope, entries in self._in_scope.items()
        }
        gated = [entry for entry in self.entries if entry.gate is not None]
        self._gate_numbers = {id(entry): len(self.probes) + number for number, entry in enumerate(gated)}
        self.gated: tuple[PlanEntry, ...] = tuple(gated)
        self._probes = {
            phase: tuple(
                (number, probe)
                for number, probe in enumerate(self.probes)
                if coverage_of(probe.positions).covers(phase)
            )
            for phase in Phase
        }
        self._row_fingerprints = {scope: self._row_fingerprint(*scope) for scope in self._in_scope}

    def in_scope(self, phase: Phase, part: Part = "content") -> tuple[PlanEntry, ...]:
        """The active entries that steer tokens of `phase` and `part`, in the order given."""
        return self._in_scope[phase, part]

    def fingerprint(self, phase: Phase, part: Part = "content") -> bytes:
        """32 bytes that differ whenever the steering of `phase` and `part` differs; empty when it is unsteered."""
        return self._fingerprints[phase, part]

    def probes_of(self, phase: Phase) -> tuple[tuple[int, PlanProbe], ...]:
        """The probes that read tokens of `phase`, with their numbers."""
        return self._probes[phase]

    @property
    def num_readings(self) -> int:
        """How many numbers are read of each token: those of the probes, then those of the gates."""
        return len(self.probes) + len(self.gated)

    def number_of_gate(self, entry: PlanEntry) -> int:
        """The number of the gate of one of the plan's own gated entries among the readings."""
        return self._gate_numbers[id(entry)]

    def row_fingerprint(self, phase: Phase, part: Part = "content") -> bytes:
        """As `fingerprint`, but it also differs whenever the readings do. What probes read changes no KV."""
        return self._row_fingerprints[phase, part]

    @property
    def without_probes(self) -> SteeringPlan:
        """The same steering, which reads nothing."""
        return SteeringPlan(self.entries) if self.probes else self

    def _row_fingerprint(self, phase: Phase, part: Part) -> bytes:
        gates = [self.number_of_gate(entry) for entry in self._in_scope[phase, part] if entry.gate is not None]
        if not self._probes[phase] and not gates:
            return self._fingerprints[phase, part]
        digest = hashlib.sha256(self._fingerprints[phase, part])
        for number, probe in self._probes[phase]:
            digest.update(number.to_bytes(4, "little") + probe.fingerprint)
        for number in gates:
            digest.update(number.to_bytes(4, "little"))
        return digest.digest()

    def places(self, phase: Phase, part: Part = "content") -> frozenset[Place]:
        """Where tokens of `phase` and `part` are changed."""
        return frozenset(place for entry in self._in_scope[phase, part] for place in entry.applied.places)

    @property
    def is_steered(self) -> bool:
        """True when at least one position may be changed."""
        return any(self._in_scope.values())

    @property
    def depends_on_parts(self) -> bool:
        """True when two parts of the response are steered differently."""
        return len({self._fingerprints[Phase.RESPONSE, part] for part in PARTS}) > 1

    def fingerprint_of_span(
        self, start: int, end: int, num_prompt_tokens: int, parts: Sequence[Part] | None = None
    ) -> bytes:
        """The fingerprint of the steering of positions `start … end-1`: empty when unsteered, equal for equal steering.

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


UNSTEERED = SteeringPlan()
"""The plan of a request without steering."""
