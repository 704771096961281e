"""What is known of files, jobs and their events: plain immutable data, and which status may follow which.

Times are Unix seconds. It does not know where records are kept, nor the wire's objects.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

TRAINING_PURPOSE = "fine-tune"
"""What clients upload files for."""

RESULTS_PURPOSE = "fine-tune-results"
"""What the files are that a job leaves."""

Level = Literal["info", "warn", "error"]
EventType = Literal["message", "metrics"]


class JobStatus(enum.Enum):
    """Where a job is in its life. Each member carries one sentence; `can_become` says which may follow."""

    VALIDATING_FILES = "Its files are being checked; here that is over before a job exists, so none is found so."
    QUEUED = "It waits for its turn; nothing runs for it (a job that the server's end interrupted comes back here)."
    RUNNING = "It is being trained, or what it gave is being published."
    SUCCEEDED = "The training came to its end; a vector was published, or the last event says why none was."
    FAILED = "It cannot be done; `error` says why."
    CANCELLED = "A client asked for its end."

    @property
    def label(self) -> str:
        """The status as OpenAI spells it."""
        return self.name.lower()

    @property
    def is_final(self) -> bool:
        """True when nothing will change any more."""
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
    """What a client asks for. `name` of the vector and `seed` may be left to the worker.

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
        """The ids of the files that it needs, by the parameter that names them."""
        return _needed(self.training_file, self.validation_file, self.retention_file)


@dataclass(frozen=True, slots=True)
class JobError:
    """Why a job failed: `code` for programs, `message` for people, `param` the dotted path of what is wrong, if any."""

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
    """A job as it stands. `id` is `ftjob-…`; `name` is what its vector is or will be called.

    `fine_tuned_vector` is set from the moment on that the training is complete and gave a vector; it is in the
    registry when `status` is `SUCCEEDED`. `num_starts` counts beginnings that the server's end did not take back.
    `is_cancel_asked`: a client wants its end, and the training has not noticed yet.
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
        """The ids of the files that it needs, by the parameter that names them."""
        return _needed(self.training_file, self.validation_file, self.retention_file)

    @property
    def request(self) -> JobRequest:
        """What was asked for, with what the worker chose."""
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
    """Something to be told about a job, before it is recorded."""

    message: str
    level: Level = "info"
    type: EventType = "message"
    data: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class EventRecord:
    """Something that happened to a job. `id` is `ftevent-…`; `data` is there for metrics."""

    id: str
    created_at: int
    level: Level
    message: str
    type: EventType
    data: Mapping[str, Any] | None


def _needed(training: str, validation: str | None, retention: str | None) -> dict[str, str]:
    given = {
        "training_file": training,
        "validation_file": validation,
        "method.steering.retention_file": retention,
    }
    return {param: file for param, file in given.items() if file is not None}
