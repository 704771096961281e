"""`GET /v1/models`: the base model, and one `<base>+<name>` for each vector.

No vector is read for the list, so a vector that does not fit the model is refused only when a request names it.
"""

from __future__ import annotations

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from server.api.about.objects import Model, ModelList
from server.api.http.auth import require
from server.api.http.description import Parameter, Success, describe
from server.api.http.json_response import json_response
from server.api.http.services import Services, services_of
from server.errors import NotFound
from server.keys import Role

router = APIRouter(dependencies=[Depends(require(Role.USE))], tags=["Tokens and models"])


_MODEL = Parameter("model", "The model's id.", {"type": "string", "minLength": 1}, "path")


@router.get("/v1/models")
@describe(Success(ModelList, "The list of models."))
async def list_models(request: Request) -> Response:
    """List the ids that requests may use as `model`.

    A revision and a scale can be added to an id with a vector: `<base>+<name>@<revision>:<scale>`.
    """
    models = await run_sync(_models_by_id, services_of(request))
    return json_response(ModelList(object="list", data=list(models.values())))


@router.get("/v1/models/{model:path}")
@describe(Success(Model, "The model."), errors=(NotFound,), parameters=(_MODEL,))
async def get_model(request: Request, model: str) -> Response:
    """Get one of the listed models."""
    found = (await run_sync(_models_by_id, services_of(request))).get(model)
    if found is None:
        raise NotFound(f"the model {model[:200]!r} does not exist", code="model_not_found", param="model")
    return json_response(found)


def _models_by_id(services: Services) -> dict[str, Model]:
    """The base model, then one for each vector, by name."""
    info = services.engine.info
    base: Model = {
        "id": info.model_id,
        "object": "model",
        "created": services.started_at,
        "owned_by": "tiller",
        "max_model_len": info.max_model_len,
    }
    models = [base]
    records = services.store.current_records()
    for name in services.store.names():  # damaged ones too: a request that names one is told so
        created = records[name].created_at if name in records else services.started_at
        models.append({**base, "id": f"{info.model_id}+{name}", "created": created, "parent": info.model_id})
    return {model["id"]: model for model in models}
