"""DurableDatabase: one SQLite file of this program; what a transaction acknowledged survives `kill -9` and power loss.

One connection behind a lock serves every thread, and no other process can open the file meanwhile. It does not know
what the tables hold.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Self

from vectors.durable import flush_folder, make_folder
from vectors.errors import VectorsError


class DatabaseRefused(VectorsError):
    """The database cannot be opened, read or written; the message names the file and says why."""


class DurableDatabase:
    """The tables under `path`; thread-safe. `close` it (or use it as a context) to let others open it.

    A subclass says which tables. Every transaction may raise `DatabaseRefused`: another process has the file open, it
    is damaged, from a newer version of this program, no database of this kind at all, or the disk refuses.
    """

    kind: ClassVar[str]
    """What errors call it: `database of jobs`."""
    tables: ClassVar[str]
    """Statements that make the tables of a new database."""
    version: ClassVar[int]
    """`user_version` of a database with these tables."""
    application_id: ClassVar[int]
    """Tells this database from any other SQLite file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.RLock()
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
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
            self._read_state()
        except sqlite3.Error as error:
            raise self._refusal(error) from error

    def _read_state(self) -> None:
        """What a subclass remembers of a database that was just opened; nothing by default."""

    def _check_version(self) -> None:
        """Make the tables of a new database, and refuse one that is not ours or that a newer version made."""
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
                    f"{self._path} is of a newer version of this program ({version}; this one knows {self.version})"
                )
        flush_folder(self._path.parent)

    def _refusal(self, error: sqlite3.Error) -> DatabaseRefused:
        name = getattr(error, "sqlite_errorname", "")  # missing where the error is not SQLite's own
        if name in ("SQLITE_BUSY", "SQLITE_LOCKED"):
            return DatabaseRefused(f"another process has the {self.kind} {self._path} open")
        if name in ("SQLITE_CORRUPT", "SQLITE_NOTADB"):
            return DatabaseRefused(f"{self._path} is damaged: {error}")
        return DatabaseRefused(f"{self._path} cannot be used: {error}")
