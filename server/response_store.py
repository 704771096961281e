"""ResponseStore: the responses that clients asked to store, each with the whole conversation that it answers.

It is bounded in number, age and bytes; the oldest responses are removed first. A response is visible only to its
owner, who is identified by a digest.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.durable_database import DatabaseRefused, DurableDatabase
from server.errors import PayloadTooLarge
from vectors.durable import make_folder

MAX_BYTES = 1 << 30
"""The maximum size of all stored responses together, as JSON."""

MAX_AGE_SECONDS = 30 * 24 * 3600
"""How long a response is stored at most."""


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

    `max_count` is at least 1. `max_bytes` is for all responses together. Every method may raise `DatabaseRefused`.
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
        self, path: Path, *, max_count: int, max_bytes: int = MAX_BYTES, max_age_seconds: int = MAX_AGE_SECONDS
    ) -> None:
        assert max_count > 0
        self._max_count = max_count
        self._max_bytes = max_bytes
        self._max_age_seconds = max_age_seconds
        make_folder(path.parent)
        try:
            path.touch(mode=0o600)
        except OSError as error:
            raise DatabaseRefused(f"{path}: {error.strerror or error}") from error
        super().__init__(path)

    def put(self, owner: bytes, stored: StoredResponse) -> None:
        """Store a response under a new id, and remove the oldest ones beyond the limits.

        Raises `PayloadTooLarge` for a response that exceeds the limit on all of them.
        """
        response, input_items = (_json(part) for part in (stored.response, list(stored.input_items)))
        num_bytes = len(response.encode()) + len(input_items.encode())
        if num_bytes > self._max_bytes:
            raise PayloadTooLarge(f"store: the response is larger than the limit of {self._max_bytes} bytes")
        with self.transaction() as connection:
            connection.execute(
                "INSERT INTO responses (id, owner, created_at, num_bytes, response, input_items)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (stored.response["id"], owner, int(time.time()), num_bytes, response, input_items),
            )
            connection.execute(
                "DELETE FROM responses WHERE number IN (SELECT number FROM ("
                "  SELECT number, created_at, ROW_NUMBER() OVER newest AS place, SUM(num_bytes) OVER newest AS total"
                "  FROM responses WINDOW newest AS (ORDER BY number DESC)"
                ") WHERE place > ? OR total > ? OR created_at < ?)",
                (self._max_count, self._max_bytes, self._oldest_moment()),
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

    def _oldest_moment(self) -> int:
        return int(time.time()) - self._max_age_seconds

    def _read_state(self) -> None:
        self._connection.execute("PRAGMA secure_delete = ON")  # overwrite what is deleted


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
