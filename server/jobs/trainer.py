"""Trainer: the protocol by which jobs see training. Whoever can make a vector of files can stand behind it.

It does not know jobs' states, nor where files and vectors are kept.
"""

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
    """What a training gave.

    `vector`: what to publish, or None, for which `reason` is why. `files`: names and bytes, the report first.
    `num_tokens`: tokens that were computed. `is_recommended`: the vector helps.
    """

    vector: SteeringVector | None
    reason: str
    files: tuple[tuple[str, bytes], ...]
    num_tokens: int
    is_recommended: bool


class Trainer(Protocol):
    """Makes vectors of labelled data."""

    def check(self, job: JobRequest) -> None:
        """Raise a `VectorsError` for what is wrong and can be known without the data; called from any thread.

        It is asked when a job is created, and again when it begins: the model may be another one by then.
        """
        ...

    def run(
        self,
        job: JobRecord,
        read_file: ReadFile,
        report: Callable[[Progress], None],
        is_cancelled: Callable[[], bool],
    ) -> Outcome:
        """Train. Raises a `VectorsError` for what cannot be done, and `Cancelled` soon after `is_cancelled()` is True.

        `report` is called on the thread that runs this, as often as it likes.
        """
        ...
