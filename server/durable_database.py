"""DurableDatabase: one SQLite file of this program. A committed transaction survives `kill -9` and power loss.

One connection behind a lock serves every thread, and no other process can open the file meanwhile. A file that is
damaged is moved aside when it is opened, and a new one takes its place: nothing of it is deleted.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Self

from vectors.durable import PRIVATE_FILE, PRIVATE_FOLDER, flush_folder, keep_file_private, make_folder
from vectors.errors import StorageFailed, StorageFull, VectorsError
from vectors.opened import OpenedPaths
from vectors.quarantine import FOLDER, Quarantine

_log = logging.getLogger(__name__)

PARTS = ("", "-wal", "-shm", "-journal")
"""What SQLite adds to the name of a database for the files beside it."""


class DatabaseRefused(VectorsError):
    """The database cannot be opened, read or written; the message names the file and says why."""


class DatabaseDamaged(DatabaseRefused):
    """The file is damaged, or no database at all."""


class DurableDatabase:
    """The tables under `path`; thread-safe. `close` it (or use it as a context) to let others open it.

    A subclass declares the tables. Opening raises `DatabaseRefused` when another process has the file open, and for one
    of a newer version of this program. A damaged file raises `DatabaseDamaged` without `moves_damaged`. Every
    transaction may raise `DatabaseDamaged`, `StorageFull` and `StorageFailed`, of which `StorageGone` while the file is
    not where it was opened; then it changed nothing, and the next one is tried anew.
    """

    kind: ClassVar[str]
    """Its name in errors: `database of jobs`."""
    tables: ClassVar[str]
    """The statements that create the tables of a new database."""
    version: ClassVar[int]
    """`user_version` of a database with these tables."""
    application_id: ClassVar[int]
    """Distinguishes this database from any other SQLite file."""

    def __init__(self, path: Path, *, moves_damaged: bool = True) -> None:
        self._path = path
        self._lock = threading.RLock()
        self._opened = self._watched([])
        make_folder(path.parent, mode=PRIVATE_FOLDER)
        try:
            self._connect()
        except DatabaseDamaged as error:
            if not moves_damaged:
                raise
            aside = self._move_aside()
            _log.error("%s; it was moved to %s, and the server begins a new one", error, aside)
            self._connect()

    def _connect(self) -> None:
        path = self._path
        try:
            path.touch(mode=PRIVATE_FILE)  # SQLite's files beside it get the same mode
            for part in PARTS:
                keep_file_private(path.with_name(path.name + part))
            # waiting is pointless: the other process keeps the file as long as it runs
            self._connection = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
        except OSError as error:
            raise DatabaseRefused(f"{path}: {error.strerror or error}") from error
        except sqlite3.Error as error:
            raise DatabaseRefused(f"{path}: {error}") from error
        try:
            self._open()
        except StorageFailed as error:
            self._connection.close()
            raise DatabaseRefused(f"cannot use {path}: {error}") from error
        except BaseException:
            self._connection.close()
            raise
        self._opened = self._watched(self._files())

    def _watched(self, paths: list[Path]) -> OpenedPaths:
        return OpenedPaths(f"the {self.kind}", self._path.parent, paths)

    def _files(self) -> list[Path]:
        paths = [self._path.with_name(self._path.name + part) for part in PARTS]
        return [path for path in paths if path.exists()]

    def _move_aside(self) -> Path:
        """Move the damaged file, and those beside it, to the quarantine; returns where it is now."""
        quarantine = Quarantine(self._path.parent / FOLDER)
        aside, *_ = [quarantine.take(path) for path in self._files()]
        return aside

    def close(self) -> None:
        """Let other processes open the file."""
        with self._lock:
            self._connection.close()
            self._opened = self._watched([])

    def check_still_there(self) -> None:
        """Raise `StorageGone` while the file is not where it was opened."""
        self._opened.check()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Commit everything done within, or nothing."""
        with self._lock:
            self._opened.check()
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

    def _open(self) -> None:
        connection = self._connection
        connection.row_factory = sqlite3.Row
        try:
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")  # before WAL: no shared memory is used then
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
            self._check_version()
            if connection.execute("PRAGMA quick_check").fetchone()[0] != "ok":
                raise DatabaseDamaged(f"{self._path} is damaged")
            self._read_state()
        except sqlite3.Error as error:
            raise self._refusal(error) from error

    def _read_state(self) -> None:
        """Read what a subclass keeps in memory from the database just opened; nothing by default."""

    def _check_version(self) -> None:
        """Create the tables of a new database, and refuse one that is not ours or that a newer version wrote."""
        with self.transaction() as connection:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            application = connection.execute("PRAGMA application_id").fetchone()[0]
            is_empty = connection.execute("SELECT 1 FROM sqlite_master").fetchone() is None
            if is_empty and version == 0:
                for statement in self.tables.split(";"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA application_id = {self.application_id}")
                connection.execute(f"PRAGMA user_version = {self.version}")
            elif application != self.application_id:
                raise DatabaseRefused(f"{self._path} is not a {self.kind}")
            elif version > self.version:
                raise DatabaseRefused(
                    f"{self._path} was written by a newer version of this program "
                    f"(format {version}; this version reads {self.version})"
                )
        flush_folder(self._path.parent)

    def _refusal(self, error: sqlite3.Error) -> DatabaseRefused | StorageFailed:
        name = getattr(error, "sqlite_errorname", "")  # missing when the error does not come from SQLite
        if name in ("SQLITE_BUSY", "SQLITE_LOCKED"):
            return DatabaseRefused(f"another process has the {self.kind} {self._path} open")
        if name.startswith("SQLITE_CORRUPT") or name == "SQLITE_NOTADB":
            return DatabaseDamaged(f"{self._path.name} is damaged: {error}")
        if name == "SQLITE_FULL":
            return StorageFull(f"the disk that holds the {self.kind} is full ({error}); nothing was changed")
        if name.startswith(("SQLITE_IOERR", "SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_NOMEM")):
            return StorageFailed(f"the disk that holds the {self.kind} failed ({error}); nothing was changed")
        return DatabaseRefused(f"cannot use {self._path}: {error}")
