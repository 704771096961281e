"""FileStore: the bytes of uploaded and resulting files, one file each, beside their records in the database.

    folder/{id}        the bytes, written once
    folder/{id}.part   bytes still being received

Bytes are written to a temporary file, flushed to disk, renamed, and then recorded; deletion removes the record first.
So a record always has its bytes, and bytes without a record were left by a crash and are removed at the next start. A
client's name for a file is text in the record, never part of a path.
"""

from __future__ import annotations

import hashlib
import io
import os
import time
import unicodedata
from pathlib import Path
from typing import BinaryIO, Literal

from server.errors import InvalidRequest
from server.jobs.database import JobDatabase, missing_file
from server.jobs.records import FileRecord
from server.jobs.schema import is_id
from vectors.durable import flush_folder, make_folder
from vectors.errors import StoreCorrupt

MAX_FILENAME_LENGTH = 255
"""The most characters kept of a client's name for a file."""

_CHUNK_BYTES = 1 << 20
_KEPT_EXTENSION = 16
_REFUSED = {"Cc": "control characters", "Cs": "half of a surrogate pair", "Zl": "line breaks", "Zp": "line breaks"}


class FileStore:
    """Files under `folder`; thread-safe. The process that has `database` open is the only user of `folder`."""

    def __init__(self, folder: Path, database: JobDatabase) -> None:
        self._folder = folder
        self._database = database
        make_folder(folder)
        self._remove_leftovers()

    def put(self, filename: str, purpose: str, content: bytes) -> FileRecord:
        """Store `content`. Raises `InvalidRequest` for an invalid name."""
        return self.put_stream(filename, purpose, io.BytesIO(content))

    def put_stream(self, filename: str, purpose: str, source: BinaryIO) -> FileRecord:
        """Store the rest of `source`, a chunk at a time."""
        record = self.write(filename, purpose, source)
        try:
            self._database.add_file(record)
        except BaseException:
            self.discard(record)
            raise
        return record

    def write(self, filename: str, purpose: str, source: BinaryIO) -> FileRecord:
        """Like `put_stream`, without recording it: the caller records it together with something else."""
        name = checked_filename(filename)
        identifier = self._database.new_id("file")
        path = self._folder / identifier
        partial = self._folder / f"{identifier}.part"
        digest = hashlib.sha256()
        num_bytes = 0
        try:
            with partial.open("xb") as file:
                while chunk := source.read(_CHUNK_BYTES):
                    digest.update(chunk)
                    num_bytes += len(chunk)
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
            flush_folder(self._folder)
        except BaseException:
            partial.unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            raise
        return FileRecord(identifier, purpose, name, num_bytes, int(time.time()), digest.hexdigest())

    def discard(self, record: FileRecord) -> None:
        """Remove the bytes of a file that was written and not recorded."""
        (self._folder / record.id).unlink(missing_ok=True)

    def get(self, identifier: str, param: str | None = None) -> FileRecord:
        """A file's record. Raises `NotFound`, which names `param`."""
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
        return self._database.files(after=after, limit=limit, order=order, purpose=purpose)

    def path(self, identifier: str) -> Path:
        """Where a file's bytes are. Raises `NotFound`."""
        return self._folder / self.get(identifier).id

    def read(self, identifier: str) -> tuple[str, bytes]:
        """A file's name and bytes. Raises `NotFound`, and `StoreCorrupt` if the bytes are not those recorded."""
        record = self.get(identifier)
        path = self._folder / record.id
        try:
            content = path.read_bytes()
        except OSError:
            self.get(identifier)  # it may have been deleted since it was looked up
            raise StoreCorrupt(f"{path} is missing or cannot be read") from None
        if hashlib.sha256(content).hexdigest() != record.sha256:
            raise StoreCorrupt(f"{path} is damaged: its content does not match its hash")
        return record.filename, content

    def delete(self, identifier: str) -> None:
        """Delete a file. Raises `NotFound`, and `Conflict` while an unfinished job needs it."""
        self._database.remove_file(identifier)
        (self._folder / identifier).unlink(missing_ok=True)

    def _remove_leftovers(self) -> None:
        known = {record.id for record in self._database.files()}
        for path in self._folder.iterdir():
            if path.name not in known and is_id(path.name.removesuffix(".part"), "file"):
                path.unlink()


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
