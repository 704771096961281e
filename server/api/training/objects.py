"""Objects of the Files and Fine-tuning APIs."""

from __future__ import annotations

from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from server.api.generation.objects import UnixSeconds
from server.api.http.objects import PageFields
from server.jobs.records import EventType, Level

Status = Literal["validating_files", "queued", "running", "succeeded", "failed", "cancelled"]


class File(TypedDict):
    """A kept file."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: UnixSeconds
    expires_at: None
    filename: str
    purpose: str
    status: Literal["processed"]
    status_details: None


class FileList(PageFields):
    """A page of files; `last_id` is the `after` of the next page."""

    data: list[File]


class DeletedFile(TypedDict):
    """The file is gone."""

    id: str
    object: Literal["file"]
    deleted: Literal[True]


class JobFailure(TypedDict):
    """Why a job failed."""

    code: str
    message: str
    param: str | None


class JobMethod(TypedDict):
    """How the vector is made: the options that were given."""

    type: Literal["steering"]
    steering: dict[str, Any]


class JobHyperparameters(TypedDict):
    """A steering vector has none."""


class Job(TypedDict):
    """A training. `fine_tuned_model` names the vector once it is published; `result_files` hold the report."""

    id: str
    object: Literal["fine_tuning.job"]
    created_at: UnixSeconds
    finished_at: UnixSeconds | None
    estimated_finish: UnixSeconds | None
    status: Status
    error: JobFailure | None
    model: str
    fine_tuned_model: str | None
    organization_id: Literal["tiller"]
    training_file: str
    validation_file: str | None
    result_files: list[str]
    trained_tokens: int | None
    seed: int
    hyperparameters: JobHyperparameters
    method: JobMethod
    integrations: list[Any]
    metadata: dict[str, str] | None


class JobList(PageFields):
    """A page of jobs; `last_id` is the `after` of the next page."""

    data: list[Job]


class JobEvent(TypedDict):
    """Something that happened to a job; `data` is there for metrics."""

    id: str
    object: Literal["fine_tuning.job.event"]
    created_at: UnixSeconds
    level: Level
    message: str
    type: EventType
    data: dict[str, Any] | None


class JobEventList(PageFields):
    """A page of events; `last_id` is the `after` of the next page."""

    data: list[JobEvent]


class JobCheckpoint(TypedDict):
    """There is none: a vector has no checkpoints."""

    id: NotRequired[str]


class JobCheckpointList(TypedDict):
    """Always empty."""

    object: Literal["list"]
    data: list[JobCheckpoint]
    first_id: None
    last_id: None
    has_more: Literal[False]
