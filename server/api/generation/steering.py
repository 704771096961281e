"""From a request's `model` and `steering` to its SteeringPlan: splits model names, resolves against the registry.

It knows the wire's spelling, of what is asked and of what is refused; what a plan means is `server.steering`'s.
"""

from __future__ import annotations

import math
import re

from anyio.to_thread import run_sync

from server.api.generation.objects import AppliedSteering
from server.api.generation.wire import MAX_STEERING_ENTRIES, SteeredFields, SteeringEntry
from server.api.http.services import Services
from server.errors import ApiError, InvalidRequest, NotFound, from_vectors_error
from server.steering.plan import UNSTEERED, SteeringPlan
from server.steering.resolution import SteeringRefused, SteeringSpec, resolve_plan
from vectors.errors import InvalidLayers
from vectors.vocabulary import parse_layers

_MODEL_ENTRY = re.compile(r"(?P<vector>[^@:]+)(?:@(?P<revision>[^@:]+))?(?::(?P<scale>[^@:]+))?")
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")


def specs_of_model(model: str | None, model_id: str) -> list[SteeringSpec]:
    """The steering that a model name asks for: `base+name[@revision][:scale]+…`; the base's own name asks for none.

    Raises `NotFound` when the base is not the model that is served, `InvalidRequest` for what follows it.
    """
    if model is None or model == model_id:
        return []
    if not model.startswith(model_id + "+"):
        raise NotFound(
            f"the model {model[:200]!r} does not exist; this server has {model_id!r} (GET /v1/models)",
            code="model_not_found",
            param="model",
        )
    return [_spec_of_model_entry(entry) for entry in model.removeprefix(model_id + "+").split("+")]


def _spec_of_model_entry(entry: str) -> SteeringSpec:
    match = _MODEL_ENTRY.fullmatch(entry)
    scale_text = match["scale"] if match is not None else None
    scale = float(scale_text) if scale_text is not None and _NUMBER.fullmatch(scale_text) else None
    if match is None or (scale_text is not None and (scale is None or not math.isfinite(scale))):
        raise InvalidRequest(
            f"model: {entry[:100]!r} is not name, name@revision or name:scale", code="invalid_steering", param="model"
        )
    return SteeringSpec(vector=match["vector"], revision=match["revision"], scale=scale)


def spec_of_entry(entry: SteeringEntry, index: int) -> SteeringSpec:
    """What one entry of the `steering` field asks for."""
    name, at, revision = entry.vector.partition("@")
    return SteeringSpec(
        vector=name,
        revision=revision if at else None,
        scale=entry.scale,
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
    """What a client sees of a refused spec, of which the first `num_by_model` came with the model's name."""
    if error.index < num_by_model:
        param = "model"
    else:
        field = "vector" if error.field == "revision" else error.field  # the wire says both as name@revision
        param = ".".join(("steering", str(error.index - num_by_model), *([field] if field else ())))
    if error.code is None:
        return from_vectors_error(error.reason, param)
    return InvalidRequest(str(error), code=error.code, param=param)


async def plan_of(request: SteeredFields, services: Services) -> SteeringPlan:
    """The plan of a request, pinned to the registry as it is now: the model name's entries, then the field's."""
    by_model = specs_of_model(request.model, services.engine.info.model_id)
    specs = by_model + [spec_of_entry(entry, index) for index, entry in enumerate(request.steering or ())]
    if not specs:
        return UNSTEERED
    if len(specs) > MAX_STEERING_ENTRIES:
        raise InvalidRequest(
            f"at most {MAX_STEERING_ENTRIES} vectors may steer a request, this one names {len(specs)}",
            code="invalid_steering",
            param="steering" if request.steering else "model",
        )
    try:
        plan = await run_sync(resolve_plan, specs, services.store, services.engine.info)  # may read a file
    except SteeringRefused as error:
        raise _wire_error(error, len(by_model)) from error
    for name in {entry.vector for entry in plan.entries}:
        services.metrics.count_vector(name)
    return plan


def applied_steering(plan: SteeringPlan) -> list[AppliedSteering]:
    """The plan as every answer shows it; `[]` when nothing was asked."""
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
        }
        for entry in plan.entries
    ]
