"""The database of jobs: what is written is read back, all or nothing, and a file that cannot be used says so."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from server.durable_database import DatabaseDamaged, DatabaseRefused
from server.errors import Conflict, NotFound
from server.jobs.database import JobDatabase
from server.jobs.records import Event, FileRecord, JobError, JobRecord, JobStatus, VectorReference
from server.jobs.schema import is_id

ROOT = Path(__file__).parents[3]


def add_file(database: JobDatabase, filename: str = "data.jsonl", purpose: str = "fine-tune") -> FileRecord:
    """A recorded file without bytes."""
    record = FileRecord(database.new_id("file"), purpose, filename, 3, 1_700_000_000, "0" * 64)
    database.add_file(record)
    return record


def job(database: JobDatabase, training_file: str, **fields: object) -> JobRecord:
    """A queued job, not recorded yet."""
    values: dict[str, object] = {"model": "tiny", "name": "honest", "seed": 7} | fields
    return JobRecord(
        id=database.new_id("ftjob"),
        created_at=1_700_000_000,
        status=JobStatus.QUEUED,
        training_file=training_file,
        **values,  # type: ignore[arg-type]
    )


@pytest.fixture
def database(tmp_path: Path) -> JobDatabase:
    return JobDatabase(tmp_path / "jobs.sqlite")


def test_records_come_back_as_they_went(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "jobs.sqlite"
    with JobDatabase(path) as database:
        file = add_file(database, "données ✓.jsonl")
        full = job(
            database,
            file.id,
            validation_file=file.id,
            retention_file=file.id,
            steering={"layers": [1, 2], "scales": "auto", "split": {"train": 0.5}},
            metadata={'a"b': "", "é": "ü"},
        )
        plain = job(database, file.id)
        for record in (full, plain):
            assert database.add_job(record, Event("made")) == record
        changed = database.change_job(
            full.id,
            status=JobStatus.FAILED,
            error=JobError("invalid_method", "wrong", "method.steering.layers"),
            fine_tuned_vector=VectorReference("honest", "0" * 64),
            result_files=(file.id,),
            trained_tokens=2**40,
            num_starts=2,
            is_cancel_asked=True,
            events=[Event("told", "warn", "metrics", {"best": None, "phase": "sweep"})],
        )
    with JobDatabase(path) as database:
        assert database.find_file(file.id) == file
        assert database.find_job(full.id) == changed
        assert database.jobs() == [plain, changed]
        last, first = database.events(full.id)
        assert (first.message, first.level, first.type, first.data) == ("made", "info", "message", None)
        assert (last.level, last.type, last.data) == ("warn", "metrics", {"best": None, "phase": "sweep"})
        assert is_id(last.id, "ftevent")
        with sqlite3.connect(path, timeout=0) as other, pytest.raises(sqlite3.OperationalError):
            other.execute("SELECT * FROM jobs")
        other.close()


def test_ids_sort_by_age_whatever_the_clock_does(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    with JobDatabase(path) as database:
        ids = [database.new_id("file") for _ in range(1000)]
        far = FileRecord(f"file-{2**55:014x}{'0' * 10}", "fine-tune", "x", 1, 1, "0" * 64)  # a clock that was ahead
        database.add_file(far)
    with JobDatabase(path) as database:
        ids += [far.id, *(database.new_id("file") for _ in range(10))]
    assert ids == sorted(set(ids))


def test_lists_come_in_pages(database: JobDatabase) -> None:
    with database:
        files = [add_file(database, purpose=purpose) for purpose in ("fine-tune", "fine-tune-results") * 3]
        assert database.files() == files
        assert database.files(order="desc", limit=2) == files[:3:-1]
        assert database.files(after=files[1].id, limit=2) == files[2:4]
        assert database.files(after=files[1].id, order="desc") == files[:1]
        assert database.files(purpose="fine-tune") == files[::2]
        database.remove_file(files[1].id)
        assert database.files(after=files[1].id) == files[2:], "what was deleted meanwhile is still a place"
        metadata = [None, {"a": "1"}, {"a": "1", "b": ""}, {"a": "2"}, {}]
        jobs = [job(database, files[0].id, metadata=entry) for entry in metadata]
        for record in jobs:
            database.add_job(record, Event("made"))
        assert database.jobs(metadata={"a": "1"}) == [jobs[2], jobs[1]]
        assert database.jobs(metadata={"a": "1", "b": ""}) == [jobs[2]]
        assert database.jobs(metadata={"a' OR 1": "1"}) == []
        assert database.jobs(without_metadata=True) == [jobs[0]]
        assert database.jobs(after=jobs[3].id, limit=2) == [jobs[2], jobs[1]]
        database.change_job(jobs[0].id, events=[Event(str(number)) for number in range(5)])
        events = database.events(jobs[0].id)
        assert [event.message for event in events] == ["4", "3", "2", "1", "0", "made"]
        assert database.events(jobs[0].id, after=events[1].id, limit=2) == events[2:4]


def test_a_change_is_whole_or_nothing(database: JobDatabase) -> None:
    with database:
        file = add_file(database)
        record = database.add_job(job(database, file.id), Event("made"))
        with pytest.raises(DatabaseRefused):  # the file is recorded already, which is the last thing to fail
            database.change_job(
                record.id, status=JobStatus.RUNNING, unpublished=b"x", events=[Event("begins")], results=[file]
            )
        assert database.find_job(record.id) == record
        assert database.unpublished(record.id) is None
        assert len(database.events(record.id)) == 1
        with pytest.raises(NotFound) as missing:
            database.add_job(job(database, file.id, validation_file=database.new_id("file")), Event("made"))
        assert (missing.value.param, missing.value.code) == ("validation_file", "file_not_found")
        assert database.jobs() == [record]


def test_a_job_goes_only_where_its_status_allows(database: JobDatabase) -> None:
    with database:
        record = database.add_job(job(database, add_file(database).id), Event("made"))
        with pytest.raises(AssertionError):
            database.change_job(record.id, status=JobStatus.SUCCEEDED)
        database.change_job(record.id, status=JobStatus.CANCELLED)
        for status in JobStatus:
            assert status.value.endswith(".")
            if status is not JobStatus.CANCELLED:
                with pytest.raises(AssertionError):
                    database.change_job(record.id, status=status)


@pytest.mark.parametrize("role", ["training_file", "validation_file", "retention_file", "negative_file"])
def test_a_file_stays_as_long_as_a_job_needs_it(database: JobDatabase, role: str) -> None:
    with database:
        other, file = add_file(database), add_file(database)
        needed: dict[str, Any] = {"steering": {role: file.id}} if role == "negative_file" else {role: file.id}
        record = job(database, **{"training_file": other.id} | needed)
        assert file.id in record.files.values()
        database.add_job(record, Event("made"))
        for status in (None, JobStatus.RUNNING):
            if status is not None:
                database.change_job(record.id, status=status)
            with pytest.raises(Conflict) as conflict:
                database.remove_file(file.id)
            assert conflict.value.code == "file_in_use"
        database.change_job(record.id, status=JobStatus.CANCELLED)
        database.remove_file(file.id)
        with pytest.raises(NotFound):
            database.remove_file(file.id)


def test_unpublished_bytes_are_kept_until_they_are_taken_back(database: JobDatabase) -> None:
    with database:
        record = database.add_job(job(database, add_file(database).id), Event("made"))
        database.change_job(record.id, unpublished=b"\0vector")
        database.change_job(record.id, num_starts=1)
        assert database.unpublished(record.id) == b"\0vector"
        database.change_job(record.id, unpublished=None)
        assert database.unpublished(record.id) is None


def test_many_threads_write_at_once(database: JobDatabase) -> None:
    with database:
        record = database.add_job(job(database, add_file(database).id), Event("made"))

        def tell(name: int) -> None:
            for number in range(20):
                database.change_job(record.id, events=[Event(f"{name} {number}")])
                add_file(database)

        threads = [threading.Thread(target=tell, args=(name,)) for name in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        messages = [event.message for event in database.events(record.id, order="asc")][1:]
        assert len(messages) == 160
        for name in range(8):
            own = [message for message in messages if message.startswith(f"{name} ")]
            assert own == [f"{name} {number}" for number in range(20)]


def write_noise(path: Path) -> None:
    """Overwrite everything behind the first page with noise."""
    content = bytearray(path.read_bytes())
    content[4096:] = os.urandom(len(content) - 4096)
    path.write_bytes(content)


def spoil_last_page(path: Path) -> None:
    """A page that nothing reads when the database is opened."""
    content = bytearray(path.read_bytes())
    content[-4096:-4000] = os.urandom(96)
    path.write_bytes(content)


def put_another_there(path: Path) -> None:
    """A database that is not ours."""
    path.unlink()
    execute(path, "CREATE TABLE t (x)")


def put_a_folder_there(path: Path) -> None:
    path.unlink()
    path.mkdir()


def test_a_damaged_database_is_moved_aside_and_a_new_one_begun(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, spoil in (
        ("text", lambda path: path.write_bytes(b"this is no database " * 300)),
        ("cut", lambda path: os.truncate(path, 5000)),
        ("noise", write_noise),
        ("one page", spoil_last_page),
    ):
        path = tmp_path / name / "jobs.sqlite"
        with JobDatabase(path) as database:
            database.add_job(job(database, add_file(database).id), Event("made"))
        spoil(path)
        damaged = path.read_bytes()
        with pytest.raises(DatabaseDamaged):
            JobDatabase(path, moves_damaged=False)
        assert path.read_bytes() == damaged
        with JobDatabase(path) as database:
            assert (database.jobs(), database.files()) == ([], [])
            add_file(database)
        assert (path.parent / "quarantine" / path.name).read_bytes() == damaged
        assert f"it was moved to {path.parent / 'quarantine' / path.name}" in caplog.text


def test_what_cannot_be_used_is_named(tmp_path: Path) -> None:
    for name, words, spoil in (
        ("newer", "newer version", lambda path: execute(path, "PRAGMA user_version = 99")),
        ("foreign", "no", put_another_there),
        ("folder", "cannot", put_a_folder_there),
    ):
        path = tmp_path / f"{name}.sqlite"
        with JobDatabase(path) as database:
            database.add_job(job(database, add_file(database).id), Event("made"))
        spoil(path)
        with pytest.raises(DatabaseRefused) as refused:
            JobDatabase(path)
        assert str(path) in str(refused.value)
        assert words in str(refused.value)


def execute(path: Path, statement: str) -> None:
    """Change a database behind the program's back."""
    connection = sqlite3.connect(path)
    connection.execute(statement)
    connection.commit()
    connection.close()


def test_one_process_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    program = f"from pathlib import Path; from server.jobs.database import *; JobDatabase(Path({str(path)!r}))"
    with JobDatabase(path):
        for attempt in (lambda: JobDatabase(path), lambda: run(program)):
            with pytest.raises(DatabaseRefused, match="another process"):
                attempt()
    run(program)


def run(program: str) -> None:
    """Run `program` in another process; its refusal is raised here."""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, encoding="utf-8", check=False)
    if "DatabaseRefused" in done.stderr:
        raise DatabaseRefused(done.stderr)
    assert done.returncode == 0, done.stderr


def test_a_closed_database_refuses(database: JobDatabase) -> None:
    database.close()
    with pytest.raises(DatabaseRefused):
        database.jobs()
