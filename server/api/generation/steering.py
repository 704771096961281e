"""Turns a request's `model` and `steering` into its SteeringPlan, and maps errors back to the request's fields."""

from __future__ import annotations

import math
import re

from anyio.to_thread import run_sync

from server.api.generation.objects import AppliedSteering, DoseFields
from server.api.generation.wire import MAX_STEERING_ENTRIES, SHARE_PATTERN, SteeredFields, SteeringEntry
from server.api.http.services import Services
from server.errors import ApiError, InvalidRequest, NotFound, from_vectors_error
from server.steering.dose import Dose, SafeShare
from server.steering.plan import UNSTEERED, SteeringPlan
from server.steering.resolution import SteeringRefused, SteeringSpec, resolve_plan
from vectors.errors import InvalidLayers
from vectors.vocabulary import parse_layers

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
    name, at, revision = entry.vector.partition("@")
    return SteeringSpec(
        vector=name,
        revision=revision if at else None,
        scale=_scale_of(entry.scale) if isinstance(entry.scale, str) else entry.scale,
        layers=_layers_of(entry, f"steering.{index}.layers"),
        positions=entry.positions,
        parts=None if entry.parts is None else tuple(entry.parts),
        operation=entry.operation,
        preserve_norm=entry.preserve_norm,
    )


def _layers_of(entry: SteeringEntry, param: str) -> tuple[int, ...] | None:
    if entry.layers is None:
        return None
    try:
        return parse_layers(entry.layers)
    except InvalidLayers as error:
        raise from_vectors_error(error, param) from None


def _wire_error(error: SteeringRefused, num_by_model: int) -> ApiError:
    """The API error for a refused spec; the first `num_by_model` specs came from the model's name."""
    if error.index < num_by_model:
        param = "model"
    else:
        field = "vector" if error.field == "revision" else error.field  # both are in the field name@revision
        param = ".".join(("steering", str(error.index - num_by_model), *([field] if field else ())))
    if error.code is None:
        return from_vectors_error(error.reason, param)
    return InvalidRequest(str(error), code=error.code, param=param)


async def plan_of(request: SteeredFields, services: Services) -> SteeringPlan:
    """The plan of a request, pinned to the registry's current state: entries of the model name, then of the field."""
    by_model = specs_of_model(request.model, services.engine.info.model_id)
    specs = by_model + [spec_of_entry(entry, index) for index, entry in enumerate(request.steering or ())]
    if not specs:
        return UNSTEERED
    if len(specs) > MAX_STEERING_ENTRIES:
        raise InvalidRequest(
            f"expected at most {MAX_STEERING_ENTRIES} vectors, got {len(specs)}",
            code="invalid_steering",
            param="steering" if request.steering else "model",
        )
    try:
        plan = await run_sync(
            resolve_plan, specs, services.store, services.engine.info, services.dose
        )  # may read a file
    except SteeringRefused as error:
        raise _wire_error(error, len(by_model)) from error
    for name in {entry.vector for entry in plan.entries}:
        services.metrics.count_vector(name)
    return plan


def applied_steering(plan: SteeringPlan) -> list[AppliedSteering]:
    """The plan as answers show it; `[]` if the request has no steering."""
    return [
        {
            "vector": entry.vector,
            "revision": entry.revision,
            "site": entry.applied.site,
            "scale": entry.applied.scale,
            "layers": list(entry.applied.layers),
            "positions": entry.applied.positions,
            "parts": list(entry.parts),
            "operation": entry.applied.operation,
            "preserve_norm": entry.applied.preserve_norm,
            **_told_of_dose(entry.dose),
        }
        for entry in plan.entries
    ]


def _told_of_dose(dose: Dose) -> DoseFields:
    """What is known of a dose, as answers show it."""
    told: DoseFields = {}
    if dose.relative is not None:
        told["relative_dose"] = dose.relative
    if dose.warning is not None:
        told["warning"] = dose.warning
    if dose.capped_from is not None:
        told["capped_from"] = dose.capped_from
    return told
