"""SteeringPlan: what will be done to the activations of one request.

A plan is resolved once (`resolution.py`), when a request is accepted, and never changes afterwards, so a swap of a
vector cannot touch a running request. It says which entries steer which tokens: by positions (`vectors/positions.py`)
and, in the response, by part. What is done to some tokens is a **scope**. Along a sequence the scopes fall into zones.

In the response, an entry steers only the **parts** that it names (content, reasoning, tool calls …). A position
belongs to the part that its next token will be in, as far as the tokens so far tell.
"""

from __future__ import annotations

import bisect
import functools
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from server.steering.dose import UNKNOWN, Dose
from vectors.applied import AppliedVector
from vectors.operations import Feature
from vectors.positions import Positions, Window, coverage_of
from vectors.vocabulary import PARTS, Latch, Part, Place

_MAX_LENGTHS = 64
"""How many lengths of prompts a plan remembers its zones for."""


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

    def steers(self, position: int, num_prompt: int, part: Part) -> bool:
        """True when the token at `position`, if it belongs to `part`, is covered by the entry's positions and parts."""
        coverage = coverage_of(self.applied.positions, num_prompt)
        return position in coverage.prompt or (part in self.parts and position in coverage.response)


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


class Scope:
    """What is done to some tokens: the active entries that steer them, in the order given, and the probes that read
    them, with their numbers. A plan has one object for each; `gates` are the numbers of the entries' gates.
    """

    def __init__(
        self,
        entries: tuple[PlanEntry, ...],
        probes: tuple[tuple[int, PlanProbe], ...],
        gates: tuple[int | None, ...],
    ) -> None:
        self.entries = entries
        self.probes = probes
        self.gates = gates

    @cached_property
    def fingerprint(self) -> bytes:
        """32 bytes that differ whenever the steering differs; empty when there is none. Probes do not count."""
        if not self.entries:
            return b""
        return hashlib.sha256(b"".join(entry.fingerprint for entry in self.entries)).digest()

    @cached_property
    def row_fingerprint(self) -> bytes:
        """As `fingerprint`, but it also differs whenever the readings do."""
        gates = [number for number in self.gates if number is not None]
        if not self.probes and not gates:
            return self.fingerprint
        digest = hashlib.sha256(self.fingerprint)
        for number, probe in self.probes:
            digest.update(number.to_bytes(4, "little") + probe.fingerprint)
        for number in gates:
            digest.update(number.to_bytes(4, "little"))
        return digest.digest()

    @cached_property
    def places(self) -> frozenset[Place]:
        """Where activations are changed."""
        return frozenset(place for entry in self.entries for place in entry.applied.places)


class SteeringPlan:
    """The resolved, checked and pinned steering and probes of one request. Immutable; `UNSTEERED` is the empty one."""

    def __init__(self, entries: Iterable[PlanEntry] = (), probes: Iterable[PlanProbe] = ()) -> None:
        self.entries: tuple[PlanEntry, ...] = tuple(entries)
        self.probes: tuple[PlanProbe, ...] = tuple(probes)
        self._active = tuple(number for number, entry in enumerate(self.entries) if entry.applied.is_active)
        gated = [number for number, entry in enumerate(self.entries) if entry.gate is not None]
        self._gate_numbers = {entry: len(self.probes) + number for number, entry in enumerate(gated)}
        self.gated: tuple[PlanEntry, ...] = tuple(self.entries[number] for number in gated)
        self._scopes: dict[tuple[tuple[int, ...], tuple[int, ...]], Scope] = {}
        self._zones: dict[int, Zones] = {}

    @property
    def num_readings(self) -> int:
        """How many numbers are read of each token: those of the probes, then those of the gates, in order."""
        return len(self.probes) + len(self.gated)

    @property
    def without_probes(self) -> SteeringPlan:
        """The same steering, which reads nothing."""
        return SteeringPlan(self.entries) if self.probes else self

    @property
    def is_steered(self) -> bool:
        """True when at least one position may be changed."""
        return bool(self._active)

    @cached_property
    def depends_on_parts(self) -> bool:
        """True when two parts of the response are steered differently."""
        return self.zones(1).depends_on_parts

    @cached_property
    def windows(self) -> frozenset[Window]:
        """The windows in which it steers or reads."""
        used = [self.entries[number].applied.positions for number in self._active]
        used += [probe.positions for probe in self.probes]
        return frozenset(positions for positions in used if isinstance(positions, Window))

    @cached_property
    def prompt_fingerprint(self) -> bytes:
        """32 bytes that are equal only if any prompt's tokens before the last are steered alike; empty without."""
        content: list[object] = []
        for number in self._active:
            entry = self.entries[number]
            positions = entry.applied.positions
            if isinstance(positions, Window):
                if positions.of == "prompt" and positions.start != -1:
                    content += [entry.fingerprint.hex(), positions.to_json()]
            elif positions != "response":
                content += [entry.fingerprint.hex(), None]
        return hashlib.sha256(json.dumps(content).encode()).digest() if content else b""

    @cached_property
    def decisive_length(self) -> int:
        """All prompts of at least so many tokens are steered alike at their last token."""
        return 1 + max((max(own.start, own.end or 0) for own in self.windows if own.of == "prompt"), default=0)

    def at_boundary(self, num_prompt: int) -> Scope:
        """What is done to the last of `num_prompt` tokens, where content follows."""
        length = min(num_prompt, self.decisive_length)
        return self.zones(length).at(length - 1)

    def zones(self, num_prompt: int) -> Zones:
        """What is done where, with a prompt of `num_prompt` tokens."""
        found = self._zones.get(num_prompt)
        if found is None:
            if len(self._zones) >= _MAX_LENGTHS:
                self._zones.clear()
            found = self._zones[num_prompt] = Zones(self, num_prompt)
        return found

    def scope_at(self, position: int, num_prompt: int, part: Part) -> Scope:
        """What is done to the token at `position`, if it belongs to `part`."""
        entries = tuple(number for number in self._active if self.entries[number].steers(position, num_prompt, part))
        probes = tuple(
            number for number, probe in enumerate(self.probes) if position in coverage_of(probe.positions, num_prompt)
        )
        found = self._scopes.get((entries, probes))
        if found is None:
            found = self._scopes[entries, probes] = Scope(
                tuple(self.entries[number] for number in entries),
                tuple((number, self.probes[number]) for number in probes),
                tuple(self._gate_numbers.get(number) for number in entries),
            )
        return found


class Zones:
    """What a plan does where, with a prompt of `num_prompt` tokens.

    The positions fall into zones, which begin at `starts`. Within one, everything with the same part is done alike: a
    zone has a scope for each part. Before the last token of the prompt all parts have the same.
    """

    def __init__(self, plan: SteeringPlan, num_prompt: int) -> None:
        self.num_prompt = num_prompt
        boundary = num_prompt - 1
        edges = {0, boundary}
        for positions in {each.applied.positions for each in plan.entries} | {each.positions for each in plan.probes}:
            coverage = coverage_of(positions, num_prompt)
            for span in (coverage.prompt, coverage.response):
                if span:
                    edges |= {span.start, span.stop}
        self.starts: list[int] = []
        self._scopes: list[dict[Part, Scope]] = []
        for start in sorted(edges - {sys.maxsize}):
            parts = PARTS if start >= boundary else PARTS[:1]
            scopes = {part: plan.scope_at(start, num_prompt, part) for part in parts}
            if start < boundary:
                scopes = dict.fromkeys(PARTS, scopes[PARTS[0]])
            if not self._scopes or self._scopes[-1] != scopes:
                self.starts.append(start)
                self._scopes.append(scopes)
        self.scopes: frozenset[Scope] = frozenset(scope for scopes in self._scopes for scope in scopes.values())
        """All scopes."""
        self.is_steered = any(scope.entries for scope in self.scopes)
        self.depends_on_parts = any(
            len({scope.fingerprint for scope in scopes.values()}) > 1 for scopes in self._scopes
        )

    def at(self, position: int, part: Part = "content") -> Scope:
        """What is done to the token at `position`, if it belongs to `part`."""
        return self._scopes[bisect.bisect_right(self.starts, position) - 1][part]

    def runs(self, start: int, end: int, parts: Sequence[Part] | None = None) -> Iterator[tuple[Scope, int, int]]:
        """The scopes of positions `start … end-1`, each with the first position and the end of a run of it.

        `parts[i]` is the part of position `num_prompt - 1 + i`; None: all are content.
        """
        boundary = self.num_prompt - 1
        zone = bisect.bisect_right(self.starts, start) - 1
        while start < end:
            last = min(end, self.starts[zone + 1]) if zone + 1 < len(self.starts) else end
            scopes = self._scopes[zone]
            if parts is None:
                yield scopes["content"], start, last
            else:
                while start < last:
                    part = parts[max(0, start - boundary)]
                    stop = start + 1
                    while stop < last and (stop <= boundary or parts[stop - boundary] == part):
                        stop += 1
                    yield scopes[part], start, stop
                    start = stop
            start = last
            zone += 1

    def fingerprint_of_span(self, start: int, end: int, parts: Sequence[Part] | None = None) -> bytes:
        """The fingerprint of the steering of positions `start … end-1`: empty when unsteered, equal for equal steering.

        `parts` as in `runs`. This is the steering half of the prefix cache's key for a page of these positions.
        """
        if not self.is_steered:
            return b""
        merged: list[tuple[bytes, int]] = []
        for scope, first, last in self.runs(start, end, parts):
            if merged and merged[-1][0] == scope.fingerprint:
                merged[-1] = (scope.fingerprint, merged[-1][1] + last - first)
            else:
                merged.append((scope.fingerprint, last - first))
        if all(not fingerprint for fingerprint, _ in merged):
            return b""
        return b"".join(fingerprint + length.to_bytes(4, "little") for fingerprint, length in merged)


@functools.lru_cache(maxsize=8)  # a search branches every prompt into the same plans
def decisive_length(plans: tuple[SteeringPlan, ...]) -> int:
    """The largest `SteeringPlan.decisive_length`; 1 without plans."""
    return max((plan.decisive_length for plan in plans), default=1)


UNSTEERED = SteeringPlan()
"""The plan of a request without steering."""
