"""Files: their bytes are whole or not there, and a client's name for one is never more than text."""

from __future__ import annotations

import io
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.errors import InvalidRequest, NotFound
from server.jobs.database import JobDatabase
from server.jobs.files import MAX_FILENAME_LENGTH, FileStore
from server.jobs.records import FileRecord
from vectors.errors import StorageFailed, StoreCorrupt


@pytest.fixture
def database(tmp_path: Path) -> Iterator[JobDatabase]:
    with JobDatabase(tmp_path / "jobs.sqlite") as database:
        yield database


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "files"


@pytest.fixture
def files(database: JobDatabase, folder: Path) -> FileStore:
    return FileStore(folder, database)


def test_bytes_come_back_as_they_went(files: FileStore, database: JobDatabase, folder: Path) -> None:
    contents = [b"a", b"\0" * 5_000_000, b"line\r\n" * 3]
    records = [files.put(f"{number}.jsonl", "fine-tune", content) for number, content in enumerate(contents)]
    again = FileStore(folder, database)
    for record, content in zip(records, contents, strict=True):
        assert again.get(record.id) == record
        assert again.read(record.id) == (record.filename, content)
        assert again.path(record.id).read_bytes() == content
        assert record.num_bytes == len(content)
    assert again.list() == records
    again.delete(records[1].id)
    assert again.list() == [records[0], records[2]]
    assert sorted(path.name for path in folder.iterdir()) == [records[0].id, records[2].id]
    for missing in (records[1].id, "file-", "../jobs.sqlite", "file-" + "0" * 24, ""):
        for call in (again.get, again.read, again.path, again.delete):
            with pytest.raises(NotFound):
                call(missing)


class Breaking(io.BytesIO):
    """A stream whose end never comes."""

    def read(self, size: int | None = -1) -> bytes:
        """Give one chunk, then fail."""
        if self.tell() > 0:
            raise OSError("the disk is gone")
        return super().read(1000)


def test_a_stream_that_breaks_leaves_nothing(files: FileStore, folder: Path) -> None:
    with pytest.raises(StorageFailed, match="gone"):
        files.put_stream("a.jsonl", "fine-tune", Breaking(b"x" * 5000))
    assert (files.list(), list(folder.iterdir())) == ([], [])


def test_a_record_that_cannot_be_written_leaves_no_bytes(tmp_path: Path, folder: Path) -> None:
    class Refusing(JobDatabase):
        def add_file(self, record: Any) -> None:
            raise RuntimeError("no")

    with Refusing(tmp_path / "other.sqlite") as database:
        with pytest.raises(RuntimeError):
            FileStore(folder, database).put("a", "fine-tune", b"x")
        assert list(folder.iterdir()) == []


def test_leftovers_are_moved_aside_at_the_start_and_nothing_else(
    files: FileStore, database: JobDatabase, folder: Path
) -> None:
    kept = files.put("a", "fine-tune", b"kept")
    unrecorded = files.write("b", "fine-tune-results", io.BytesIO(b"of a run that was killed"))
    (folder / f"{database.new_id('file')}.part").write_bytes(b"half")
    (folder / "README").write_bytes(b"of somebody else")
    assert (folder / unrecorded.id).exists()
    FileStore(folder, database)
    assert sorted(path.name for path in folder.iterdir()) == ["README", kept.id]
    assert [path.name for path in (folder.parent / "quarantine").iterdir()] == [unrecorded.id]


def test_files_of_a_lost_database_stay_and_can_be_listed_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "files"
    with JobDatabase(tmp_path / "jobs.sqlite") as database:
        names = [FileStore(folder, database).put(f"{number}.jsonl", "fine-tune", b"x" * number).id for number in (1, 2)]
    (tmp_path / "jobs.sqlite").rename(tmp_path / "aside")
    for _ in range(2):  # also when the new database is no longer new
        with JobDatabase(tmp_path / "jobs.sqlite") as database:
            files = FileStore(folder, database)
            files.put("later.jsonl", "fine-tune", b"later")
            assert set(names) <= {path.name for path in folder.iterdir()}
    assert "2 files in files without a record" in caplog.text
    with JobDatabase(tmp_path / "jobs.sqlite") as database:
        files = FileStore(folder, database)
        files.repair()
        assert [files.read(name) for name in names] == [(names[0], b"x"), (names[1], b"xx")]
        assert files.findings(is_deep=True) == []
    (tmp_path / "jobs.sqlite").unlink()
    (tmp_path / "aside").rename(tmp_path / "jobs.sqlite")
    with JobDatabase(tmp_path / "jobs.sqlite") as database:
        assert [FileStore(folder, database).read(name)[0] for name in names] == ["1.jsonl", "2.jsonl"]


def test_a_file_in_quarantine_is_put_back_when_a_record_has_it(
    files: FileStore, database: JobDatabase, folder: Path
) -> None:
    record = files.put("a", "fine-tune", b"kept")
    (folder.parent / "quarantine").mkdir()
    (folder / record.id).rename(folder.parent / "quarantine" / record.id)
    assert FileStore(folder, database).read(record.id) == ("a", b"kept")


def test_records_that_this_program_did_not_write_reach_no_other_file(
    files: FileStore, database: JobDatabase, folder: Path
) -> None:
    """Their ids are paths, and the files there are nobody's business."""
    outside = folder.parent / "outside"
    outside.write_bytes(b"of somebody else")
    database.add_file(FileRecord("../outside", "fine-tune", "x", 3, 0, "0"))
    again = FileStore(folder, database)
    assert ["'../outside' is damaged" in finding.problem for finding in again.findings(is_deep=True)] == [True]
    again.repair()
    assert outside.read_bytes() == b"of somebody else"
    assert (again.list(), again.findings()) == ([], [])


def test_files_are_their_owners_only(files: FileStore, database: JobDatabase, folder: Path) -> None:
    first = files.put("a", "fine-tune", b"kept")
    (folder / first.id).chmod(0o644)
    folder.chmod(0o755)
    second = FileStore(folder, database).put("b", "fine-tune", b"kept")
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (folder, folder / first.id, folder / second.id)]
    assert modes == [0o700, 0o600, 0o600]


def test_damage_is_told_and_not_read(files: FileStore, folder: Path) -> None:
    record = files.put("a", "fine-tune", b"kept")
    (folder / record.id).write_bytes(b"kepT")
    with pytest.raises(StoreCorrupt, match=record.id):
        files.read(record.id)
    (folder / record.id).unlink()
    with pytest.raises(StoreCorrupt, match=record.id):
        files.read(record.id)
    files.delete(record.id)


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "a\0b", "\x1b[2J", "a\u2028b", "a\x7f", "\ud800.jsonl", "a\x85"])
def test_names_that_no_line_can_show_are_refused(files: FileStore, folder: Path, name: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        files.put(name, "fine-tune", b"x")
    assert refused.value.param == "file"
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    "name",
    ["../../etc/passwd", "/etc/passwd", "..", "C:\\x\\y", "a/b.jsonl", "données ✓ 数据.jsonl", "a'; DROP TABLE files"],
)
def test_names_are_text(files: FileStore, tmp_path: Path, name: str) -> None:
    before = set(tmp_path.rglob("*"))
    record = files.put(name, "fine-tune", b"x")
    assert files.read(record.id) == (name, b"x")
    assert set(tmp_path.rglob("*")) - before == {tmp_path / "files" / record.id}


def test_long_names_are_shortened_before_their_extension(files: FileStore) -> None:
    for name, ending in (("x" * 5000 + ".jsonl", "x.jsonl"), ("y" * 5000, "yy"), ("a." + "b" * 400, "bb")):
        kept = files.put(name, "fine-tune", b"x").filename
        assert len(kept) == MAX_FILENAME_LENGTH
        assert kept.endswith(ending)
        assert kept[:50] == name[:50]
