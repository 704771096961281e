"""ResponseStore: the responses that clients asked to store, each with the whole conversation that it answers.

It is bounded in number, age and bytes; the oldest responses are removed first. A response is visible only to its
owner, who is identified by a digest.

Ages are counted in the database's own time, so that a wrong clock deletes nothing. That time is kept in the file and
never goes back. It follows the machine's clock, unless that is more than a day ahead: then it goes on at the pace of a
clock that nobody sets, and the days are not counted on which the server did not run.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.durable_database import DurableDatabase
from server.errors import PayloadTooLarge
from vectors.errors import VectorsError

MAX_BYTES = 1 << 30
"""The maximum size of all stored responses together, as JSON."""

MAX_AGE_SECONDS = 30 * 24 * 3600
"""How long a response is stored at most, in the database's own time."""

MAX_JUMP_SECONDS = 24 * 3600
"""By how much the machine's clock may be ahead of the database's own time before it is not believed."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A stored response object, and the items of the conversation that it answers, earlier answers included."""

    response: Mapping[str, Any]
    input_items: Sequence[Mapping[str, Any]]

    @property
    def conversation(self) -> list[Mapping[str, Any]]:
        """The conversation up to the end of the response: what it answers, and its own items."""
        return [*self.input_items, *self.response["output"]]


class ResponseStore(DurableDatabase):
    """The responses under `path`, readable only by the user that runs the server; see `DurableDatabase`.

    `max_count` is at least 1. `max_bytes` is for all responses together. `clock` is the machine's, in Unix seconds;
    `steady_clock` gives seconds that nobody sets.
    """

    kind = "database of responses"
    version = 1
    application_id = 0x74696C72
    tables = """
    CREATE TABLE responses (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        owner BLOB NOT NULL,
        created_at INTEGER NOT NULL,
        num_bytes INTEGER NOT NULL,
        response TEXT NOT NULL,
        input_items TEXT NOT NULL
    );
    CREATE INDEX sizes ON responses (number, num_bytes, created_at)
    """

    def __init__(
        self,
        path: Path,
        *,
        max_count: int,
        max_bytes: int = MAX_BYTES,
        max_age_seconds: int = MAX_AGE_SECONDS,
        clock: Callable[[], float] = time.time,
        steady_clock: Callable[[], float] = time.monotonic,
        moves_damaged: bool = True,
    ) -> None:
        assert max_count > 0
        self._max_count = max_count
        self._max_bytes = max_bytes
        self._max_age_seconds = max_age_seconds
        self._clock = clock
        self._steady_clock = steady_clock
        self._time = self._steady_at = 0.0
        self._has_jumped = False
        super().__init__(path, moves_damaged=moves_damaged)

    def put(self, owner: bytes, stored: StoredResponse) -> None:
        """Store a response under a new id, and remove the oldest ones beyond the limits.

        Raises `PayloadTooLarge` for a response that exceeds the limit on all of them.
        """
        response, input_items = (_json(part) for part in (stored.response, list(stored.input_items)))
        num_bytes = len(response.encode()) + len(input_items.encode())
        if num_bytes > self._max_bytes:
            raise PayloadTooLarge(f"store: the response is larger than the limit of {self._max_bytes} bytes")
        with self.transaction() as connection:
            now = self._own_time()
            connection.execute(
                "INSERT INTO responses (id, owner, created_at, num_bytes, response, input_items)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (stored.response["id"], owner, now, num_bytes, response, input_items),
            )
            connection.execute("UPDATE own_time SET seconds = ?", (now,))
            connection.execute(
                "DELETE FROM responses WHERE number IN (SELECT number FROM ("
                "  SELECT number, created_at, ROW_NUMBER() OVER newest AS place, SUM(num_bytes) OVER newest AS total"
                "  FROM responses WINDOW newest AS (ORDER BY number DESC)"
                ") WHERE place > ? OR total > ? OR created_at < ?)",
                (self._max_count, self._max_bytes, now - self._max_age_seconds),
            )

    def find(self, owner: bytes, response_id: str) -> StoredResponse | None:
        """The owner's response with that id, or None."""
        with self.transaction() as connection:
            row = connection.execute(
                "SELECT response, input_items FROM responses WHERE id = ? AND owner = ? AND created_at >= ?",
                (response_id, owner, self._oldest_moment()),
            ).fetchone()
        return None if row is None else StoredResponse(json.loads(row["response"]), json.loads(row["input_items"]))

    def remove(self, owner: bytes, response_id: str) -> bool:
        """Delete the owner's response with that id; False if it does not exist."""
        with self.transaction() as connection:
            return (
                connection.execute(
                    "DELETE FROM responses WHERE id = ? AND owner = ? AND created_at >= ?",
                    (response_id, owner, self._oldest_moment()),
                ).rowcount
                > 0
            )

    def close(self) -> None:
        """Keep the database's own time, and let other processes open the file."""
        with self._lock:
            try:
                with self.transaction() as connection:
                    connection.execute("UPDATE own_time SET seconds = ?", (self._own_time(),))
            except VectorsError as error:  # the disk failed, or it was closed before
                _log.debug("the time of the stored responses was not kept: %s", error)
            super().close()

    def _oldest_moment(self) -> int:
        return self._own_time() - self._max_age_seconds

    def _own_time(self) -> int:
        """The database's own time: Unix seconds, if the machine's clock was never wrong."""
        with self._lock:
            steady = self._steady_clock()
            expected, self._steady_at = self._time + (steady - self._steady_at), steady
            ahead = self._clock() - expected
            is_jump = ahead > MAX_JUMP_SECONDS
            if is_jump and not self._has_jumped:
                _log.warning(
                    "the clock is %.1f days ahead of the stored responses' own time and is not believed: "
                    "no response expires by it",
                    ahead / 86400,
                )
            self._has_jumped = is_jump
            self._time = expected if is_jump else expected + max(0.0, ahead)
            return int(self._time)

    def _read_state(self) -> None:
        connection = self._connection
        connection.execute("PRAGMA secure_delete = ON")  # overwrite what is deleted
        with self.transaction():
            connection.execute("CREATE TABLE IF NOT EXISTS own_time (seconds INTEGER NOT NULL)")
            newest, kept = (
                connection.execute(f"SELECT max({column}) FROM {table}").fetchone()[0]
                for column, table in (("created_at", "responses"), ("seconds", "own_time"))
            )
            known = [moment for moment in (newest, kept) if moment is not None]
            self._time = float(max(known)) if known else self._clock()
            if kept is None:
                connection.execute("INSERT INTO own_time VALUES (?)", (int(self._time),))
        self._steady_at = self._steady_clock()


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
