"""The store of responses: what is put is found by its owner until it is removed, too old, or one of too many."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest

from server.durable_database import DatabaseRefused
from server.errors import PayloadTooLarge
from server.jobs.database import JobDatabase
from server.response_store import ResponseStore, StoredResponse

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
