"""OpenAI's Fine-tuning API under `/v1/fine_tuning/jobs`, for the one method that this server has: steering vectors.

Everything that waits for a disk or a job does so off the event loop.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from server.api.generation.steering import specs_of_model
from server.api.http.auth import require
from server.api.http.bodies import read_model, refuse_unknown_query
from server.api.http.description import JSON, Parameter, Success, describe
from server.api.http.json_response import json_response
from server.api.http.pages import after_of, limit_of, page_of
from server.api.http.parameters import after, identifier, limit
from server.api.http.services import Services, services_of
from server.api.training.objects import Job, JobCheckpointList, JobEventList, JobList
from server.api.training.wire import CreateJobRequest, event_object, job_object
from server.errors import InsufficientStorage, InvalidRequest, NotFound, Unavailable, from_vectors_error
from server.jobs.files import FileStore
from server.jobs.records import TRAINING_PURPOSE, JobRequest
from server.keys import Role
from vectors.calibration.prompts import PROMPTS_FILE, prompts_jsonl
from vectors.errors import InvalidMethod, InvalidVectorName, VectorsError
from vectors.training.options import JOB_OPTIONS, RETENTION_FILE
from vectors.vocabulary import check_name

router = APIRouter(prefix="/v1/fine_tuning/jobs", dependencies=[Depends(require(Role.MANAGE))], tags=["Training"])

_DEFAULT_LIMIT = 20
_MOST_LISTED = 100
_MAX_BODY_BYTES = 256 << 10
_STEERING = "method.steering"
_METADATA_KEY = re.compile(r"metadata\[(.{0,64})\]", re.DOTALL)


_JOB_ID = identifier("ftjob")
_ONE_ERRORS = (InvalidRequest, NotFound, Unavailable)
_LIMIT = limit(_DEFAULT_LIMIT, _MOST_LISTED)
_AFTER_ANY = Parameter("after", "Has no effect, because the list is always empty.", {"type": "string"})
_METADATA = Parameter(
    "metadata",
    "List only jobs with these pairs: `metadata[key]=value`; or, with `metadata=null`, jobs without metadata.",
    {"type": "object", "propertyNames": {"maxLength": 64}, "additionalProperties": {"type": "string"}},
    style="deepObject",
)


@router.post("")
@describe(
    Success(Job, "The queued job."),
    bodies={JSON: CreateJobRequest},
    errors=(NotFound, Unavailable, InsufficientStorage),
)
async def create_job(request: Request) -> Response:
    """Create a training job."""
    services = services_of(request)
    jobs = services.training()
    services.check_accepting()
    refuse_unknown_query(request)
    body = await read_model(request, CreateJobRequest, _MAX_BODY_BYTES)
    asked = _request_of(body, services)

    def create() -> Response:
        try:
            with _with_prompts(asked, jobs.files) as complete:
                return json_response(job_object(jobs.create(complete)))
        except InvalidMethod as error:
            param = f"{_STEERING}.{error.param}" if error.param else _STEERING
            raise InvalidRequest(str(error), code="invalid_method", param=param) from None
        except VectorsError as error:
            found = from_vectors_error(error, _STEERING)
            if found.status == 500:
                raise
            raise found from None

    return await run_sync(create)


@router.get("")
@describe(
    Success(JobList, "A page of jobs, newest first."),
    errors=(Unavailable,),
    parameters=(_LIMIT, after("ftjob"), _METADATA),
)
async def list_jobs(request: Request) -> Response:
    """List the training jobs."""
    database = services_of(request).training().database
    metadata, without_metadata = _metadata_of(request)
    given = [name for name in request.query_params if name.startswith("metadata")]
    refuse_unknown_query(request, "limit", "after", *given)
    limit, after = limit_of(request, default=_DEFAULT_LIMIT, most=_MOST_LISTED), after_of(request, "ftjob")

    def page() -> Response:
        found = database.jobs(after=after, limit=limit + 1, metadata=metadata, without_metadata=without_metadata)
        return json_response(page_of([job_object(job) for job in found], limit))

    return await run_sync(page)


@router.get("/{identifier}")
@describe(Success(Job, "The job."), errors=_ONE_ERRORS, parameters=(_JOB_ID,))
async def get_job(request: Request, identifier: str) -> Response:
    """Get a training job."""
    jobs = services_of(request).training()
    refuse_unknown_query(request)
    return json_response(job_object(await run_sync(jobs.get, identifier)))


@router.post("/{identifier}/cancel")
@describe(Success(Job, "The job after the call."), errors=(*_ONE_ERRORS, InsufficientStorage), parameters=(_JOB_ID,))
async def cancel_job(request: Request, identifier: str) -> Response:
    """Cancel a training job.

    A waiting job ends at once, and a running one shortly after.
    """
    jobs = services_of(request).training()
    refuse_unknown_query(request)
    return json_response(job_object(await run_sync(jobs.cancel, identifier)))


@router.get("/{identifier}/events")
@describe(
    Success(JobEventList, "A page of events, newest first."),
    errors=_ONE_ERRORS,
    parameters=(_JOB_ID, _LIMIT, after("ftevent")),
)
async def list_events(request: Request, identifier: str) -> Response:
    """List the events of a training job."""
    jobs = services_of(request).training()
    refuse_unknown_query(request, "limit", "after")
    limit, after = limit_of(request, default=_DEFAULT_LIMIT, most=_MOST_LISTED), after_of(request, "ftevent")

    def page() -> Response:
        found = jobs.database.events(jobs.get(identifier).id, after=after, limit=limit + 1)
        return json_response(page_of([event_object(event) for event in found], limit))

    return await run_sync(page)


@router.get("/{identifier}/checkpoints")
@describe(Success(JobCheckpointList, "An empty page."), errors=_ONE_ERRORS, parameters=(_JOB_ID, _LIMIT, _AFTER_ANY))
async def list_checkpoints(request: Request, identifier: str) -> Response:
    """List the checkpoints of a training job.

    The list is always empty: steering vectors have no checkpoints.
    """
    jobs = services_of(request).training()
    refuse_unknown_query(request, "limit", "after")
    limit_of(request, default=_DEFAULT_LIMIT, most=_MOST_LISTED)  # only for its errors: the page is always empty
    await run_sync(jobs.get, identifier)
    page: JobCheckpointList = {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}
    return json_response(page)


def _unsupported(verb: str) -> Callable[[Request, str], Response]:
    @describe(errors=(InvalidRequest,), parameters=(_JOB_ID,))
    def refuse(request: Request, identifier: str) -> Response:
        """Not supported: jobs cannot be paused or resumed."""
        raise InvalidRequest(
            f"{verb}: not supported by this server; use cancel to end a job", code="unsupported_operation"
        )

    return refuse


for _verb in ("pause", "resume"):
    router.add_api_route(f"/{{identifier}}/{_verb}", _unsupported(_verb), methods=["POST"], name=f"{_verb}_job")


def _request_of(body: CreateJobRequest, services: Services) -> JobRequest:
    """The requested job. Raises `InvalidRequest` and `NotFound`."""
    base = services.engine.info.model_id
    if specs_of_model(body.model, base):
        raise InvalidRequest(
            f"model: expected the unsteered model {base}, got {body.model[:200]!r}", code="invalid_value", param="model"
        )
    if body.suffix is not None:
        try:
            check_name(body.suffix)
        except InvalidVectorName as error:
            raise from_vectors_error(error, "suffix") from None
    steering = dict(body.method.steering or {}) if body.method is not None else {}
    try:
        files = {
            option.name: option.read(given)
            for option in JOB_OPTIONS
            if (given := steering.pop(option.name, None)) is not None
        }
    except InvalidMethod as error:
        raise InvalidRequest(str(error), code="invalid_type", param=f"{_STEERING}.{error.param}") from None
    retention_file = files.pop(RETENTION_FILE.name, None)
    steering |= files
    is_calibration = steering.get("task") == "calibrate"
    if body.training_file is None and not is_calibration:
        raise InvalidRequest(
            "training_file: missing required parameter", code="missing_required_parameter", param="training_file"
        )
    return JobRequest(
        model=body.model,
        training_file=body.training_file or "",
        name=_calibrated_name(body, steering) if is_calibration else body.suffix,
        validation_file=body.validation_file,
        retention_file=retention_file,
        seed=body.seed,
        steering=steering,
        metadata=body.metadata,
    )


@contextlib.contextmanager
def _with_prompts(asked: JobRequest, files: FileStore) -> Iterator[JobRequest]:
    """`asked` with a file: the server's own prompts if it has none, which are deleted if the context fails."""
    if asked.training_file:
        yield asked
        return
    own = files.put_stream(PROMPTS_FILE, TRAINING_PURPOSE, io.BytesIO(prompts_jsonl()))
    try:
        yield dataclasses.replace(asked, training_file=own.id)
    except BaseException:
        files.delete(own.id)
        raise


def _calibrated_name(body: CreateJobRequest, steering: Mapping[str, Any]) -> str | None:
    """The name under which a calibrated vector is published: its own."""
    if body.suffix is not None:
        raise InvalidRequest(
            "suffix: a calibrated vector keeps its name; leave it out", code="invalid_value", param="suffix"
        )
    vector = steering.get("vector")
    return vector.partition("@")[0] if isinstance(vector, str) else None


def _metadata_of(request: Request) -> tuple[dict[str, str], bool]:
    """The pairs that listed jobs must have, and whether they must have no metadata."""
    pairs: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name == "metadata":
            if value != "null":
                raise InvalidRequest(
                    "metadata: expected null or metadata[key]=value", code="invalid_value", param="metadata"
                )
        elif name.startswith("metadata"):
            match = _METADATA_KEY.fullmatch(name)
            if match is None:
                raise InvalidRequest(
                    f"{name[:60]}: expected metadata[key]=value", code="invalid_value", param="metadata"
                )
            pairs[match[1]] = value
    without = "metadata" in request.query_params
    if without and pairs:
        raise InvalidRequest(
            "metadata: expected either null or metadata[key]=value, got both", code="invalid_value", param="metadata"
        )
    return pairs, without
