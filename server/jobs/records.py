"""The records of files, jobs and events as immutable data, and which status may follow which.

Times are Unix seconds.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

TRAINING_PURPOSE = "fine-tune"
"""The purpose of files that clients upload."""

RESULTS_PURPOSE = "fine-tune-results"
"""The purpose of the files that a job leaves."""

Level = Literal["info", "warn", "error"]
EventType = Literal["message", "metrics"]


class JobStatus(enum.Enum):
    """The state of a job. Each member has a sentence that describes it; `can_become` says which may follow."""

    VALIDATING_FILES = (
        "Its files are being checked. Files are checked before a job is created, so no job has this status."
    )
    QUEUED = "It is waiting for its turn. A job that was interrupted by the end of the server returns here."
    RUNNING = "It is being trained, or its vector is being published."
    SUCCEEDED = "The training has finished; a vector was published, or the last event says why none was."
    FAILED = "It failed; `error` says why."
    CANCELLED = "A client cancelled it."

    @property
    def label(self) -> str:
        """The status as in OpenAI's API."""
        return self.name.lower()

    @property
    def is_final(self) -> bool:
        """True if the job will not change any more."""
        return self in (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED)

    def can_become(self, other: JobStatus) -> bool:
        """True when `other` may follow."""
        return other in _FOLLOWERS[self]


_ENDS = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED})
_FOLLOWERS: Mapping[JobStatus, frozenset[JobStatus]] = {
    JobStatus.VALIDATING_FILES: frozenset({JobStatus.QUEUED, JobStatus.FAILED, JobStatus.CANCELLED}),
    JobStatus.QUEUED: frozenset({JobStatus.RUNNING, JobStatus.FAILED, JobStatus.CANCELLED}),
    JobStatus.RUNNING: _ENDS | {JobStatus.QUEUED},
    **dict.fromkeys(_ENDS, frozenset[JobStatus]()),
}


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A stored file. `id` is `file-…`; `filename` is the client's word for it and never a path; `sha256` in hex."""

    id: str
    purpose: str
    filename: str
    num_bytes: int
    created_at: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequest:
    """What a client asks for. The worker chooses the vector's `name` and the `seed` if they are not given.

    `training_file`, `validation_file` and `retention_file` are ids. `steering` is `method.steering` without
    `retention_file`.
    """

    model: str
    training_file: str
    name: str | None = None
    validation_file: str | None = None
    retention_file: str | None = None
    seed: int | None = None
    steering: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, str] | None = None

    @property
    def files(self) -> dict[str, str]:
        """The ids of the files it needs, by parameter."""
        return _needed(self)

    @property
    def negative_file(self) -> str | None:
        """The id of the file with the texts of the unwanted class, if it is given."""
        return _negative_file(self.steering)


@dataclass(frozen=True, slots=True)
class JobError:
    """Why a job failed: `code` for programs, `message` for people, `param` the dotted path of the invalid field, if
    any.
    """

    code: str
    message: str
    param: str | None = None


@dataclass(frozen=True, slots=True)
class VectorReference:
    """A revision of a name in the registry."""

    name: str
    revision: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """A job at one moment. `id` is `ftjob-…`; `name` is the name of its vector.

    `fine_tuned_vector` is set once the training is complete and gave a vector; it is in the registry when `status` is
    `SUCCEEDED`. `num_starts` counts starts, except those undone by a regular end of the server. `is_cancel_asked`: a
    client cancelled it, and the training has not noticed yet.
    """

    id: str
    created_at: int
    status: JobStatus
    model: str
    name: str
    training_file: str
    seed: int
    validation_file: str | None = None
    retention_file: str | None = None
    steering: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, str] | None = None
    started_at: int | None = None
    finished_at: int | None = None
    estimated_finish: int | None = None
    error: JobError | None = None
    fine_tuned_vector: VectorReference | None = None
    result_files: tuple[str, ...] = ()
    trained_tokens: int | None = None
    num_starts: int = 0
    is_cancel_asked: bool = False

    @property
    def files(self) -> dict[str, str]:
        """The ids of the files it needs, by parameter."""
        return _needed(self)

    @property
    def negative_file(self) -> str | None:
        """The id of the file with the texts of the unwanted class, if it is given."""
        return _negative_file(self.steering)

    @property
    def request(self) -> JobRequest:
        """What was asked for, with the worker's choices filled in."""
        return JobRequest(
            model=self.model,
            training_file=self.training_file,
            name=self.name,
            validation_file=self.validation_file,
            retention_file=self.retention_file,
            seed=self.seed,
            steering=self.steering,
            metadata=self.metadata,
        )


@dataclass(frozen=True, slots=True)
class Event:
    """An event of a job before it is recorded."""

    message: str
    level: Level = "info"
    type: EventType = "message"
    data: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class EventRecord:
    """A recorded event of a job. `id` is `ftevent-…`; only metrics have `data`."""

    id: str
    created_at: int
    level: Level
    message: str
    type: EventType
    data: Mapping[str, Any] | None


def _negative_file(steering: Mapping[str, Any]) -> str | None:
    found = steering.get("negative_file")
    return found if isinstance(found, str) else None


def _needed(job: JobRequest | JobRecord) -> dict[str, str]:
    given = {
        "training_file": job.training_file,
        "validation_file": job.validation_file,
        "method.steering.retention_file": job.retention_file,
        "method.steering.negative_file": job.negative_file,
    }
    return {param: file for param, file in given.items() if file is not None}
