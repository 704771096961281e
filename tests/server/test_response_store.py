"""The store of responses: what is put is found by its owner until it is removed, too old, or one of too many."""

from __future__ import annotations

import sqlite3
import stat
from pathlib import Path
from typing import Any

import pytest

from server.durable_database import DatabaseRefused
from server.errors import PayloadTooLarge
from server.jobs.database import JobDatabase
from server.response_store import ResponseStore, StoredResponse

DAY = 24 * 3600
ME, THEM = b"1" * 32, b"2" * 32


def stored(name: str, text: str = "hi", **fields: Any) -> StoredResponse:
    """A response of that id."""
    return StoredResponse({"id": name, "output": [{"text": text}], **fields}, [{"text": "asked"}])


def kept(store: ResponseStore, *names: str) -> list[str]:
    """Which of the names are there."""
    return [name for name in names if store.find(ME, name) is not None]


def test_what_is_put_is_found_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "new" / "responses.sqlite"
    with ResponseStore(path, max_count=10) as store:
        store.put(ME, stored("a", 'ä "quoted"\n\0'))
        with pytest.raises(DatabaseRefused, match="another process"):
            ResponseStore(path, max_count=10)
    with ResponseStore(path, max_count=10) as store:
        assert store.find(ME, "a") == stored("a", 'ä "quoted"\n\0')
        assert stored("a").conversation == [{"text": "asked"}, {"text": "hi"}]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_others_see_and_remove_nothing(tmp_path: Path) -> None:
    with ResponseStore(tmp_path / "responses.sqlite", max_count=10) as store:
        store.put(ME, stored("a"))
        assert store.find(THEM, "a") is None
        assert not store.remove(THEM, "a")
        assert store.remove(ME, "a")
        assert not store.remove(ME, "a")
        assert kept(store, "a") == []


def test_the_oldest_go_first(tmp_path: Path) -> None:
    with ResponseStore(tmp_path / "responses.sqlite", max_count=3) as store:
        for name in "abcde":
            store.put(ME, stored(name))
        assert kept(store, *"abcde") == ["c", "d", "e"]
    with ResponseStore(tmp_path / "responses.sqlite", max_count=2) as store:
        store.put(ME, stored("f"))
        assert kept(store, *"abcdef") == ["e", "f"]


def test_all_together_are_bounded_in_bytes(tmp_path: Path) -> None:
    with ResponseStore(tmp_path / "responses.sqlite", max_count=100, max_bytes=1000) as store:
        for name in "abcd":
            store.put(ME, stored(name, "x" * 300))
        assert kept(store, *"abcd") == ["c", "d"]
        with pytest.raises(PayloadTooLarge, match="store: the response"):
            store.put(ME, stored("e", "x" * 1000))
        assert kept(store, *"abcde") == ["c", "d"]


def test_what_is_too_old_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "responses.sqlite"
    with ResponseStore(path, max_count=10) as store:
        store.put(ME, stored("a"))
    with ResponseStore(path, max_count=10, max_age_seconds=-1) as store:  # as if a moment had passed
        assert kept(store, "a") == []
        assert not store.remove(ME, "a")
    with ResponseStore(path, max_count=10) as store:
        assert kept(store, "a") == ["a"]
    with ResponseStore(path, max_count=10, max_age_seconds=-1) as store:
        store.put(ME, stored("b"))
    with ResponseStore(path, max_count=10) as store:
        assert kept(store, "a", "b") == []


class Clocks:
    """A machine's clock that may be set, and one that cannot."""

    def __init__(self) -> None:
        self.wall, self.steady = 1_800_000_000.0, 50.0

    def pass_by(self, seconds: float) -> None:
        self.wall += seconds
        self.steady += seconds

    def open(self, path: Path) -> ResponseStore:
        return ResponseStore(path, max_count=10, clock=lambda: self.wall, steady_clock=lambda: self.steady)


def test_a_clock_ahead_of_time_deletes_and_hides_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clocks, path = Clocks(), tmp_path / "responses.sqlite"
    with clocks.open(path) as store:
        store.put(ME, stored("a"))
        clocks.pass_by(10 * DAY)
        store.put(ME, stored("b"))
        clocks.wall += 3650 * DAY
        store.put(ME, stored("c"))
        store.put(ME, stored("d"))
        assert kept(store, *"abcd") == list("abcd")
    assert caplog.text.count("is not believed") == 1
    with clocks.open(path) as store:
        store.put(ME, stored("e"))
        assert kept(store, *"abcde") == list("abcde")
    clocks.wall -= 3650 * DAY
    with clocks.open(path) as store:
        assert kept(store, *"abcde") == list("abcde")
        clocks.pass_by(20 * DAY + 1)  # now the first is older than thirty days, and it is time that passed
        store.put(ME, stored("f"))
        assert kept(store, *"abcdef") == list("bcdef")


def test_days_are_counted_while_the_clock_is_wrong_and_never_twice(tmp_path: Path) -> None:
    clocks, path = Clocks(), tmp_path / "responses.sqlite"
    clocks.wall += 3650 * DAY  # wrong from the beginning, then set right
    with clocks.open(path) as store:
        store.put(ME, stored("a"))
        clocks.wall -= 3650 * DAY
        clocks.pass_by(29 * DAY)
        assert kept(store, "a") == ["a"]
        clocks.pass_by(2 * DAY)
        assert kept(store, "a") == []


def test_time_that_passed_while_the_server_was_off_is_counted_up_to_a_day(tmp_path: Path) -> None:
    clocks, path = Clocks(), tmp_path / "responses.sqlite"
    with clocks.open(path) as store:
        store.put(ME, stored("a"))
    for _ in range(31):
        clocks.wall += DAY - 60
        with clocks.open(path) as store:
            clocks.pass_by(90)
    with clocks.open(path) as store:
        assert kept(store, "a") == []


def test_a_database_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    """It does not keep its own time."""
    path = tmp_path / "responses.sqlite"
    with ResponseStore(path, max_count=10) as store:
        store.put(ME, stored("a"))
    connection = sqlite3.connect(path)
    connection.execute("DROP TABLE own_time")
    connection.commit()
    connection.close()
    path.chmod(0o644)
    with ResponseStore(path, max_count=10) as store:
        store.put(ME, stored("b"))
        assert kept(store, "a", "b") == ["a", "b"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_what_is_removed_leaves_no_trace_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "responses.sqlite"
    with ResponseStore(path, max_count=10) as store:
        store.put(ME, stored("a", "the secret of the house"))
    assert b"secret of the house" in path.read_bytes()
    with ResponseStore(path, max_count=10) as store:
        assert store.remove(ME, "a")
    assert [file.name for file in tmp_path.iterdir() if b"secret of the house" in file.read_bytes()] == []


def test_a_database_of_something_else_is_refused(tmp_path: Path) -> None:
    JobDatabase(tmp_path / "jobs.sqlite").close()
    with pytest.raises(DatabaseRefused, match="is not a database of responses"):
        ResponseStore(tmp_path / "jobs.sqlite", max_count=10)
    (tmp_path / "folder").mkdir()
    with pytest.raises(DatabaseRefused, match="folder"):
        ResponseStore(tmp_path / "folder", max_count=10)
