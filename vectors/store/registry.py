"""VectorStore: names -> immutable revisions, swapped atomically and kept durably on disk; `layout` draws the folder.

Every file is written to a temporary file, flushed to disk and renamed into place, objects before the name that refers
to them. So a name always points to complete content, and acknowledged changes survive a kill or a power loss. Vectors
already handed out stay valid when their name is deleted.

A change that the disk refuses is undone, and the next one is tried as if it had not been. Damage costs only what is
damaged: its use is refused, and everything else is served. Nothing is deleted but what a caller removes and what a
write of this store left unfinished; other files of no name are moved aside, and only while the store knows that all its
names are there (see `generation`).

Changes are serialised by one lock. Readers take none: the index of names is replaced, never modified, so reading never
waits for another thread's writes.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar

from vectors.durable import PRIVATE_FILE, PRIVATE_FOLDER, flush_folder, keep_private, make_folder, replace_file, storing
from vectors.errors import (
    RevisionMismatch,
    StorageFailed,
    StorageFull,
    StoreCorrupt,
    StoreLocked,
    VectorExists,
    VectorNotFound,
)
from vectors.formats.safetensors import encode_safetensors
from vectors.opened import OpenedPaths
from vectors.store.generation import Generation, file_checksum
from vectors.store.inspection import Inspection, findings_of, inspect
from vectors.store.layout import HOLDS, StoreLayout
from vectors.store.records import NameRecord, RevisionRecord, file_stem
from vectors.store.repair import put_back
from vectors.vector import SteeringVector
from vectors.vocabulary import check_name

_NUM_CACHED_VECTORS = 512

_log = logging.getLogger(__name__)

_Read = TypeVar("_Read")


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


class VectorStore:
    """A registry of vectors under `root`; thread-safe. `close` it (or use it as a context manager) to let others open
    it.

    Raises `StoreLocked` when another process has it open. What is damaged or was left aside is logged when it opens.
    Every change may raise `StoreLocked` once it is closed, and `StorageFull` or `StorageFailed`. Everything raises
    `StorageGone` while the folder is not where it was opened.
    """

    def __init__(self, root: Path) -> None:
        self._layout = layout = StoreLayout(root)
        for folder in (layout.objects, layout.names):
            make_folder(folder, mode=PRIVATE_FOLDER)
        self._lock_file = layout.lock.open("w")
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock_file.close()
            raise StoreLocked(f"another process has the vector store {root} open") from None
        self._lock = threading.RLock()
        self._opened = OpenedPaths(HOLDS, root.parent, (root, layout.lock, layout.objects, layout.names))
        self._load = lru_cache(_NUM_CACHED_VECTORS)(lambda revision: layout.read_object(revision)[1])
        self._unsettled: set[str] = set()
        """Names whose files may not be what this store says, since the disk refused to make a change durable."""
        try:
            keep_private(root)
            found = inspect(layout)
            self._names: Mapping[str, NameRecord] = found.names
            self._damaged: Mapping[str, str] = found.damaged_names
            """Names whose files cannot be read, and why."""
            self._parts = found.parts
            self._generation = self._tidy(found)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let other processes open the store; this one cannot change anything afterwards."""
        with self._lock:
            self._lock_file.close()

    def check_still_there(self) -> None:
        """Raise `StorageGone` while the folder is not where it was opened."""
        self._opened.check()

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
        with self._changing():
            known = self._names.get(name)
            if if_none_match and (known is not None or name in self._damaged):
                raise RevisionMismatch(f"vector {name!r} already exists")
            self._check_match(name, known, if_match)
            if known is not None and known.current == record.revision and self._is_readable(record.revision):
                return StoredVector(name, vector, known.find(name, None), known.history), False
            older = known.history if known is not None else ()
            history = (record, *(other for other in older if other.revision != record.revision))
            try:
                self._write_object(record.revision, content)
                self._point(name, NameRecord(record.revision, history))
            except BaseException:
                if name not in self._unsettled:  # else the file of the name may refer to it
                    self._remove_objects([record])
                raise
            return StoredVector(name, vector, record, history), known is None

    def create(self, name: str, vector: SteeringVector) -> StoredVector:
        """Like `put`, for a free name; otherwise raises `VectorExists`."""
        try:
            return self.put(name, vector, if_none_match=True)[0]
        except RevisionMismatch:
            raise VectorExists(name) from None

    def change(self, name: str, changes: Mapping[str, Any], *, if_match: str | None = None) -> StoredVector:
        """Put the current vector of `name` with other defaults or descriptions; the directions stay."""
        with self._changing():
            current = self.get(name)
            return self.put(name, current.vector.with_defaults(**changes), if_match=if_match)[0]

    def get(self, name: str, revision_prefix: str | None = None) -> StoredVector:
        """The current revision of `name`, or the one whose hash begins so.

        Raises `VectorNotFound`, `RevisionNotFound`, `InvalidRevision`, `InvalidVectorName`, `StoreCorrupt`, and
        `StorageFailed` where the system lacks what it needs to read.
        """

        def read() -> StoredVector:
            known = self._record(name)
            record = known.find(name, revision_prefix)
            with _told_of(name, record):
                return StoredVector(name, self._load(record.revision), record, known.history)

        return self._reading(read)

    def content(self, name: str, revision_prefix: str | None = None) -> bytes:
        """The canonical file of a revision. Raises what `get` raises."""

        def read() -> bytes:
            record = self._record(name).find(name, revision_prefix)
            with _told_of(name, record):
                return self._layout.read_object(record.revision)[0]

        return self._reading(read)

    def history(self, name: str) -> tuple[RevisionRecord, ...]:
        """Every revision of `name`, newest first."""
        self._opened.check()
        return self._record(name).history

    def current_records(self) -> dict[str, RevisionRecord]:
        """The current revision of every name whose record is whole, in order of names; no vector is read."""
        self._opened.check()
        names = self._names
        return {name: names[name].find(name, None) for name in sorted(names)}

    def names(
        self, *, after: str | None = None, limit: int | None = None, order: Literal["asc", "desc"] = "asc"
    ) -> list[str]:
        """Names in order, damaged ones included, after `after` (which need not exist)."""
        self._opened.check()
        names = sorted({*self._names, *self._damaged}, reverse=order == "desc")
        if after is not None:
            names = [name for name in names if (name > after if order == "asc" else name < after)]
        return names if limit is None else names[:limit]

    def rollback(self, name: str, revision_prefix: str, *, if_match: str | None = None) -> StoredVector:
        """Point `name` at another revision of its history. Raises what `get` raises."""
        with self._changing():
            known = self._record(name)
            self._check_match(name, known, if_match)
            record = known.find(name, revision_prefix)
            with _told_of(name, record):
                vector = self._load(record.revision)
            if record.revision != known.current:
                self._point(name, NameRecord(record.revision, known.history))
            return StoredVector(name, vector, record, known.history)

    def remove(self, name: str, *, if_match: str | None = None) -> None:
        """Delete `name` and every revision that no other name has. Vectors already handed out stay usable.

        It needs no room on the disk. A damaged record of a name goes into quarantine.
        """
        with self._changing():
            if name not in self._damaged:
                self._record(name)
            known = self._names.get(name)
            self._check_match(name, known, if_match)
            following = self._announce(self._parts[name], needs_room=False)
            path = self._layout.name_path(name)
            if known is None:
                self._layout.quarantine.take(path)
            else:
                path.unlink()
            self._flush_names(name)
            self._damaged = {other: reason for other, reason in self._damaged.items() if other != name}
            self._names = {other: record for other, record in self._names.items() if other != name}
            self._settle_generation(name, None, following)
            if known is not None:
                self._remove_objects(known.history)

    def _record(self, name: str) -> NameRecord:
        check_name(name)
        known = self._names.get(name)
        if known is None:
            damage = self._damaged.get(name)
            if damage is not None:
                raise StoreCorrupt(f"vector {name!r}: {damage}; put the vector again")
            raise VectorNotFound(name)
        return known

    def _check_match(self, name: str, known: NameRecord | None, if_match: str | None) -> None:
        if if_match is None:
            return
        if known is None:
            is_damaged = name in self._damaged
            raise RevisionMismatch(f"vector {name!r} {'is damaged' if is_damaged else 'does not exist'}")
        if if_match not in ("*", known.current):
            raise RevisionMismatch(f"the current revision of {name!r} is {known.current}")

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """Hold the lock for a change, and bring the files back to what this store says where they may differ.

        Raises `StoreLocked` if this store was closed, since another process may now own the files.
        """
        with self._lock:
            if self._lock_file.closed:
                raise StoreLocked("the vector store was closed")
            self._opened.check()
            with storing(HOLDS):
                for name in sorted(self._unsettled):
                    self._settle(name)
                yield

    def _settle(self, name: str) -> None:
        known, path = self._names.get(name), self._layout.name_path(name)
        if known is not None:
            replace_file(path, known.encode(), mode=PRIVATE_FILE)
        elif name not in self._damaged:
            path.unlink(missing_ok=True)
        flush_folder(self._layout.names)
        self._unsettled.discard(name)

    def _write_object(self, revision: str, content: bytes) -> None:
        replace_file(self._layout.object_path(revision), content, mode=PRIVATE_FILE)
        flush_folder(self._layout.objects)

    def _point(self, name: str, record: NameRecord) -> None:
        content = record.encode()
        part = file_checksum(file_stem(name), content)
        following = self._announce(self._parts.get(name, 0) ^ part)
        path = self._layout.name_path(name)
        if name in self._damaged and path.exists():
            self._layout.quarantine.take(path)
        replace_file(path, content, mode=PRIVATE_FILE)
        self._flush_names(name)
        self._damaged = {other: reason for other, reason in self._damaged.items() if other != name}
        self._names = {**self._names, name: record}
        self._settle_generation(name, part, following)

    def _announce(self, change: int, *, needs_room: bool = True) -> Generation | None:
        """Write the generation of a change of names that is about to be made.

        Without `needs_room` a full disk is no reason not to make it: the store may then not know itself to be whole if
        it is killed before its next change.
        """
        if self._generation is None:
            return None
        following = self._generation.next(change)
        try:
            with storing(HOLDS):
                following.write(self._layout.generation)
        except StorageFull:
            if needs_room:
                raise
        return following

    def _settle_generation(self, name: str, part: int | None, following: Generation | None) -> None:
        self._generation = following
        self._parts = {other: known for other, known in self._parts.items() if other != name}
        if part is not None:
            self._parts[name] = part

    def _flush_names(self, name: str) -> None:
        """Make a change of `name` durable. If the disk refuses, the next change of the store first undoes it.

        The change may then exist or not if the process ends before. It was not acknowledged, and readers of this store
        do not see it.
        """
        try:
            flush_folder(self._layout.names)
        except BaseException:
            self._unsettled.add(name)
            raise

    def _remove_objects(self, records: Iterable[RevisionRecord]) -> None:
        """Remove the files of revisions that no name has; those that the disk does not let go are orphans."""
        kept = {record.revision for known in self._names.values() for record in known.history}
        for record in records:
            if record.revision not in kept:
                with contextlib.suppress(OSError):
                    self._layout.object_path(record.revision).unlink(missing_ok=True)

    def _reading(self, read: Callable[[], _Read]) -> _Read:
        """The result of `read`, repeated under the lock if it finds a file missing.

        A name and its files may have been deleted after it was looked up.
        """
        self._opened.check()
        try:
            return read()
        except StoreCorrupt:
            with self._lock:
                return read()

    def _is_readable(self, revision: str) -> bool:
        try:
            self._layout.read_object(revision)
        except StoreCorrupt:
            return False
        return True

    def _tidy(self, found: Inspection) -> Generation | None:
        """Remove unfinished writes, put back and move aside what may be, and log what is wrong; returns the generation.

        A disk that refuses to change is no reason not to open.
        """
        layout, generation = self._layout, found.generation
        if generation is not None:
            generation = generation.settled(found.checksum)
        try:
            with storing(HOLDS):
                for path in found.leftovers:
                    path.unlink()
                for line in put_back(layout, found):
                    _log.warning("%s", line)
                if found.is_whole:
                    for path in found.orphans:
                        aside = layout.shown(layout.quarantine.take(path))
                        _log.warning("%s belongs to no name and was moved to %s", layout.shown(path), aside)
                    found.orphans.clear()
                if found.is_new:
                    generation = Generation(0, found.checksum, found.checksum)
                    generation.write(layout.generation)
        except StorageFailed:
            _log.warning("the vector store opens as it is")
        for finding in findings_of(layout, found):
            _log.warning("%s", finding)
        return generation


@contextlib.contextmanager
def _told_of(name: str, record: RevisionRecord) -> Iterator[None]:
    """Say of which vector a damaged file is, and log it."""
    try:
        yield
    except StoreCorrupt as error:
        found = StoreCorrupt(
            f"vector {name!r}, revision {record.revision[:12]}: {error}; "
            "put the vector again, or roll back to another revision"
        )
        _log.error("%s", found)
        raise found from None
