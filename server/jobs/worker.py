"""JobWorker: runs training jobs one at a time, oldest first, on its own thread. Only it changes jobs.

How the results of a job are recorded and its vector is published, whatever happens meanwhile: `publication.py`. A disk
that refuses while a job trains ends that job with the reason, which is recorded as soon as the disk takes it.
"""

from __future__ import annotations

import logging
import re
import secrets
import threading
import time
from collections.abc import Callable

from server.durable_database import DatabaseRefused
from server.errors import InvalidRequest, Unavailable
from server.jobs.database import JobDatabase
from server.jobs.failures import describe_failure
from server.jobs.files import FileStore
from server.jobs.progress import ProgressLog
from server.jobs.publication import Publication
from server.jobs.records import (
    TRAINING_PURPOSE,
    Event,
    JobError,
    JobRecord,
    JobRequest,
    JobStatus,
)
from server.jobs.states import JobStates
from server.jobs.trainer import Trainer
from vectors.cancellation import Cancelled
from vectors.errors import StorageFailed
from vectors.store import VectorStore
from vectors.vocabulary import MAX_SEED, check_name

MAX_STARTS = 3
"""The number of starts after which a job is assumed to bring the server down."""


RETRY_SECONDS = 1.0
"""How long the worker waits before it tries again what the disk refused."""

_NAME_ENDING = 8
_MAX_STEM = 64 - 1 - _NAME_ENDING

_log = logging.getLogger(__name__)


class JobWorker:
    """Creates, runs and cancels jobs; thread-safe. `start` it to run them, `close` it before its parts.

    A worker that is not started accepts jobs and leaves them queued. `clock` gives seconds that never go back.
    """

    def __init__(
        self,
        database: JobDatabase,
        files: FileStore,
        store: VectorStore,
        trainer: Trainer,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.database = database
        self.files = files
        self._trainer = trainer
        self._clock = clock
        self._states = JobStates(database)
        self._publication = Publication(self._states, database, files, store)
        self._changed = self._states.changed
        self._stop = threading.Event()
        """Set when the running training should stop."""
        self._is_closing = False
        self._is_settled = False
        self._has_broken = False
        self._unrecorded: Callable[[], None] | None = None
        """Records the end of the last job, while the disk does not take it."""
        self._thread = threading.Thread(target=self._work, name="training jobs", daemon=True)

    def start(self) -> JobWorker:
        """Settle what the last server left, then run jobs. Returns itself."""
        with self._changed:
            try:
                self._resume()
            except StorageFailed as error:
                _log.error("training waits: %s", error)
            self._thread.start()
        return self

    @property
    def is_broken(self) -> bool:
        """True once its thread has ended although nobody closed it."""
        has_died = self._thread.ident is not None and not self._thread.is_alive() and not self._is_closing
        return self._has_broken or has_died

    def stop(self) -> None:
        """Ask the running training to stop, and take no more jobs. Returns at once."""
        self._is_closing = True  # without the lock, which may be held while records are written
        self._stop.set()

    def close(self, timeout: float | None = None) -> bool:
        """`stop`, and wait for the running training up to `timeout` seconds; its job goes back to the queue.

        False if it has not stopped by then. Its job is found running by the next start, which puts it back.
        """
        self.stop()
        if not self._changed.acquire(timeout=-1 if timeout is None else timeout):
            return False
        self._changed.notify_all()
        self._changed.release()
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def __enter__(self) -> JobWorker:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def create(self, request: JobRequest) -> JobRecord:
        """Create a job. Raises `InvalidRequest`, `NotFound` and `VectorsError` for errors found without its data."""
        for param, identifier in request.files.items():
            record = self.files.get(identifier, param)
            if record.purpose != TRAINING_PURPOSE:
                raise InvalidRequest(
                    f"{param}: expected a file with purpose {TRAINING_PURPOSE}, got one with {record.purpose}",
                    code="invalid_value",
                    param=param,
                )
        if request.name is not None:
            check_name(request.name)
        self._trainer.check(request)
        identifier = self.database.new_id("ftjob")
        filename = self.files.get(request.training_file, "training_file").filename
        job = JobRecord(
            id=identifier,
            created_at=int(time.time()),
            status=JobStatus.QUEUED,
            model=request.model,
            name=request.name if request.name is not None else name_for(filename, identifier),
            training_file=request.training_file,
            validation_file=request.validation_file,
            retention_file=request.retention_file,
            seed=request.seed if request.seed is not None else secrets.randbelow(MAX_SEED + 1),
            steering=request.steering,
            metadata=request.metadata,
        )
        with self._changed:
            if self._is_closing or self._has_broken:
                headers = {"Retry-After": "5"}
                raise Unavailable("training has stopped", code="training_not_available", headers=headers)
            self.database.add_job(job, Event("the job was created and is waiting for its turn"))
            self._changed.notify_all()
        return job

    def get(self, identifier: str) -> JobRecord:
        """The current state of a job. Raises `NotFound`."""
        return self._states.get(identifier)

    def cancel(self, identifier: str) -> JobRecord:
        """Cancel a job: at once if waiting, soon if running. Raises `NotFound`, and `InvalidRequest` if it ended."""
        with self._changed:
            job = self.get(identifier)
            if job.status.is_final:
                raise InvalidRequest(f"the job {job.id} has already ended: {job.status.label}", code="job_ended")
            if job.fine_tuned_vector is not None:
                raise InvalidRequest(
                    f"the job {job.id} has already ended: its vector is being published", code="job_ended"
                )
            if job.status is not JobStatus.RUNNING:
                return self._states.end(job, JobStatus.CANCELLED, [Event("the job was cancelled before it started")])
            if job.is_cancel_asked:
                return job
            job = self._states.change(job, is_cancel_asked=True, events=[Event("the job is being cancelled")])
            self._stop.set()
            return job

    def wait(
        self,
        identifier: str,
        is_so: Callable[[JobRecord], bool] = lambda job: job.status.is_final,
        *,
        timeout: float | None = None,
    ) -> JobRecord:
        """The job as soon as `is_so`, by default: as soon as it ended. Raises `TimeoutError` after so many seconds."""
        return self._states.wait(identifier, is_so, timeout)

    def _work(self) -> None:
        try:
            self._work_off()
        except BaseException:  # a library panics: the next start settles what is left
            _log.exception("training has stopped")
            with self._changed:
                self._has_broken = True
                self._changed.notify_all()

    def _work_off(self) -> None:
        """Do one job after the other until the worker is closed."""
        is_well = True
        while not self._is_closing:
            try:
                job = self._take()
                is_well = True
            except Exception as error:  # whatever it is, it must not end the training of other jobs
                if is_well:
                    is_fault = not isinstance(error, StorageFailed | DatabaseRefused)
                    _log.error("training waits: %s", error, exc_info=is_fault)
                is_well = False
                self._pause(RETRY_SECONDS)
                continue
            if job is not None:
                self._do(job)

    def _take(self) -> JobRecord | None:
        """Start the oldest waiting job and return it; None when the worker is being closed, or is to look again.

        Records and publishes first what the disk refused before.
        """
        with self._changed:
            record, self._unrecorded = self._unrecorded, None
            if record is not None:
                self._try_to_record(record)
            is_published = self._resume()
            queued = self._states.having(JobStatus.QUEUED)
            if queued and not self._is_closing:
                self._stop.clear()
                return self._states.change(
                    queued[0],
                    status=JobStatus.RUNNING,
                    started_at=int(time.time()),
                    num_starts=queued[0].num_starts + 1,
                    events=[Event("the job started")],
                )
            self._pause(None if is_published else RETRY_SECONDS)
            return None

    def _pause(self, seconds: float | None) -> None:
        """Wait until a job changes or the worker is closed, for `seconds` at most."""
        with self._changed:
            if not self._is_closing:
                self._changed.wait(seconds)

    def _do(self, job: JobRecord) -> None:
        """Run a job from start to end."""
        progress = ProgressLog(self.database, job.id, self._states.notify, self._clock)
        try:
            self._trainer.check(job.request)
            outcome = self._trainer.run(job, self.files.read, progress.report, self._is_to_stop)
            self._publication.complete(job, outcome, progress.finish())
        except Exception as error:
            self._record_end(job.id, error, progress.finish())

    def _record_end(self, identifier: str, error: Exception, events: list[Event]) -> None:
        """Record that a run raised, now or as soon as the disk takes it."""

        def record() -> None:
            now = self.get(identifier)
            if now.fine_tuned_vector is None:  # else it is complete, and only its publication is to be repeated
                self._end_badly(now, error, events)

        with self._changed:
            try:
                self._try_to_record(record)
            except (StorageFailed, DatabaseRefused):
                _log.error("the end of %s cannot be recorded yet: %s", identifier, error)
            except Exception:  # a fault of ours: the job stays as it is, and other jobs go on
                _log.exception("the end of %s cannot be recorded", identifier)

    def _try_to_record(self, record: Callable[[], None]) -> None:
        """Call `record`, which is kept to be called again if the disk refuses it."""
        try:
            record()
        except (StorageFailed, DatabaseRefused):
            self._unrecorded = record
            raise

    def _is_to_stop(self) -> bool:
        return self._is_closing or self._stop.is_set()

    def _resume(self) -> bool:
        """Bring the jobs of the last server into a consistent state, and publish what is complete.

        False if the disk refuses a vector.
        """
        if not self._is_settled:
            self._settle()
            self._is_settled = True
        return self._publication.publish_complete()

    def _end_badly(self, job: JobRecord, error: Exception, events: list[Event]) -> None:
        """End a job whose run raised, or put it back in the queue if the server is stopping."""
        if job.is_cancel_asked or (isinstance(error, Cancelled) and not self._is_closing):
            self._states.end(job, JobStatus.CANCELLED, [*events, Event("the job was cancelled")])
        elif self._is_closing:
            # a run that stops when asked is not at fault; any other error counts as a start
            num_starts = job.num_starts - 1 if isinstance(error, Cancelled) else job.num_starts
            if not isinstance(error, Cancelled):
                _log.error("%s raised while the server stopped", job.id, exc_info=error)
            again = Event("the server is stopping; the job will start again when the server does", "warn")
            self._states.put_back(job, [*events, again], num_starts=num_starts)
        else:
            told = describe_failure(error)
            if told.code == "server_error":
                _log.error("%s failed", job.id, exc_info=error)
            self._states.end(job, JobStatus.FAILED, [*events, Event(told.message, "error")], error=told)

    def _settle(self) -> None:
        """Bring the jobs that were running when the last server ended into a consistent state."""
        for job in self._states.having(JobStatus.RUNNING):
            if job.fine_tuned_vector is not None:
                continue  # it is published before other jobs run
            if job.is_cancel_asked:
                self._states.end(job, JobStatus.CANCELLED, [Event("the job was cancelled")])
            elif job.num_starts >= MAX_STARTS:
                error = JobError("interrupted", f"the server stopped {job.num_starts} times while the job ran")
                self._states.end(job, JobStatus.FAILED, [Event(error.message, "error")], error=error)
            else:
                self._states.put_back(job, [Event("the server stopped; the job will start again", "warn")])


def name_for(filename: str, identifier: str) -> str:
    """A vector's name from the training file's and the job's id: `quiz-3f9a1c2b`."""
    stem = filename.replace("\\", "/").rpartition("/")[2]
    stem = stem.rpartition(".")[0] or stem
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:_MAX_STEM].rstrip("-._")
    return check_name(f"{stem or 'vector'}-{identifier[-_NAME_ENDING:]}")
