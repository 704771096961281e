"""Wire models and objects of the Files and Fine-tuning APIs."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, cast

from pydantic import Field, StringConstraints, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from server.api.generation.wire import MAX_MODEL_NAME_LENGTH, VECTOR_NAME_SCHEMA
from server.api.http.wire import WireModel
from server.api.training.objects import File, Job, JobEvent, Status
from server.jobs.records import EventRecord, FileRecord, JobRecord, JobStatus
from vectors.training.options import options_schema
from vectors.vocabulary import MAX_SEED

MAX_METADATA_PAIRS = 16

MetadataKey = Annotated[str, StringConstraints(max_length=64)]
MetadataValue = Annotated[str, StringConstraints(max_length=512)]
FileId = Annotated[str, StringConstraints(max_length=80)]

_METHOD = "steering"


class HyperparametersFields(WireModel):
    """`hyperparameters`: those of OpenAI's methods, which steering vectors do not have."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {
        "batch_size": ("auto",),
        "learning_rate_multiplier": ("auto",),
        "n_epochs": ("auto",),
    }


class MethodFields(WireModel):
    """`method`: the training method. This server only trains steering vectors."""

    type: Annotated[str, WithJsonSchema({"const": _METHOD})]
    steering: Annotated[dict[str, Any] | None, WithJsonSchema(options_schema())] = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_others(cls, data: Any) -> Any:
        kind = data.get("type") if isinstance(data, dict) else None
        if isinstance(kind, str) and kind != _METHOD:
            raise PydanticCustomError(
                "unsupported_parameter",
                'expected {{"type": "steering", "steering": {{…}}}}, the only method of this server, got {kind}',
                {"at": "type", "kind": repr(kind)[:40]},
            )
        return data


class CreateJobRequest(WireModel):
    """Body of `POST /v1/fine_tuning/jobs`."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {"integrations": ([],)}

    model: Annotated[str, Field(max_length=MAX_MODEL_NAME_LENGTH)]
    """The id of the served model."""
    training_file: FileId | None = None
    """The id of an uploaded file. Only a calibration may leave it out, and then uses prompts of the server's own."""
    validation_file: FileId | None = None
    """The id of a file to select the best vector with. Default: a part of the training file."""
    suffix: Annotated[str | None, WithJsonSchema({"anyOf": [VECTOR_NAME_SCHEMA, {"type": "null"}]})] = None
    """The name of the vector. Default: a name chosen by the server."""
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    """The same seed gives the same vector. Default: a seed chosen by the server."""
    method: MethodFields | None = None
    """The training method."""
    metadata: Annotated[dict[MetadataKey, MetadataValue], Field(max_length=MAX_METADATA_PAIRS)] | None = None
    """Key-value pairs by which jobs can be listed."""
    hyperparameters: HyperparametersFields | None = None
    """Accepted, but steering vectors have no hyperparameters."""


def file_object(record: FileRecord) -> File:
    """OpenAI's file object."""
    return {
        "id": record.id,
        "object": "file",
        "bytes": record.num_bytes,
        "created_at": record.created_at,
        "expires_at": None,
        "filename": record.filename,
        "purpose": record.purpose,
        "status": "processed",
        "status_details": None,
    }


def job_object(job: JobRecord) -> Job:
    """OpenAI's fine-tuning job, with this server's method."""
    is_published = job.status is JobStatus.SUCCEEDED and job.fine_tuned_vector is not None
    retention = {} if job.retention_file is None else {"retention_file": job.retention_file}
    error = job.error
    return {
        "id": job.id,
        "object": "fine_tuning.job",
        "created_at": job.created_at,
        "finished_at": job.finished_at,
        "estimated_finish": job.estimated_finish,
        "status": cast(Status, job.status.label),
        "error": None if error is None else {"code": error.code, "message": error.message, "param": error.param},
        "model": job.model,
        "fine_tuned_model": f"{job.model}+{job.name}" if is_published else None,
        "organization_id": "tiller",
        "training_file": job.training_file,
        "validation_file": job.validation_file,
        "result_files": list(job.result_files),
        "trained_tokens": job.trained_tokens if job.status.is_final else None,
        "seed": job.seed,
        "hyperparameters": {},
        "method": {"type": "steering", "steering": {**job.steering, **retention}},
        "integrations": [],
        "metadata": None if job.metadata is None else dict(job.metadata),
    }


def event_object(event: EventRecord) -> JobEvent:
    """OpenAI's fine-tuning job event."""
    return {
        "id": event.id,
        "object": "fine_tuning.job.event",
        "created_at": event.created_at,
        "level": event.level,
        "message": event.message,
        "type": event.type,
        "data": None if event.data is None else dict(event.data),
    }
