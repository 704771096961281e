"""Trainer: the protocol through which jobs use training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from server.jobs.records import JobRecord, JobRequest
from vectors.training.progress import Progress as Progress
from vectors.vector import SteeringVector

ReadFile = Callable[[str], tuple[str, bytes]]
"""A file's id -> its name and its bytes."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a training.

    `vector`: the vector to publish, or None; `reason` says why. `files`: names and bytes, the report first.
    `num_tokens`: the number of tokens computed. `is_recommended`: the vector helps.
    """

    vector: SteeringVector | None
    reason: str
    files: tuple[tuple[str, bytes], ...]
    num_tokens: int
    is_recommended: bool


class Trainer(Protocol):
    """Makes vectors from labelled data."""

    def check(self, job: JobRequest) -> None:
        """Raise a `VectorsError` for what is wrong regardless of the data; called from any thread.

        Called when a job is created, and again when it starts, since the model may have changed by then.
        """
        ...

    def run(
        self,
        job: JobRecord,
        read_file: ReadFile,
        report: Callable[[Progress], None],
        is_cancelled: Callable[[], bool],
    ) -> Outcome:
        """Train. Raises a `VectorsError` if that is not possible, and `Cancelled` soon after `is_cancelled()` is True.

        `report` is called on the thread that runs this, as often as it likes.
        """
        ...
