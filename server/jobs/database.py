"""JobDatabase: files, jobs and events in one SQLite file; what a method acknowledged survives `kill -9` and power loss.

One connection behind a lock serves every thread, and no other process can open the file meanwhile. Ids sort by age,
whatever the clock does. It does not know what a training is, nor where the files' bytes are.
"""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

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
from vectors.durable import flush_folder, make_folder
from vectors.errors import VectorsError

Kind = Literal["file", "ftjob", "ftevent"]

_FINAL = ", ".join(f"'{status.label}'" for status in JobStatus if status.is_final)
_KEPT = object()


class DatabaseRefused(VectorsError):
    """The database cannot be opened, read or written; the message names the file and says why."""


class JobDatabase:
    """The records under `path`; thread-safe. `close` it (or use it as a context) to let others open it.

    Every method may raise `DatabaseRefused`: another process has it open, it is damaged, from a newer version of this
    program, no database of jobs at all, or the disk refuses.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.RLock()
        self._last_moment = 0
        make_folder(path.parent)
        try:
            # nobody waits for another process: it keeps the file as long as it lives
            self._connection = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as error:
            raise DatabaseRefused(f"{path}: {error}") from error
        try:
            self._open()
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        """Let other processes open the file."""
        with self._lock:
            self._connection.close()

    def __enter__(self) -> JobDatabase:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def new_id(self, kind: Kind) -> str:
        """An id that nothing has and that sorts behind every other."""
        with self._lock:
            self._last_moment = max(self._last_moment + 1, time.time_ns() // 1000)
            return id_of(kind, self._last_moment, secrets.token_hex(5))

    def add_file(self, record: FileRecord) -> None:
        """Record a file whose bytes are in their place."""
        with self._transaction() as connection:
            _insert(connection, "files", file_row(record))

    def find_file(self, identifier: str) -> FileRecord | None:
        """The file of that id, if there is one."""
        if not is_id(identifier, "file"):
            return None
        with self._transaction() as connection:
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
        """Files by age, beginning after the id `after` (which need not exist)."""
        query = _Query("files", order)
        query.after(after)
        if purpose is not None:
            query.where("purpose = ?", purpose)
        with self._transaction() as connection:
            return [file_of(row) for row in query.rows(connection, limit)]

    def remove_file(self, identifier: str) -> None:
        """Forget a file. Raises `NotFound`, and `Conflict` while a job that has not ended needs it."""
        with self._transaction() as connection:
            user = connection.execute(
                f"SELECT id FROM jobs WHERE status NOT IN ({_FINAL})"
                " AND ? IN (training_file, validation_file, retention_file)",
                (identifier,),
            ).fetchone()
            if user is not None:
                raise Conflict(f"the job {user['id']} needs the file {identifier}", code="file_in_use")
            if connection.execute("DELETE FROM files WHERE id = ?", (identifier,)).rowcount == 0:
                raise missing_file(identifier)

    def add_job(self, record: JobRecord, event: Event) -> JobRecord:
        """Record a new job. Raises `NotFound` with the parameter whose file does not exist."""
        with self._transaction() as connection:
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
        with self._transaction() as connection:
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
    ) -> list[JobRecord]:
        """Jobs by age, beginning after the id `after`, which need not exist.

        Only those of `status`, whose metadata have every pair of `metadata`, or that have none at all.
        """
        query = _Query("jobs", order)
        query.after(after)
        if status is not None:
            query.where("status = ?", status.label)
        for key, value in (metadata or {}).items():
            query.where("EXISTS (SELECT 1 FROM json_each(metadata) WHERE key = ? AND value = ?)", key, value)
        if without_metadata:
            query.where("metadata IS NULL")
        with self._transaction() as connection:
            return [job_of(row) for row in query.rows(connection, limit)]

    def change_job(
        self,
        identifier: str,
        *,
        events: Iterable[Event] = (),
        results: Iterable[FileRecord] = (),
        unpublished: bytes | object | None = _KEPT,
        **changes: Any,
    ) -> JobRecord:
        """Change a job's fields, tell `events`, record the files it gave and keep its vector: all of it or nothing.

        `unpublished` are the bytes of a complete vector that is not in the registry yet, None when it is.
        """
        with self._transaction() as connection:
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
        """The complete vector of a job that is to be put into the registry, if there is one."""
        with self._transaction() as connection:
            row = connection.execute("SELECT content FROM unpublished WHERE job = ?", (identifier,)).fetchone()
        return None if row is None else bytes(row["content"])

    def events(
        self, job: str, *, after: str | None = None, limit: int = -1, order: Literal["asc", "desc"] = "desc"
    ) -> list[EventRecord]:
        """What happened to a job, newest first, beginning after the id `after`, which need not exist."""
        query = _Query("events", order)
        query.where("job = ?", job)
        query.after(after)
        with self._transaction() as connection:
            return [event_of(row) for row in query.rows(connection, limit)]

    def _open(self) -> None:
        connection = self._connection
        connection.row_factory = sqlite3.Row
        try:
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")  # before the journal's mode: nothing is shared then
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
            self._check_version()
            if connection.execute("PRAGMA quick_check").fetchone()[0] != "ok":
                raise DatabaseRefused(f"{self._path} is damaged")
            with self._transaction():
                newest = [connection.execute(f"SELECT max(id) FROM {table}").fetchone()[0] for table in _TABLES]
        except sqlite3.Error as error:
            raise self._refusal(error) from error
        self._last_moment = max((moment_of(identifier) for identifier in newest if identifier is not None), default=0)

    def _check_version(self) -> None:
        """Make the tables of a new database, and refuse one that is not ours or that a newer version made."""
        with self._transaction() as connection:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            application = connection.execute("PRAGMA application_id").fetchone()[0]
            is_empty = connection.execute("SELECT 1 FROM sqlite_master").fetchone() is None
            if is_empty and version == 0:
                for statement in TABLES.split(";"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {VERSION}")
            elif application != APPLICATION_ID:
                raise DatabaseRefused(f"{self._path} is not a database of jobs")
            elif version > VERSION:
                raise DatabaseRefused(
                    f"{self._path} is of a newer version of this program ({version}; this one knows {VERSION})"
                )
        flush_folder(self._path.parent)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All that is done within is there afterwards, or nothing of it."""
        with self._lock:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    yield self._connection
                    self._connection.execute("COMMIT")
                except BaseException:
                    if self._connection.in_transaction:
                        self._connection.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                raise self._refusal(error) from error

    def _refusal(self, error: sqlite3.Error) -> DatabaseRefused:
        name = getattr(error, "sqlite_errorname", "")  # missing where the error is not SQLite's own
        if name in ("SQLITE_BUSY", "SQLITE_LOCKED"):
            return DatabaseRefused(f"another process has the database of jobs {self._path} open")
        if name in ("SQLITE_CORRUPT", "SQLITE_NOTADB"):
            return DatabaseRefused(f"{self._path} is damaged: {error}")
        return DatabaseRefused(f"{self._path} cannot be used: {error}")

    def _add_events(self, connection: sqlite3.Connection, job: str, events: Iterable[Event]) -> None:
        for event in events:
            record = EventRecord(
                self.new_id("ftevent"), int(time.time()), event.level, event.message, event.type, event.data
            )
            _insert(connection, "events", event_row(record, job))


_TABLES = ("files", "jobs", "events")


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
        """At most `limit` rows; all of them when it is negative."""
        conditions = " AND ".join(self._conditions) or "1"
        text = f"SELECT * FROM {self._table} WHERE {conditions} ORDER BY id {self._order} LIMIT ?"
        return connection.execute(text, (*self._values, limit)).fetchall()


def missing_file(identifier: str, param: str | None = None) -> NotFound:
    """There is no such file; `param` named it."""
    return NotFound(f"there is no file {identifier[:80]!r}", code="file_not_found", param=param)


def _find_job(connection: sqlite3.Connection, identifier: str) -> JobRecord | None:
    row = connection.execute("SELECT * FROM jobs WHERE id = ?", (identifier,)).fetchone()
    return None if row is None else job_of(row)


def _insert(connection: sqlite3.Connection, table: str, row: Mapping[str, Any]) -> None:
    names, places = ", ".join(row), ", ".join(f":{name}" for name in row)
    connection.execute(f"INSERT INTO {table} ({names}) VALUES ({places})", row)
