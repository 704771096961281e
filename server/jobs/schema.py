"""The database's tables: how records become rows, which columns are JSON, and ids."""

from __future__ import annotations

import dataclasses
import json
import re
import sqlite3
from collections.abc import Mapping
from typing import Any

from server.jobs.records import EventRecord, FileRecord, JobError, JobRecord, JobStatus, VectorReference
from vectors.errors import StoreCorrupt

VERSION = 1
"""`user_version` of a database with these tables."""

APPLICATION_ID = 0x74696C6A
"""`application_id`: distinguishes this database from other SQLite files."""

TABLES = """
CREATE TABLE files (
    id TEXT PRIMARY KEY,
    purpose TEXT NOT NULL,
    filename TEXT NOT NULL,
    num_bytes INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    sha256 TEXT NOT NULL
);
CREATE TABLE jobs (
    id TEXT PRIMARY KEY,
    created_at INTEGER NOT NULL,
    status TEXT NOT NULL,
    model TEXT NOT NULL,
    name TEXT NOT NULL,
    training_file TEXT NOT NULL,
    seed INTEGER NOT NULL,
    validation_file TEXT,
    retention_file TEXT,
    steering TEXT NOT NULL,
    metadata TEXT,
    started_at INTEGER,
    finished_at INTEGER,
    estimated_finish INTEGER,
    error TEXT,
    fine_tuned_vector TEXT,
    result_files TEXT NOT NULL,
    trained_tokens INTEGER,
    num_starts INTEGER NOT NULL,
    is_cancel_asked INTEGER NOT NULL
);
CREATE TABLE unpublished (
    job TEXT PRIMARY KEY REFERENCES jobs (id),
    content BLOB NOT NULL
);
CREATE TABLE events (
    id TEXT PRIMARY KEY,
    job TEXT NOT NULL REFERENCES jobs (id),
    created_at INTEGER NOT NULL,
    level TEXT NOT NULL,
    message TEXT NOT NULL,
    type TEXT NOT NULL,
    data TEXT
);
CREATE INDEX events_of_jobs ON events (job, id);
"""

_ID = re.compile(r"(file|ftjob|ftevent)-[0-9a-f]{24}")
_MOMENT_DIGITS = 14


def is_id(text: str, kind: str) -> bool:
    """True if `text` is a possible id of that kind (`file`, `ftjob`, `ftevent`)."""
    match = _ID.fullmatch(text)
    return match is not None and match[1] == kind


def id_of(kind: str, moment: int, random: str) -> str:
    """An id. `moment` in microseconds comes first, so that ids sort by age; `random` is 10 hex digits."""
    return f"{kind}-{moment:0{_MOMENT_DIGITS}x}{random}"


def moment_of(identifier: str) -> int:
    """When the id was created, in microseconds."""
    return int(identifier.partition("-")[2][:_MOMENT_DIGITS], 16)


def file_row(record: FileRecord) -> dict[str, Any]:
    """A file's columns."""
    return dataclasses.asdict(record)


def file_of(row: sqlite3.Row) -> FileRecord:
    """A file from its row."""
    return FileRecord(**dict(row))


def job_row(record: JobRecord) -> dict[str, Any]:
    """A job's columns."""
    row: dict[str, Any] = {name.name: getattr(record, name.name) for name in dataclasses.fields(record)}
    error, vector = record.error, record.fine_tuned_vector
    return row | {
        "status": record.status.label,
        "steering": _json(record.steering),
        "metadata": _json(record.metadata),
        "error": None if error is None else _json(dataclasses.asdict(error)),
        "fine_tuned_vector": None if vector is None else _json(dataclasses.asdict(vector)),
        "result_files": json.dumps(record.result_files),
    }


def job_of(row: sqlite3.Row) -> JobRecord:
    """A job from its row. Raises `StoreCorrupt` for a row that this program did not write so."""
    try:
        return _job_of(row)
    except (KeyError, ValueError, TypeError) as error:
        raise StoreCorrupt(f"the record of the job {str(row['id'])[:80]!r} is damaged") from error


def _job_of(row: sqlite3.Row) -> JobRecord:
    values = dict(row)
    error, vector = _parsed(values["error"]), _parsed(values["fine_tuned_vector"])
    values |= {
        "status": JobStatus[values["status"].upper()],
        "steering": _parsed(values["steering"]),
        "metadata": _parsed(values["metadata"]),
        "error": None if error is None else JobError(**error),
        "fine_tuned_vector": None if vector is None else VectorReference(**vector),
        "result_files": tuple(json.loads(values["result_files"])),
        "is_cancel_asked": bool(values["is_cancel_asked"]),
    }
    return JobRecord(**values)


def event_row(record: EventRecord, job: str) -> dict[str, Any]:
    """An event's columns."""
    values = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    return values | {"job": job, "data": _json(record.data)}


def event_of(row: sqlite3.Row) -> EventRecord:
    """An event from its row. Raises `StoreCorrupt` for a row that this program did not write so."""
    values = dict(row)
    del values["job"]
    try:
        return EventRecord(**values | {"data": _parsed(values["data"])})
    except ValueError as error:
        raise StoreCorrupt(f"the record of the event {values['id'][:80]!r} is damaged") from error


def _json(value: Mapping[str, Any] | None) -> str | None:
    return None if value is None else json.dumps(dict(value))


def _parsed(text: str | None) -> Any:
    return None if text is None else json.loads(text)
