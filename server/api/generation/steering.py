"""Turns a request's `model` and `steering` into its SteeringPlan, and maps errors back to the request's fields."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from anyio.to_thread import run_sync

from server.api.generation.objects import AppliedGate, AppliedSteering
from server.api.generation.wire import (
    MAX_STEERING_ENTRIES,
    SHARE_PATTERN,
    GateEntry,
    GenerationFields,
    ProbeEntry,
    SteeredFields,
    SteeringEntry,
)
from server.api.http.limiting import Caller
from server.api.http.services import Services
from server.errors import ApiError, Forbidden, InvalidRequest, NotFound, from_vectors_error
from server.steering.dose import Dose, SafeShare
from server.steering.plan import UNSTEERED, PlanEntry, PlanGate, SteeringPlan
from server.steering.resolution import GateSpec, ProbeSpec, SteeringRefused, SteeringSpec, resolve_plan
from vectors.errors import InvalidLayers
from vectors.operations import RULES
from vectors.positions import positions_json
from vectors.vocabulary import DEFAULT_POSITIONS, parse_layers

_MODEL_ENTRY = re.compile(r"(?P<vector>[^@:]+)(?:@(?P<revision>[^@:]+))?(?::(?P<scale>[^@:]+))?")
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")


def specs_of_model(model: str | None, model_id: str) -> list[SteeringSpec]:
    """The steering in a model name, `base+name[@revision][:scale]+…`; none for the base's own name.

    Raises `NotFound` when the base is not the served model, and `InvalidRequest` when the rest is malformed.
    """
    if model is None or model == model_id:
        return []
    if not model.startswith(model_id + "+"):
        raise NotFound(
            f"the model {model[:200]!r} does not exist; this server serves {model_id!r} (see GET /v1/models)",
            code="model_not_found",
            param="model",
        )
    return [_spec_of_model_entry(entry) for entry in model.removeprefix(model_id + "+").split("+")]


def _spec_of_model_entry(entry: str) -> SteeringSpec:
    match = _MODEL_ENTRY.fullmatch(entry)
    scale_text = match["scale"] if match is not None else None
    scale = None if scale_text is None else _scale_of(scale_text)
    if match is None or (scale_text is not None and scale is None):
        raise InvalidRequest(
            f"model: expected name[@revision][:scale] after the model's id, got {entry[:100]!r}",
            code="invalid_steering",
            param="model",
        )
    return SteeringSpec(vector=match["vector"], revision=match["revision"], scale=scale)


def _scale_of(text: str) -> float | SafeShare | None:
    """A finite number, or a share such as `50%`; None for anything else."""
    if re.fullmatch(SHARE_PATTERN, text):
        return SafeShare(float(text.removesuffix("%")) / 100)
    scale = float(text) if _NUMBER.fullmatch(text) else math.nan
    return scale if math.isfinite(scale) else None


def spec_of_entry(entry: SteeringEntry, index: int) -> SteeringSpec:
    """The spec of one entry of the `steering` field."""
    name, at, revision = (entry.vector or "").partition("@")
    return SteeringSpec(
        vector=name,
        revision=revision if at else None,
        scale=_scale_of(entry.scale) if isinstance(entry.scale, str) else entry.scale,
        layers=_layers_of(entry, f"steering.{index}.layers"),
        positions=entry.positions,
        parts=None if entry.parts is None else tuple(entry.parts),
        operation=entry.operation,
        preserve_norm=entry.preserve_norm,
        min=entry.min,
        max=entry.max,
        gate=None if entry.when is None else _gate_of(entry.when),
        directions=entry.directions,
    )


def _gate_of(entry: GateEntry) -> GateSpec:
    name, at, revision = entry.probe.partition("@")
    is_above = entry.above is not None
    threshold = entry.above if entry.above is not None else entry.below
    assert threshold is not None, "checked by GateEntry"
    return GateSpec(name, threshold, revision if at else None, entry.layer, is_above, entry.sharpness, entry.latch)


def probe_of_entry(entry: ProbeEntry, index: int) -> ProbeSpec:
    """The spec of one entry of the `probes` field."""
    name, at, revision = (entry.vector or "").partition("@")
    return ProbeSpec(
        vector=name,
        revision=revision if at else None,
        layers=_layers_of(entry, f"probes.{index}.layers"),
        positions=DEFAULT_POSITIONS if entry.positions is None else entry.positions,
        before=entry.before,
        threshold=entry.threshold,
        name=entry.name,
        directions=entry.directions,
    )


def _layers_of(entry: SteeringEntry | ProbeEntry, param: str) -> tuple[int, ...] | None:
    if entry.layers is None:
        return None
    try:
        return parse_layers(entry.layers)
    except InvalidLayers as error:
        raise from_vectors_error(error, param) from None


def _wire_error(error: SteeringRefused, num_by_model: int) -> ApiError:
    """The API error for a refused spec; the first `num_by_model` specs came from the model's name."""
    if error.index < num_by_model and not error.is_probe:
        param = "model"
    else:
        field = "vector" if error.field == "revision" else error.field  # both are in the field name@revision
        place = ("probes", error.index) if error.is_probe else ("steering", error.index - num_by_model)
        param = ".".join(map(str, (*place, *([field] if field else ()))))
    if error.code is None:
        return from_vectors_error(error.reason, param)
    return InvalidRequest(str(error), code=error.code, param=param)


async def plan_of(request: SteeredFields, services: Services, caller: Caller) -> SteeringPlan:
    """The plan of a request, pinned to the registry's current state: entries of the model name, then of the field.

    Requests that generate may have probes too.
    """
    asked = steering_of(request, services, caller)
    plan = UNSTEERED if asked.is_empty else await run_sync(resolved, asked, services)
    count_vectors(plan, services)
    return plan


@dataclass(frozen=True)
class AskedSteering:
    """What a request asks for by name: the entries of the model name, then those of the field, and the probes."""

    specs: Sequence[SteeringSpec]
    num_by_model: int
    probes: Sequence[ProbeSpec]

    @property
    def is_empty(self) -> bool:
        """True if nothing steers and nothing is read."""
        return not self.specs and not self.probes


def steering_of(request: SteeredFields, services: Services, caller: Caller) -> AskedSteering:
    """What a request asks for. Raises `ApiError` for what is malformed or not for this caller."""
    by_model = specs_of_model(request.model, services.engine.info.model_id)
    specs = by_model + [spec_of_entry(entry, index) for index, entry in enumerate(request.steering or ())]
    asked = request.probes or () if isinstance(request, GenerationFields) else ()
    probes = [probe_of_entry(entry, index) for index, entry in enumerate(asked)]
    _check_may_bring_directions(request.steering or (), asked, caller)
    if len(specs) > MAX_STEERING_ENTRIES:
        raise InvalidRequest(
            f"expected at most {MAX_STEERING_ENTRIES} vectors, got {len(specs)}",
            code="invalid_steering",
            param="steering" if request.steering else "model",
        )
    return AskedSteering(specs, len(by_model), probes)


def resolved(asked: AskedSteering, services: Services) -> SteeringPlan:
    """The plan of what is asked for. It may read a file. Raises `ApiError` for what is not there or does not fit."""
    if asked.is_empty:
        return UNSTEERED
    try:
        return resolve_plan(
            asked.specs, services.store, services.engine.info, services.dose, asked.probes, services.inline
        )
    except SteeringRefused as error:
        raise _wire_error(error, asked.num_by_model) from error


def count_vectors(plan: SteeringPlan, services: Services) -> None:
    """Count a request that was accepted with this plan, on the event loop."""
    for name in {entry.vector for entry in plan.entries}:
        services.metrics.count_vector(name)


def _check_may_bring_directions(
    steering: Sequence[SteeringEntry], probes: Sequence[ProbeEntry], caller: Caller
) -> None:
    """Raise `Forbidden` if an entry brings directions and the caller may not."""
    every: list[tuple[str, Sequence[SteeringEntry | ProbeEntry]]] = [("steering", steering), ("probes", probes)]
    for field, entries in every:
        for index, entry in enumerate(entries):
            if entry.directions is not None and not caller.may_bring_directions:
                raise Forbidden(
                    "this API key may only name vectors of the registry; a manage key may bring directions of its own, "
                    "and so may this one if the server is started with --inline-directions",
                    code="directions_not_allowed",
                    param=f"{field}.{index}.directions",
                )


def applied_steering(plan: SteeringPlan) -> list[AppliedSteering]:
    """The plan as answers show it; `[]` if the request has no steering."""
    return [_applied(entry) for entry in plan.entries]


def _applied(entry: PlanEntry) -> AppliedSteering:
    applied = entry.applied
    shown: AppliedSteering = {
        "vector": entry.vector or None,
        "revision": entry.revision,
        "site": applied.site,
        "scale": applied.scale,
        "layers": list(applied.layers),
        "positions": positions_json(applied.positions),
        "parts": list(entry.parts),
        "operation": applied.operation,
        "preserve_norm": applied.preserve_norm,
    }
    _tell_dose(shown, entry.dose)
    if RULES[applied.operation].takes_interval:
        shown["min"], shown["max"] = applied.min, applied.max
    if entry.gate is not None:
        shown["when"] = _applied_gate(entry.gate)
    return shown


def _applied_gate(gate: PlanGate) -> AppliedGate:
    site, layer = gate.place
    shown: AppliedGate = {
        "probe": gate.vector,
        "revision": gate.revision,
        "site": site,
        "layer": layer,
        "sharpness": gate.sharpness,
        "latch": gate.latch,
    }
    if gate.is_above:
        shown["above"] = gate.threshold
    else:
        shown["below"] = gate.threshold
    return shown


def _tell_dose(shown: AppliedSteering, dose: Dose) -> None:
    """Add what is known of a dose."""
    if dose.relative is not None:
        shown["relative_dose"] = dose.relative
    if dose.warning is not None:
        shown["warning"] = dose.warning
    if dose.capped_from is not None:
        shown["capped_from"] = dose.capped_from
