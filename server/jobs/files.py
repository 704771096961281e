"""FileStore: the bytes of uploaded and resulting files, one file each, beside their records in the database.

    folder/{id}        the bytes, written once
    folder/{id}.part   bytes still being received

Bytes are written to a temporary file, flushed to disk, renamed, and then recorded; deletion removes the record first.
So a record always has its bytes, and bytes without a record were left by a crash, or their records are lost. They are
never deleted: those that are younger than the oldest record move to the quarantine at the next start, and older ones,
of another database, stay where they are. A client's name for a file is text in the record, never part of a path.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import time
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Literal

from server.errors import InvalidRequest
from server.jobs.database import JobDatabase, missing_file
from server.jobs.records import TRAINING_PURPOSE, FileRecord
from server.jobs.schema import file_row, is_id, moment_of
from vectors.durable import (
    PRIVATE_FILE,
    PRIVATE_FOLDER,
    flush_folder,
    keep_private,
    make_folder,
    storage_error,
    storing,
    write_file,
)
from vectors.errors import StorageFailed, StorageFull, StoreCorrupt
from vectors.finding import Finding
from vectors.opened import OpenedPaths
from vectors.quarantine import FOLDER, Quarantine

MAX_FILENAME_LENGTH = 255
"""The most characters kept of a client's name for a file."""

_CHUNK_BYTES = 1 << 20
_KEPT_EXTENSION = 16
_HOLDS = "the files"
_DOCTOR = "tiller doctor DATA_DIR --repair"
_REFUSED = {"Cc": "control characters", "Cs": "half of a surrogate pair", "Zl": "line breaks", "Zp": "line breaks"}


_log = logging.getLogger(__name__)


class FileStore:
    """Files under `folder`; thread-safe. The process that has `database` open is the only user of `folder`.

    When it opens it tidies the folder, unless `tidies` is False, and logs what is missing or was left aside. Every
    change may raise `StorageFull` and `StorageFailed`. Everything that clients ask for raises `StorageGone` while the
    folder is not where it was opened.
    """

    def __init__(self, folder: Path, database: JobDatabase, *, tidies: bool = True) -> None:
        self._folder = folder
        self._database = database
        self._quarantine = Quarantine(folder.parent / FOLDER)
        self._opened = OpenedPaths(_HOLDS, folder.parent, ())
        if not tidies:
            return
        make_folder(folder, mode=PRIVATE_FOLDER)
        self._opened = OpenedPaths(_HOLDS, folder.parent, [folder])
        keep_private(folder)
        try:
            with storing(_HOLDS):
                self._tidy()
        except StorageFailed:
            _log.warning("the files are served as they are")
        for finding in self.findings():
            _log.warning("%s", finding)

    def check_still_there(self) -> None:
        """Raise `StorageGone` while the folder is not where it was opened."""
        self._opened.check()

    def put(self, filename: str, purpose: str, content: bytes) -> FileRecord:
        """Store `content`. Raises `InvalidRequest` for an invalid name."""
        return self.put_stream(filename, purpose, io.BytesIO(content))

    def put_stream(self, filename: str, purpose: str, source: BinaryIO) -> FileRecord:
        """Store the rest of `source`, a chunk at a time."""
        record = self.write(filename, purpose, source)
        try:
            self._database.add_file(record)
        except BaseException as error:
            # where a flush failed the record may be found after a crash, and then it needs its bytes
            if isinstance(error, StorageFull) or not isinstance(error, StorageFailed):
                self.discard(record)
            raise
        return record

    def write(self, filename: str, purpose: str, source: BinaryIO) -> FileRecord:
        """Like `put_stream`, without recording it: the caller records it together with something else."""
        name = checked_filename(filename)
        self._opened.check()
        identifier = self._database.new_id("file")
        path = self._folder / identifier
        partial = self._folder / f"{identifier}.part"
        digest = hashlib.sha256()
        num_bytes = 0
        try:
            with (
                storing(_HOLDS),
                open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_FILE), "wb") as file,
            ):
                while chunk := source.read(_CHUNK_BYTES):
                    digest.update(chunk)
                    num_bytes += len(chunk)
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
                partial.replace(path)
                flush_folder(self._folder)
        except BaseException:
            _remove(partial)
            _remove(path)
            raise
        return FileRecord(identifier, purpose, name, num_bytes, int(time.time()), digest.hexdigest())

    def discard(self, record: FileRecord) -> None:
        """Remove the bytes of a file that was written and not recorded."""
        _remove(self._folder / record.id)

    def get(self, identifier: str, param: str | None = None) -> FileRecord:
        """A file's record. Raises `NotFound`, which names `param`."""
        self._opened.check()
        record = self._database.find_file(identifier)
        if record is None:
            raise missing_file(identifier, param)
        return record

    def list(
        self,
        *,
        after: str | None = None,
        limit: int = -1,
        order: Literal["asc", "desc"] = "asc",
        purpose: str | None = None,
    ) -> list[FileRecord]:
        """Files by age, after the id `after` (which need not exist)."""
        self._opened.check()
        return self._database.files(after=after, limit=limit, order=order, purpose=purpose)

    def path(self, identifier: str) -> Path:
        """Where a file's bytes are. Raises `NotFound`, and `StoreCorrupt` if they are not there."""
        path = self._folder / self.get(identifier).id
        if not path.is_file():
            self.get(identifier)  # it may have been deleted since it was looked up
            raise StoreCorrupt(f"{self._shown(path)} is missing")
        return path

    def read(self, identifier: str) -> tuple[str, bytes]:
        """A file's name and bytes. Raises `NotFound`, and `StoreCorrupt` if the bytes are not those recorded."""
        record = self.get(identifier)
        path = self._folder / record.id
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            self.get(identifier)  # it may have been deleted since it was looked up
            raise StoreCorrupt(f"{self._shown(path)} is missing") from None
        except OSError as error:
            raise storage_error(_HOLDS, error) from error
        if hashlib.sha256(content).hexdigest() != record.sha256:
            raise StoreCorrupt(f"{self._shown(path)} is damaged: its content does not match its hash")
        return record.filename, content

    def delete(self, identifier: str) -> None:
        """Delete a file. Raises `NotFound`, and `Conflict` while an unfinished job needs it."""
        self._opened.check()
        self._database.remove_file(identifier)
        _remove(self._folder / identifier)

    def findings(self, *, is_deep: bool = False) -> Sequence[Finding]:
        """What is wrong with the files. `is_deep`: read every one and check its hash."""
        found = []
        for record in self._strange():
            problem = f"the record of the file {record.id[:80]!r} is damaged: expected an id of a file"
            found.append(Finding(problem, f"{_DOCTOR} moves it aside"))
        for record in self._records():
            path = self._folder / record.id
            if not path.is_file():
                problem = "is missing"
            elif path.stat().st_size != record.num_bytes or (is_deep and not _is_content_of(record, path)):
                problem = "is damaged: its content does not match its hash"
            else:
                continue
            remedy = f"put it back from a copy, or let {_DOCTOR} move its record aside"
            found.append(Finding(f"{self._shown(path)} ({record.filename}) {problem}", remedy))
        unrecorded = self._unrecorded()
        if unrecorded:
            number = f"{len(unrecorded)} file{'' if len(unrecorded) == 1 else 's'}"
            problem = f"{number} in {self._folder.name} without a record: uploads cut short, or their records are lost"
            found.append(Finding(problem, f"{_DOCTOR} lists them again, under their ids"))
        return found

    def repair(self) -> Sequence[str]:
        """Record the files without a record, and move aside the records without their content; says what was done.

        Raises `StorageFailed` and `StorageFull`.
        """
        done = [self._drop(record, f"record-{number}") for number, record in enumerate(self._strange())]
        for record in self._records():
            path = self._folder / record.id
            if path.is_file() and _is_content_of(record, path):
                continue
            with storing(_HOLDS):
                if path.exists():
                    done.append(f"{self._shown(path)} was moved to {self._shown(self._quarantine.take(path))}")
            done.append(self._drop(record, record.id))
        for path in self._unrecorded():
            content = path.read_bytes()
            moment = moment_of(path.name) // 1_000_000
            digest = hashlib.sha256(content).hexdigest()
            self._database.add_file(FileRecord(path.name, TRAINING_PURPOSE, path.name, len(content), moment, digest))
            done.append(f"{self._shown(path)} is listed again, as {path.name}")
        return done

    def _drop(self, record: FileRecord, name: str) -> str:
        """Write a record to the quarantine, as `name`, and delete it; says so."""
        note = self._quarantine.folder / f"{name}.json"
        with storing(_HOLDS):
            make_folder(note.parent, mode=PRIVATE_FOLDER)
            write_file(note, json.dumps(file_row(record), indent=1).encode(), mode=PRIVATE_FILE)
        self._database.drop_file(record.id)
        return f"the record of the file {record.id[:80]!r} was moved to {self._shown(note)}"

    def _records(self) -> Sequence[FileRecord]:
        """The records whose ids can be names of files."""
        return [record for record in self._database.files() if is_id(record.id, "file")]

    def _strange(self) -> Sequence[FileRecord]:
        """The records that this program did not write: their ids may be anything, paths too."""
        return [record for record in self._database.files() if not is_id(record.id, "file")]

    def _tidy(self) -> None:
        """Remove uploads that were cut short, put back what a record needs, and move aside what has no record."""
        for path in self._folder.iterdir():
            if path.name.endswith(".part") and is_id(path.name.removesuffix(".part"), "file"):
                path.unlink()
        for record in self._records():
            path = self._folder / record.id
            for copy in () if path.exists() else self._quarantine.copies(record.id):
                if copy.is_file() and _is_content_of(record, copy):
                    copy.rename(path)
                    _log.warning("%s was put back from %s", self._shown(path), self._shown(copy))
                    break
        oldest = self._database.oldest_moment()
        for path in self._unrecorded():
            if oldest is None or moment_of(path.name) < oldest:
                continue
            aside = self._quarantine.take(path)
            _log.warning("%s has no record and was moved to %s", self._shown(path), self._shown(aside))

    def _unrecorded(self) -> Sequence[Path]:
        if not self._folder.is_dir():
            return []
        known = {record.id for record in self._records()}
        return sorted(path for path in self._folder.iterdir() if path.name not in known and is_id(path.name, "file"))

    def _shown(self, path: Path) -> str:
        """A path as messages show it: within the data folder."""
        return path.relative_to(self._folder.parent).as_posix()


def _is_content_of(record: FileRecord, path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == record.sha256
    except OSError:
        return False


def _remove(path: Path) -> None:
    """Remove a file that no record has; one that the disk does not let go is found at the next start."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def checked_filename(name: str) -> str:
    """`name` as stored: one line of text, shortened before its extension. Raises `InvalidRequest`."""
    if not name.strip():
        raise InvalidRequest("file: expected a file name, got an empty one", code="invalid_value", param="file")
    for character in name:
        refused = _REFUSED.get(unicodedata.category(character))
        if refused is not None:
            raise InvalidRequest(f"file: the file name contains {refused}", code="invalid_value", param="file")
    if len(name) <= MAX_FILENAME_LENGTH:
        return name
    stem, dot, extension = name.rpartition(".")
    ending = dot + extension if stem and len(extension) <= _KEPT_EXTENSION else ""
    return name[: MAX_FILENAME_LENGTH - len(ending)] + ending
