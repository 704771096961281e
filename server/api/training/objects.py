"""Objects of the Files and Fine-tuning APIs."""

from __future__ import annotations

from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from server.api.generation.objects import UnixSeconds
from server.api.http.objects import PageFields
from server.jobs.records import EventType, Level

Status = Literal["validating_files", "queued", "running", "succeeded", "failed", "cancelled"]


class File(TypedDict):
    """A stored file."""

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
    """The file is deleted."""

    id: str
    object: Literal["file"]
    deleted: Literal[True]


class JobFailure(TypedDict):
    """Why a job failed."""

    code: str
    message: str
    param: str | None


class JobMethod(TypedDict):
    """The training method and its given options."""

    type: Literal["steering"]
    steering: dict[str, Any]


class JobHyperparameters(TypedDict):
    """Always empty: steering vectors have no hyperparameters."""


class Job(TypedDict):
    """A training job. `fine_tuned_model` names the vector once it is published; `result_files` has the report."""

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
    """An event of a job; only metrics have `data`."""

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
    """Never used: steering vectors have no checkpoints."""

    id: NotRequired[str]


class JobCheckpointList(TypedDict):
    """An empty list of checkpoints."""

    object: Literal["list"]
    data: list[JobCheckpoint]
    first_id: None
    last_id: None
    has_more: Literal[False]
