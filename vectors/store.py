"""VectorStore: names -> immutable revisions, swapped atomically and kept durably on disk.

    root/lock                         held while a process has the store open
    root/objects/{revision}.safetensors   canonical content, written once
    root/names/{name}.json            the current revision and the history, newest first; a capital in the name is
                                      written ^ and its small letter, since some disks see no difference

Every file is written to a temporary file, flushed to disk and renamed into place, objects before the name that refers
to them. So a name always points to complete content, and acknowledged changes survive a kill or a power loss. Vectors
already handed out stay valid when their name is deleted.

Changes are serialised by one lock. Readers take none: the index of names is replaced, never modified, so reading never
waits for another thread's writes.
"""

from __future__ import annotations

import fcntl
import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar

from vectors.durable import flush_folder, make_folder, replace_file
from vectors.errors import (
    InvalidRevision,
    InvalidVector,
    InvalidVectorName,
    RevisionMismatch,
    RevisionNotFound,
    StoreCorrupt,
    StoreLocked,
    VectorExists,
    VectorNotFound,
)
from vectors.formats import ImportOptions
from vectors.formats.safetensors import decode_safetensors, encode_safetensors
from vectors.vector import SteeringVector
from vectors.vocabulary import MIN_REVISION_DIGITS, REVISION_PATTERN, check_name

_REVISION = re.compile(r"[0-9a-f]{64}")
_PREFIX = re.compile(REVISION_PATTERN)
_NUM_CACHED_VECTORS = 512

_Read = TypeVar("_Read")


@dataclass(frozen=True, slots=True)
class RevisionRecord:
    """One entry of a name's history. `created_at` in Unix seconds, `num_bytes` of the canonical file."""

    revision: str
    created_at: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class StoredVector:
    """A revision of a name with its content; stays valid whatever happens to the name.

    `history`: every revision of the name at that moment, newest first.
    """

    name: str
    vector: SteeringVector
    record: RevisionRecord
    history: tuple[RevisionRecord, ...]

    @property
    def revision(self) -> str:
        """The content's hash, 64 hex digits."""
        return self.record.revision


@dataclass(frozen=True, slots=True)
class _NameRecord:
    current: str
    history: tuple[RevisionRecord, ...]

    def find(self, name: str, prefix: str | None) -> RevisionRecord:
        if prefix is None:
            prefix = self.current
        prefix = prefix.lower()
        if _PREFIX.fullmatch(prefix) is None:
            raise InvalidRevision(
                f"{prefix[:80]!r} is not a revision: expected {MIN_REVISION_DIGITS} or more leading hex digits of one"
            )
        found = [record for record in self.history if record.revision.startswith(prefix)]
        if not found:
            raise RevisionNotFound(name, prefix)
        if len(found) > 1:
            raise InvalidRevision(f"revision {prefix!r} of {name!r} is ambiguous: {len(found)} revisions begin with it")
        return found[0]


class VectorStore:
    """A registry of vectors under `root`; thread-safe. `close` it (or use it as a context manager) to let others open
    it.

    Raises `StoreLocked` when another process has it open and `StoreCorrupt` for damaged files.
    """

    def __init__(self, root: Path) -> None:
        self._objects = root / "objects"
        self._names_folder = root / "names"
        for folder in (self._objects, self._names_folder):
            make_folder(folder)
        self._lock_file = (root / "lock").open("w")
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock_file.close()
            raise StoreLocked(f"another process has the vector store {root} open") from None
        self._lock = threading.RLock()
        self._load = lru_cache(_NUM_CACHED_VECTORS)(self._read_vector)
        try:
            self._remove_leftovers()
            self._names: Mapping[str, _NameRecord] = {
                _name_of(path.stem): self._read_name(path) for path in self._names_folder.glob("*.json")
            }
            self._remove_orphans()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let other processes open the store; this one cannot change anything afterwards."""
        with self._lock:
            self._lock_file.close()

    def __enter__(self) -> VectorStore:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def put(
        self, name: str, vector: SteeringVector, *, if_match: str | None = None, if_none_match: bool = False
    ) -> tuple[StoredVector, bool]:
        """Make `vector` the current revision of `name`; returns it and whether the name is new.

        Putting the current content again changes nothing. `if_match`: only if that is the current revision;
        `if_none_match`: only if the name is free; otherwise raises `RevisionMismatch`.
        """
        check_name(name)
        content = encode_safetensors(vector)
        record = RevisionRecord(vector.revision, int(time.time()), len(content))
        with self._lock:
            known = self._names.get(name)
            if if_none_match and known is not None:
                raise RevisionMismatch(f"vector {name!r} already exists")
            self._check_match(name, known, if_match)
            if known is not None and known.current == record.revision:
                return StoredVector(name, vector, known.find(name, None), known.history), False
            self._write(self._object_path(record.revision), content)
            older = known.history if known is not None else ()
            history = (record, *(other for other in older if other.revision != record.revision))
            self._point(name, _NameRecord(record.revision, history))
            return StoredVector(name, vector, record, history), known is None

    def create(self, name: str, vector: SteeringVector) -> StoredVector:
        """Like `put`, for a free name; otherwise raises `VectorExists`."""
        try:
            return self.put(name, vector, if_none_match=True)[0]
        except RevisionMismatch:
            raise VectorExists(name) from None

    def change(self, name: str, changes: Mapping[str, Any], *, if_match: str | None = None) -> StoredVector:
        """Put the current vector of `name` with other defaults or descriptions; the directions stay."""
        with self._lock:
            current = self.get(name)
            return self.put(name, current.vector.with_defaults(**changes), if_match=if_match)[0]

    def get(self, name: str, revision_prefix: str | None = None) -> StoredVector:
        """The current revision of `name`, or the one whose hash begins so.

        Raises `VectorNotFound`, `RevisionNotFound`, `InvalidRevision`, `InvalidVectorName`, `StoreCorrupt`.
        """

        def read() -> StoredVector:
            known = self._record(name)
            record = known.find(name, revision_prefix)
            return StoredVector(name, self._load(record.revision), record, known.history)

        return self._reading(read)

    def content(self, name: str, revision_prefix: str | None = None) -> bytes:
        """The canonical file of a revision."""
        return self._reading(lambda: self._read_object(self._record(name).find(name, revision_prefix).revision)[0])

    def history(self, name: str) -> tuple[RevisionRecord, ...]:
        """Every revision of `name`, newest first."""
        return self._record(name).history

    def current_records(self) -> dict[str, RevisionRecord]:
        """The current revision of every name, in order of names; no vector is read."""
        names = self._names
        return {name: names[name].find(name, None) for name in sorted(names)}

    def names(
        self, *, after: str | None = None, limit: int | None = None, order: Literal["asc", "desc"] = "asc"
    ) -> list[str]:
        """Names in order, after `after` (which need not exist)."""
        names = sorted(self._names, reverse=order == "desc")
        if after is not None:
            names = [name for name in names if (name > after if order == "asc" else name < after)]
        return names if limit is None else names[:limit]

    def rollback(self, name: str, revision_prefix: str, *, if_match: str | None = None) -> StoredVector:
        """Point `name` at another revision of its history."""
        with self._lock:
            known = self._record(name)
            self._check_match(name, known, if_match)
            record = known.find(name, revision_prefix)
            vector = self._load(record.revision)
            if record.revision != known.current:
                self._point(name, _NameRecord(record.revision, known.history))
            return StoredVector(name, vector, record, known.history)

    def remove(self, name: str, *, if_match: str | None = None) -> None:
        """Delete `name` and every revision that no other name has. Vectors already handed out stay usable."""
        with self._lock:
            known = self._record(name)
            self._check_match(name, known, if_match)
            self._check_open()
            self._name_path(name).unlink()
            self._flush(self._names_folder)
            self._names = {other: record for other, record in self._names.items() if other != name}
            kept = self._referenced()
            for record in known.history:
                if record.revision not in kept:
                    self._object_path(record.revision).unlink(missing_ok=True)

    def _record(self, name: str) -> _NameRecord:
        check_name(name)
        known = self._names.get(name)
        if known is None:
            raise VectorNotFound(name)
        return known

    def _check_match(self, name: str, known: _NameRecord | None, if_match: str | None) -> None:
        if if_match is None:
            return
        if known is None:
            raise RevisionMismatch(f"vector {name!r} does not exist")
        if if_match not in ("*", known.current):
            raise RevisionMismatch(f"the current revision of {name!r} is {known.current}")

    def _check_open(self) -> None:
        """Raise `StoreLocked` if this store was closed, since another process may now own the files."""
        if self._lock_file.closed:
            raise StoreLocked("the vector store was closed")

    def _object_path(self, revision: str) -> Path:
        return self._objects / f"{revision}.safetensors"

    def _name_path(self, name: str) -> Path:
        return self._names_folder / f"{_file_stem(name)}.json"

    def _point(self, name: str, record: _NameRecord) -> None:
        entry = {
            "current": record.current,
            "history": [
                {"revision": old.revision, "created_at": old.created_at, "bytes": old.num_bytes}
                for old in record.history
            ],
        }
        self._write(self._name_path(name), json.dumps(entry, indent=1).encode())
        self._names = {**self._names, name: record}

    def _write(self, path: Path, content: bytes) -> None:
        """Write `content` to `path` so that after any crash the file is whole or as it was."""
        self._check_open()
        replace_file(path, content)
        self._flush(path.parent)

    def _flush(self, folder: Path) -> None:
        """Make changes in `folder` durable; if the disk fails, the store takes no more changes.

        The change may then exist or not when the store is next opened. It was not acknowledged, and readers of this
        store do not see it.
        """
        try:
            flush_folder(folder)
        except BaseException:
            self.close()
            raise

    def _reading(self, read: Callable[[], _Read]) -> _Read:
        """The result of `read`, repeated under the lock if it finds a file missing.

        A name and its files may have been deleted after it was looked up.
        """
        try:
            return read()
        except StoreCorrupt:
            with self._lock:
                return read()

    def _read_vector(self, revision: str) -> SteeringVector:
        return self._read_object(revision)[1]

    def _read_object(self, revision: str) -> tuple[bytes, SteeringVector]:
        """A revision's file and the vector in it, whose hash is checked."""
        path = self._object_path(revision)
        try:
            content = path.read_bytes()
            vector = decode_safetensors(content, ImportOptions())
        except OSError:
            raise StoreCorrupt(f"{path} is missing or cannot be read") from None
        except InvalidVector as error:
            raise StoreCorrupt(f"{path} is damaged: {error}") from None
        if vector.revision != revision:
            raise StoreCorrupt(f"{path} is damaged: its content does not match its hash")
        return content, vector

    def _read_name(self, path: Path) -> _NameRecord:
        name = _name_of(path.stem)
        try:
            entry = json.loads(path.read_bytes())
            history = tuple(
                RevisionRecord(str(old["revision"]), int(old["created_at"]), int(old["bytes"]))
                for old in entry["history"]
            )
            record = _NameRecord(str(entry["current"]), history)
            check_name(name)
            if self._name_path(name) != path:
                raise ValueError(path.name)
            if not all(
                _REVISION.fullmatch(revision) for revision in (record.current, *(old.revision for old in history))
            ):
                raise ValueError(name)
            record.find(name, None)
        except (
            OSError,
            ValueError,
            OverflowError,
            RecursionError,
            KeyError,
            TypeError,
            InvalidVectorName,
            InvalidRevision,
            RevisionNotFound,
        ):
            raise StoreCorrupt(f"{path} is damaged") from None
        for old in history:
            stored = self._object_path(old.revision)
            if not stored.is_file() or stored.stat().st_size != old.num_bytes:
                raise StoreCorrupt(f"{stored}, a revision of {name!r}, is missing or incomplete")
        return record

    def _referenced(self) -> set[str]:
        return {record.revision for known in self._names.values() for record in known.history}

    def _remove_leftovers(self) -> None:
        for folder in (self._objects, self._names_folder):
            for path in folder.glob("*.tmp"):
                path.unlink()

    def _remove_orphans(self) -> None:
        kept = self._referenced()
        for path in self._objects.glob("*.safetensors"):
            if path.stem not in kept:
                path.unlink()


def _file_stem(name: str) -> str:
    return re.sub("[A-Z]", lambda capital: "^" + capital[0].lower(), name)


def _name_of(stem: str) -> str:
    return re.sub(r"\^([a-z])", lambda letter: letter[1].upper(), stem)
