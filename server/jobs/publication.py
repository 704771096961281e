"""Publication: how a training that is over leaves its results, so that a kill at any moment leaves a consistent state.

    1. the result files are written and flushed to disk, but not recorded yet
    2. one transaction records them and stores the vector's bytes: the training is now complete
    3. the vector is put into the registry, which is atomic and can be repeated safely
    4. one transaction marks the job succeeded and deletes the bytes

If killed before 2, nothing of the run is left (bytes without a record are moved aside at the next start) and the job
starts again. If killed after 2, the next start continues with 3, without training again. Without a vector, 2 marks the
job succeeded.

A disk that refuses in 1 and 2 ends the job with the reason. In 3 and 4 nothing is lost: the job stays as it is, and is
published when the disk takes it.
"""

from __future__ import annotations

import contextlib
import io
import logging
from typing import Any

from server.durable_database import DatabaseRefused
from server.jobs.database import JobDatabase
from server.jobs.files import FileStore
from server.jobs.records import RESULTS_PURPOSE, Event, FileRecord, JobError, JobRecord, JobStatus, VectorReference
from server.jobs.states import JobStates
from server.jobs.trainer import Outcome
from vectors.cancellation import Cancelled
from vectors.errors import StorageFailed, StorageFull, StoreLocked
from vectors.formats import ImportOptions
from vectors.formats.safetensors import decode_safetensors, encode_safetensors
from vectors.store import VectorStore

_log = logging.getLogger(__name__)


class Publication:
    """Records the results of trainings, and puts their vectors into `store`. Used only by the worker's thread."""

    def __init__(self, states: JobStates, database: JobDatabase, files: FileStore, store: VectorStore) -> None:
        self._states = states
        self._database = database
        self._files = files
        self._store = store
        self._waiting: set[str] = set()
        """The jobs whose log says that their vectors wait for the disk."""

    def complete(self, job: JobRecord, outcome: Outcome, events: list[Event]) -> None:
        """All four steps, or as many as the disk takes. Raises `Cancelled` if a client cancelled before step 2, and
        `StorageFailed` and `DatabaseRefused` in 1 and 2.
        """
        written: list[FileRecord] = []
        try:
            for filename, content in outcome.files:
                written.append(self._files.write(filename, RESULTS_PURPOSE, io.BytesIO(content)))
            known: dict[str, Any] = {
                "results": written,
                "result_files": tuple(record.id for record in written),
                "trained_tokens": outcome.num_tokens,
            }
            with self._states.changed:
                if self._states.get(job.id).is_cancel_asked:
                    raise Cancelled
                if outcome.vector is None:
                    events += [Event(f"no vector was published: {outcome.reason}", "warn")]
                    self._states.end(job, JobStatus.SUCCEEDED, events, **known)
                    return
                if not outcome.is_recommended:
                    events += [Event(f"the vector is not recommended: {outcome.reason}", "warn")]
                reference = VectorReference(job.name, outcome.vector.revision)
                content = encode_safetensors(outcome.vector)
                job = self._states.change(job, fine_tuned_vector=reference, unpublished=content, events=events, **known)
        except BaseException as error:
            # where a flush failed the records may be found after a crash, and then they need their bytes
            if isinstance(error, StorageFull) or not isinstance(error, StorageFailed | DatabaseRefused):
                for record in written:
                    self._files.discard(record)
            raise
        with contextlib.suppress(StorageFailed, StoreLocked, DatabaseRefused):  # `publish_complete` repeats it
            self._publish(job, outcome.reason)

    def publish_complete(self) -> bool:
        """Steps 3 and 4 of the jobs that are complete; False if the disk refuses a vector."""
        for job in self._states.having(JobStatus.RUNNING):
            if job.fine_tuned_vector is not None:
                try:
                    self._publish(job)
                except (StorageFailed, StoreLocked):
                    return False
        return True

    def _publish(self, job: JobRecord, reason: str = "") -> None:
        """Steps 3 and 4, for a job whose training is complete. Raises `StorageFailed`, `StoreLocked` and
        `DatabaseRefused`; then it can be repeated.
        """
        content = self._database.unpublished(job.id)
        assert content is not None, job
        try:
            stored, _ = self._store.put(job.name, decode_safetensors(content, ImportOptions()))
        except (StorageFailed, StoreLocked) as error:
            if job.id not in self._waiting:
                _log.error("the vector of %s waits for the disk: %s", job.id, error)
                self._waiting.add(job.id)
                event = Event(f"the vector is kept, and is published as soon as the disk takes it: {error}", "warn")
                self._states.change(job, events=[event])
            raise
        except Exception:
            _log.exception("the vector of %s cannot be published", job.id)
            failure = JobError("server_error", "the vector could not be published; the server's log has the details")
            event = Event(failure.message, "error")
            self._states.end(job, JobStatus.FAILED, [event], error=failure, fine_tuned_vector=None, unpublished=None)
            return
        told = f"the vector was published as {job.name}, revision {stored.revision[:12]}"
        event = Event(f"{told}: {reason}" if reason else told)
        reference = VectorReference(job.name, stored.revision)
        self._states.end(job, JobStatus.SUCCEEDED, [event], fine_tuned_vector=reference, unpublished=None)
