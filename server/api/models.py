"""`GET /v1/models`: the base model, and one `<base>+<name>` for each vector that fits it."""

from __future__ import annotations

from typing import Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Request

from server.api.auth import require
from server.api.services import Services, services_of
from server.errors import NotFound
from server.keys import Role
from vectors.errors import InvalidVector, InvalidVectorName, VectorNotFound
from vectors.store import StoredVector

router = APIRouter(dependencies=[Depends(require(Role.USE))])


@router.get("/v1/models")
async def list_models(request: Request) -> dict[str, Any]:
    """Every id that a request may give as `model` as it stands; scales and revisions can be added to it."""
    services = services_of(request)
    return {"object": "list", "data": await run_sync(_models, services)}


@router.get("/v1/models/{model:path}")
async def get_model(request: Request, model: str) -> dict[str, Any]:
    """One of the listed models."""
    services = services_of(request)
    model_id = services.engine.info.model_id
    if model == model_id:
        return _base(services)
    if model.startswith(model_id + "+"):
        stored = await run_sync(_fitting, services, model.removeprefix(model_id + "+"))
        if stored is not None:
            return _steered(services, stored)
    raise NotFound(f"the model {model[:200]!r} does not exist", code="model_not_found", param="model")


def _models(services: Services) -> list[dict[str, Any]]:
    vectors = (_fitting(services, name) for name in services.store.names())
    return [_base(services), *(_steered(services, stored) for stored in vectors if stored is not None)]


def _fitting(services: Services, name: str) -> StoredVector | None:
    """The vector `name`, unless there is none or it was made for another model."""
    info = services.engine.info
    try:
        stored = services.store.get(name)
        stored.vector.fit(info.num_layers, info.hidden_size, info.sites)
    except (InvalidVector, InvalidVectorName, VectorNotFound):
        return None
    return stored


def _base(services: Services) -> dict[str, Any]:
    info = services.engine.info
    return {
        "id": info.model_id,
        "object": "model",
        "created": services.started_at,
        "owned_by": "tiller",
        "max_model_len": info.max_model_len,
    }


def _steered(services: Services, stored: StoredVector) -> dict[str, Any]:
    base = _base(services)
    name = f"{base['id']}+{stored.name}"
    return base | {"id": name, "created": stored.record.created_at, "parent": base["id"]}
