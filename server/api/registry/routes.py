"""The vector registry under `/v1/steering/vectors`: upload, create, list, get, change, roll back, delete.

Files are read, decoded and stored off the event loop, and large answers are built there. The `vectors` package defines
what a vector is and how it is stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from server.api.http.auth import require
from server.api.http.bodies import MAX_JSON_BYTES, read_model, refuse_unknown_query
from server.api.http.description import BYTES, FORM, JSON, Parameter, Success, describe
from server.api.http.json_response import json_response
from server.api.http.pages import limit_of, order_of
from server.api.http.parameters import DISPOSITION, limit, order
from server.api.http.preconditions import if_match_of, if_none_match_of, refuse_preconditions
from server.api.http.services import Services, services_of
from server.api.http.uploads import VectorForm, directions_of, layers_of, read_upload
from server.api.registry.objects import DamagedVector, DeletedVector, Vector, VectorList, VectorRevision
from server.api.registry.parameters import ETAG, IF_MATCH, IF_NONE_MATCH, NAME
from server.api.registry.wire import CreateVectorRequest, PatchVectorRequest, RollbackRequest
from server.errors import Conflict, InsufficientStorage, InvalidRequest, NotFound, PreconditionFailed, Unavailable
from server.keys import Role
from vectors.defaults import DEFAULTS, Default
from vectors.errors import StoreCorrupt, VectorNotFound
from vectors.formats import ImportOptions, decode, encode
from vectors.positions import positions_json
from vectors.store import StoredVector
from vectors.vector import SteeringVector
from vectors.vocabulary import DEFAULT_FILE_FORMAT, FILE_FORMATS, REVISION_PATTERN, check_name

router = APIRouter(prefix="/v1/steering/vectors", tags=["Steering vectors"])

_MAY_READ = [Depends(require(Role.USE))]
_MAY_CHANGE = [Depends(require(Role.MANAGE))]
_DEFAULT_LIMIT = 20
_MOST_LISTED = 100
_NOT_STORED = (Unavailable, InsufficientStorage)


@router.put("/{name}", dependencies=_MAY_CHANGE)
@describe(
    Success(Vector, "The vector, with a new revision, or unchanged if the content is the same.", headers=(ETAG,)),
    Success(Vector, "The vector, under a new name.", status=201, headers=(ETAG,)),
    bodies={BYTES: bytes, FORM: VectorForm},
    errors=(PreconditionFailed, *_NOT_STORED),
    parameters=(NAME, IF_MATCH, IF_NONE_MATCH),
)
async def put_vector(request: Request, name: str) -> Response:
    """Upload a file as the current revision of a vector."""
    services = services_of(request)
    refuse_unknown_query(request)
    check_name(name)
    if_match, if_none_match = if_match_of(request), if_none_match_of(request)
    data, options = await read_upload(request, services.max_upload_bytes)

    def store() -> Response:
        info = services.engine.info
        vector = decode(data, options=options, num_layers=info.num_layers, hidden_size=info.hidden_size)
        _check_fit(vector, services)
        stored, is_new = services.store.put(name, vector, if_match=if_match, if_none_match=if_none_match)
        return _answer(stored, status=201 if is_new else 200)

    return await run_sync(store)


@router.post("", dependencies=_MAY_CHANGE)
@describe(
    Success(Vector, "The new vector.", status=201, headers=(ETAG,)),
    bodies={JSON: CreateVectorRequest},
    errors=(Conflict, *_NOT_STORED),
)
async def create_vector(request: Request) -> Response:
    """Create a vector from numbers in JSON."""
    services = services_of(request)
    refuse_unknown_query(request)
    refuse_preconditions(request, "If-Match", "If-None-Match")
    body = await read_model(request, CreateVectorRequest, services.max_upload_bytes)

    def store() -> Response:
        check_name(body.name)
        given = body.model_dump(exclude={"name", "directions", "reads", "biases"}, exclude_none=True)
        ImportOptions(overrides=given)
        info = services.engine.info
        sizes = {"num_layers": info.num_layers, "hidden_size": info.hidden_size}
        directions = directions_of(body.directions, "directions", **sizes)
        reads = directions_of(body.reads, "reads", **sizes)
        biases = {layer: torch.tensor([bias]) for layer, bias in layers_of(body.biases, "biases", info.num_layers)}
        vector = SteeringVector(directions, reads, biases, **given)
        _check_fit(vector, services)
        return _answer(services.store.create(body.name, vector), status=201)

    return await run_sync(store)


@router.get("", dependencies=_MAY_READ)
@describe(
    Success(VectorList, "A page of vectors, sorted by name."),
    errors=(Unavailable,),
    parameters=(
        limit(_DEFAULT_LIMIT, _MOST_LISTED),
        Parameter("after", "The name after which the page begins.", {"type": "string"}),
        order("asc"),
    ),
)
async def list_vectors(request: Request) -> Response:
    """List the vectors by name."""
    services = services_of(request)
    refuse_unknown_query(request, "limit", "after", "order")
    limit = limit_of(request, default=_DEFAULT_LIMIT, most=_MOST_LISTED)
    order = order_of(request, "asc")
    after = request.query_params.get("after")

    def page() -> Response:
        names = services.store.names(after=after, limit=limit + 1, order=order)
        shown = names[:limit]
        found = (_listed(services, name) for name in shown)
        listing: VectorList = {
            "object": "list",
            "data": [entry for entry in found if entry is not None],
            "first_id": shown[0] if shown else None,
            "last_id": shown[-1] if shown else None,
            "has_more": len(names) > limit,
        }
        return json_response(listing)

    return await run_sync(page)


@router.get("/{name}", dependencies=_MAY_READ)
@describe(
    Success(Vector, "The vector, with its history.", headers=(ETAG,)),
    errors=(InvalidRequest, NotFound, Unavailable),
    parameters=(NAME,),
)
async def get_vector(request: Request, name: str) -> Response:
    """Get a vector: its current revision and its history."""
    services = services_of(request)
    refuse_unknown_query(request)

    def read() -> Response:
        stored = services.store.get(name)
        history: list[VectorRevision] = [
            {"revision": record.revision, "created_at": record.created_at, "bytes": record.num_bytes}
            for record in stored.history
        ]
        return _answer(stored, history=history)

    return await run_sync(read)


@router.get("/{name}/content", dependencies=_MAY_READ)
@describe(
    Success(None, "The vector as a file.", media_type=BYTES, headers=(ETAG, DISPOSITION)),
    errors=(InvalidRequest, NotFound, Unavailable),
    parameters=(
        NAME,
        Parameter(
            "format",
            "The format of the file.",
            {"type": "string", "enum": list(FILE_FORMATS), "default": DEFAULT_FILE_FORMAT},
        ),
        Parameter(
            "revision", "A revision, or its first digits.", {"type": "string", "pattern": f"^{REVISION_PATTERN}$"}
        ),
    ),
)
async def get_content(request: Request, name: str) -> Response:
    """Download a revision of a vector as a file.

    Without `revision` it is the current one.
    """
    services = services_of(request)
    refuse_unknown_query(request, "format", "revision")
    asked = request.query_params.get("format", DEFAULT_FILE_FORMAT)
    file_format = next((known for known in FILE_FORMATS if known == asked), None)
    if file_format is None:
        raise InvalidRequest(
            f"format: expected one of {', '.join(FILE_FORMATS)}, got {asked[:40]!r}",
            code="invalid_value",
            param="format",
        )

    def read() -> tuple[str, bytes]:
        stored = services.store.get(name, request.query_params.get("revision"))
        if file_format == DEFAULT_FILE_FORMAT:  # the stored file as it is
            return stored.revision, services.store.content(name, stored.revision)
        return stored.revision, encode(stored.vector, file_format)

    revision, content = await run_sync(read)
    return Response(
        content,
        media_type="application/octet-stream",
        headers={"ETag": f'"{revision}"', "Content-Disposition": f'attachment; filename="{name}.{file_format}"'},
    )


@router.patch("/{name}", dependencies=_MAY_CHANGE)
@describe(
    Success(Vector, "The vector, with its new revision.", headers=(ETAG,)),
    bodies={JSON: PatchVectorRequest},
    errors=(NotFound, PreconditionFailed, *_NOT_STORED),
    parameters=(NAME, IF_MATCH),
)
async def patch_vector(request: Request, name: str) -> Response:
    """Change the defaults and the description of a vector.

    Null puts a field back to what it is without a value. The directions stay the same.
    """
    services = services_of(request)
    refuse_unknown_query(request)
    refuse_preconditions(request, "If-None-Match")
    if_match = if_match_of(request)
    body = await read_model(request, PatchVectorRequest, MAX_JSON_BYTES)
    given = body.model_dump(exclude_unset=True)
    changes = {row.name: _or_default(given[row.name], row) for row in DEFAULTS if row.name in given}
    if not changes:
        fields = ", ".join(PatchVectorRequest.model_fields)
        raise InvalidRequest(f"expected at least one of {fields}", code="missing_required_parameter")

    return await run_sync(lambda: _answer(services.store.change(name, changes, if_match=if_match)))


@router.post("/{name}/rollback", dependencies=_MAY_CHANGE)
@describe(
    Success(Vector, "The vector, at its new current revision.", headers=(ETAG,)),
    bodies={JSON: RollbackRequest},
    errors=(NotFound, PreconditionFailed, *_NOT_STORED),
    parameters=(NAME, IF_MATCH),
)
async def roll_back(request: Request, name: str) -> Response:
    """Roll a vector back to an earlier revision of its history."""
    services = services_of(request)
    refuse_unknown_query(request)
    refuse_preconditions(request, "If-None-Match")
    if_match = if_match_of(request)
    body = await read_model(request, RollbackRequest, MAX_JSON_BYTES)
    return await run_sync(lambda: _answer(services.store.rollback(name, body.revision, if_match=if_match)))


@router.delete("/{name}", dependencies=_MAY_CHANGE)
@describe(
    Success(DeletedVector, "The vector is deleted."),
    errors=(InvalidRequest, NotFound, PreconditionFailed, *_NOT_STORED),
    parameters=(NAME, IF_MATCH),
)
async def delete_vector(request: Request, name: str) -> Response:
    """Delete a vector.

    Requests that are already accepted finish with their revision.
    """
    services = services_of(request)
    refuse_unknown_query(request)
    refuse_preconditions(request, "If-None-Match")
    if_match = if_match_of(request)
    await run_sync(lambda: services.store.remove(name, if_match=if_match))
    return json_response(DeletedVector(id=name, object="steering.vector.deleted", deleted=True))


def _or_default(value: Any, row: Default) -> Any:
    return row.default if value is None else value


def _check_fit(vector: SteeringVector, services: Services) -> None:
    info = services.engine.info
    vector.fit(info.num_layers, info.hidden_size, info.sites)


def _listed(services: Services, name: str) -> Vector | DamagedVector | None:
    """The entry of a list; None when the name was deleted meanwhile."""
    try:
        return _object_of(services.store.get(name))
    except VectorNotFound:
        return None
    except StoreCorrupt as error:
        record = services.store.current_records().get(name)
        return {
            "object": "steering.vector.damaged",
            "id": name,
            "name": name,
            "revision": None if record is None else record.revision,
            "created_at": None if record is None else record.created_at,
            "error": str(error),
        }


def _object_of(stored: StoredVector) -> Vector:
    vector = stored.vector
    return {
        "object": "steering.vector",
        "id": stored.name,
        "name": stored.name,
        "revision": stored.revision,
        "created_at": stored.record.created_at,
        "bytes": stored.record.num_bytes,
        "hidden_size": vector.hidden_size,
        "layers": list(vector.layers),
        "norms": {str(layer): norm for layer, norm in vector.norms.items()},
        "rank": vector.rank,
        "has_read_directions": bool(vector.reads),
        "site": vector.site,
        "default_scale": vector.default_scale,
        "max_scale": vector.max_scale,
        "operation": vector.operation,
        "positions": positions_json(vector.positions),
        "parts": list(vector.parts),
        "default_layers": vector.default_layers,
        "activation": vector.activation,
        "min": vector.min,
        "max": vector.max,
        "threshold": vector.threshold,
        "description": vector.description,
        "metadata": dict(vector.metadata),
        "training": None if vector.training is None else _shown(vector.training),
        "calibration": None if vector.calibration is None else dict(vector.calibration),
        "model": vector.model,
    }


def _answer(stored: StoredVector, *, status: int = 200, history: list[VectorRevision] | None = None) -> Response:
    answer = _object_of(stored)
    if history is not None:
        answer["history"] = history
    return json_response(answer, status=status, headers={"ETag": f'"{stored.revision}"'})


def _shown(training: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a training without the keys of its items, which are for programs and long."""
    data = training.get("data")
    if not isinstance(data, Mapping):
        return dict(training)
    return {**training, "data": {name: value for name, value in data.items() if name != "seen"}}
