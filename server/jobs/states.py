"""JobStates: changes the states of jobs, one at a time, and tells whoever waits for that."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from server.errors import NotFound
from server.jobs.database import JobDatabase
from server.jobs.records import Event, JobRecord, JobStatus


class JobStates:
    """The states of the jobs of `database`; thread-safe.

    Holding `changed` keeps them as they are, and with them what else a worker changes under it. Every change notifies
    those who wait for it. A change raises what `DurableDatabase` raises, and then changed nothing.
    """

    def __init__(self, database: JobDatabase) -> None:
        self._database = database
        self.changed = threading.Condition(threading.RLock())

    def get(self, identifier: str) -> JobRecord:
        """The current state of a job. Raises `NotFound`."""
        job = self._database.find_job(identifier)
        if job is None:
            raise NotFound(f"no job has the id {identifier[:80]!r}", code="fine_tuning_job_not_found")
        return job

    def having(self, status: JobStatus) -> list[JobRecord]:
        """The jobs of `status`, oldest first, without those whose records are damaged."""
        return self._database.jobs(status=status, order="asc", skips_damaged=True)

    def wait(self, identifier: str, is_so: Callable[[JobRecord], bool], timeout: float | None) -> JobRecord:
        """The job as soon as `is_so`. Raises `TimeoutError` after so many seconds."""
        with self.changed:
            if not self.changed.wait_for(lambda: is_so(self.get(identifier)), timeout):
                raise TimeoutError(f"{self.get(identifier)}")
            return self.get(identifier)

    def change(self, job: JobRecord, **changes: Any) -> JobRecord:
        """Make the `changes` of `JobDatabase.change_job`; returns the job as it is then."""
        with self.changed:
            changed = self._database.change_job(job.id, **changes)
            self.changed.notify_all()
            return changed

    def end(self, job: JobRecord, status: JobStatus, events: list[Event], **changes: Any) -> JobRecord:
        """Give the job its final `status`, now."""
        return self.change(
            job, status=status, finished_at=int(time.time()), estimated_finish=None, events=events, **changes
        )

    def put_back(self, job: JobRecord, events: list[Event], **changes: Any) -> JobRecord:
        """Put a job that ran back into the queue."""
        return self.change(
            job, status=JobStatus.QUEUED, started_at=None, estimated_finish=None, events=events, **changes
        )

    def notify(self) -> None:
        """Wake all who wait; for what is no change of a state."""
        with self.changed:
            self.changed.notify_all()
