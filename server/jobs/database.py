"""JobDatabase: files, jobs and events in one SQLite file. Changes survive `kill -9` and power loss once a method
returns.

Ids sort by age, whatever the clock does.
"""

from __future__ import annotations

import dataclasses
import secrets
import sqlite3
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from server.durable_database import DurableDatabase
from server.errors import Conflict, NotFound
from server.jobs.records import Event, EventRecord, FileRecord, JobRecord, JobStatus
from server.jobs.schema import (
    APPLICATION_ID,
    TABLES,
    VERSION,
    event_of,
    event_row,
    file_of,
    file_row,
    id_of,
    is_id,
    job_of,
    job_row,
    moment_of,
)
from vectors.errors import StoreCorrupt

Kind = Literal["file", "ftjob", "ftevent"]

_FINAL = ", ".join(f"'{status.label}'" for status in JobStatus if status.is_final)
_KEPT = object()


class JobDatabase(DurableDatabase):
    """The records under `path`. Every method may raise `DatabaseRefused`."""

    kind = "database of jobs"
    tables = TABLES
    version = VERSION
    application_id = APPLICATION_ID

    def __init__(self, path: Path, *, moves_damaged: bool = True) -> None:
        self._last_moment = 0
        super().__init__(path, moves_damaged=moves_damaged)

    def _read_state(self) -> None:
        with self.transaction() as connection:
            newest = [connection.execute(f"SELECT max(id) FROM {table}").fetchone()[0] for table in _TABLES]
        self._last_moment = max((moment_of(identifier) for identifier in newest if _is_any_id(identifier)), default=0)

    def new_id(self, kind: Kind) -> str:
        """A new id, which sorts after every other."""
        with self._lock:
            self._last_moment = max(self._last_moment + 1, time.time_ns() // 1000)
            return id_of(kind, self._last_moment, secrets.token_hex(5))

    def add_file(self, record: FileRecord) -> None:
        """Record a file whose bytes are already in place."""
        with self.transaction() as connection:
            _insert(connection, "files", file_row(record))

    def find_file(self, identifier: str) -> FileRecord | None:
        """The file of that id, if there is one."""
        if not is_id(identifier, "file"):
            return None
        with self.transaction() as connection:
            row = connection.execute("SELECT * FROM files WHERE id = ?", (identifier,)).fetchone()
        return None if row is None else file_of(row)

    def files(
        self,
        *,
        after: str | None = None,
        limit: int = -1,
        order: Literal["asc", "desc"] = "asc",
        purpose: str | None = None,
    ) -> list[FileRecord]:
        """Files by age, after the id `after` (which need not exist)."""
        query = _Query("files", order)
        query.after(after)
        if purpose is not None:
            query.where("purpose = ?", purpose)
        with self.transaction() as connection:
            return [file_of(row) for row in query.rows(connection, limit)]

    def remove_file(self, identifier: str) -> None:
        """Delete a file's record. Raises `NotFound`, and `Conflict` while an unfinished job needs the file."""
        with self.transaction() as connection:
            user = connection.execute(
                f"SELECT id FROM jobs WHERE status NOT IN ({_FINAL})"
                " AND ? IN (training_file, validation_file, retention_file,"
                " json_extract(steering, '$.negative_file'))",
                (identifier,),
            ).fetchone()
            if user is not None:
                raise Conflict(f"the job {user['id']} still needs the file {identifier}", code="file_in_use")
            if connection.execute("DELETE FROM files WHERE id = ?", (identifier,)).rowcount == 0:
                raise missing_file(identifier)

    def drop_file(self, identifier: str) -> None:
        """Delete a file's record, whatever needs it: its bytes are lost."""
        with self.transaction() as connection:
            connection.execute("DELETE FROM files WHERE id = ?", (identifier,))

    def oldest_moment(self) -> int | None:
        """When the oldest record of this database was made, in microseconds; None if it has none."""
        with self.transaction() as connection:
            oldest = [connection.execute(f"SELECT min(id) FROM {table}").fetchone()[0] for table in _TABLES]
        return min((moment_of(identifier) for identifier in oldest if _is_any_id(identifier)), default=None)

    def damaged_jobs(self) -> list[str]:
        """The ids of the jobs whose records cannot be read."""
        with self.transaction() as connection:
            known = [str(row["id"]) for row in connection.execute("SELECT id FROM jobs")]
        whole = {job.id for job in self.jobs(skips_damaged=True)}
        return [identifier for identifier in known if identifier not in whole]

    def rows_of_job(self, identifier: str) -> dict[str, list[dict[str, Any]]]:
        """All rows of a job by table, as they are."""
        with self.transaction() as connection:
            return {
                table: [
                    dict(row) for row in connection.execute(f"SELECT * FROM {table} WHERE {column} = ?", (identifier,))
                ]
                for table, column in _OF_JOBS
            }

    def drop_job(self, identifier: str) -> None:
        """Delete all rows of a job."""
        with self.transaction() as connection:
            for table, column in _OF_JOBS:
                connection.execute(f"DELETE FROM {table} WHERE {column} = ?", (identifier,))

    def add_job(self, record: JobRecord, event: Event) -> JobRecord:
        """Record a new job. Raises `NotFound` with the parameter whose file does not exist."""
        with self.transaction() as connection:
            for param, identifier in record.files.items():
                if connection.execute("SELECT 1 FROM files WHERE id = ?", (identifier,)).fetchone() is None:
                    raise missing_file(identifier, param)
            _insert(connection, "jobs", job_row(record))
            self._add_events(connection, record.id, [event])
        return record

    def find_job(self, identifier: str) -> JobRecord | None:
        """The job of that id, if there is one."""
        if not is_id(identifier, "ftjob"):
            return None
        with self.transaction() as connection:
            return _find_job(connection, identifier)

    def jobs(
        self,
        *,
        after: str | None = None,
        limit: int = -1,
        order: Literal["asc", "desc"] = "desc",
        status: JobStatus | None = None,
        metadata: Mapping[str, str] | None = None,
        without_metadata: bool = False,
        skips_damaged: bool = False,
    ) -> list[JobRecord]:
        """Jobs by age, after the id `after`, which need not exist.

        Only jobs with `status`, and with all pairs of `metadata` or without any metadata. A record that cannot be read
        is left out with `skips_damaged`, and otherwise raises `StoreCorrupt`.
        """
        query = _Query("jobs", order)
        query.after(after)
        if status is not None:
            query.where("status = ?", status.label)
        for key, value in (metadata or {}).items():
            query.where("EXISTS (SELECT 1 FROM json_each(metadata) WHERE key = ? AND value = ?)", key, value)
        if without_metadata:
            query.where("metadata IS NULL")
        with self.transaction() as connection:
            rows = query.rows(connection, limit)
        jobs = []
        for row in rows:
            try:
                jobs.append(job_of(row))
            except StoreCorrupt:
                if not skips_damaged:
                    raise
        return jobs

    def change_job(
        self,
        identifier: str,
        *,
        events: Iterable[Event] = (),
        results: Iterable[FileRecord] = (),
        unpublished: bytes | object | None = _KEPT,
        **changes: Any,
    ) -> JobRecord:
        """Change a job's fields, add `events`, record its result files and store its vector, in one transaction.

        `unpublished` is a complete vector's bytes while it is not in the registry yet, None once it is.
        """
        with self.transaction() as connection:
            before = _find_job(connection, identifier)
            assert before is not None, identifier
            after = dataclasses.replace(before, **changes)
            assert after.status is before.status or before.status.can_become(after.status), f"{before} to {after}"
            names = ", ".join(f"{name} = :{name}" for name in changes)
            if names:
                connection.execute(f"UPDATE jobs SET {names} WHERE id = :id", job_row(after))
            for record in results:
                _insert(connection, "files", file_row(record))
            if unpublished is not _KEPT:
                connection.execute("DELETE FROM unpublished WHERE job = ?", (identifier,))
            if isinstance(unpublished, bytes):
                _insert(connection, "unpublished", {"job": identifier, "content": unpublished})
            self._add_events(connection, identifier, events)
        return after

    def unpublished(self, identifier: str) -> bytes | None:
        """A job's complete vector that still has to be put into the registry, if there is one."""
        with self.transaction() as connection:
            row = connection.execute("SELECT content FROM unpublished WHERE job = ?", (identifier,)).fetchone()
        return None if row is None else bytes(row["content"])

    def events(
        self, job: str, *, after: str | None = None, limit: int = -1, order: Literal["asc", "desc"] = "desc"
    ) -> list[EventRecord]:
        """A job's events, newest first, after the id `after`, which need not exist."""
        query = _Query("events", order)
        query.where("job = ?", job)
        query.after(after)
        with self.transaction() as connection:
            return [event_of(row) for row in query.rows(connection, limit)]

    def _add_events(self, connection: sqlite3.Connection, job: str, events: Iterable[Event]) -> None:
        for event in events:
            record = EventRecord(
                self.new_id("ftevent"), int(time.time()), event.level, event.message, event.type, event.data
            )
            _insert(connection, "events", event_row(record, job))


_TABLES = ("files", "jobs", "events")
_OF_JOBS = (("events", "job"), ("unpublished", "job"), ("jobs", "id"))


def _is_any_id(text: str | None) -> bool:
    return text is not None and any(is_id(text, kind) for kind in get_args(Kind))


class _Query:
    """A listing by age of one table."""

    def __init__(self, table: str, order: Literal["asc", "desc"]) -> None:
        self._table = table
        self._order = order
        self._conditions: list[str] = []
        self._values: list[Any] = []

    def where(self, condition: str, *values: Any) -> None:
        self._conditions.append(condition)
        self._values += values

    def after(self, identifier: str | None) -> None:
        if identifier is not None:
            self.where("id > ?" if self._order == "asc" else "id < ?", identifier)

    def rows(self, connection: sqlite3.Connection, limit: int) -> list[sqlite3.Row]:
        """At most `limit` rows; all of them if it is negative."""
        conditions = " AND ".join(self._conditions) or "1"
        text = f"SELECT * FROM {self._table} WHERE {conditions} ORDER BY id {self._order} LIMIT ?"
        return connection.execute(text, (*self._values, limit)).fetchall()


def missing_file(identifier: str, param: str | None = None) -> NotFound:
    """The error for an unknown file; `param` named it."""
    return NotFound(f"no file has the id {identifier[:80]!r}", code="file_not_found", param=param)


def _find_job(connection: sqlite3.Connection, identifier: str) -> JobRecord | None:
    row = connection.execute("SELECT * FROM jobs WHERE id = ?", (identifier,)).fetchone()
    return None if row is None else job_of(row)


def _insert(connection: sqlite3.Connection, table: str, row: Mapping[str, Any]) -> None:
    names, places = ", ".join(row), ", ".join(f":{name}" for name in row)
    connection.execute(f"INSERT INTO {table} ({names}) VALUES ({places})", row)
