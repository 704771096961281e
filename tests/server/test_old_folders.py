"""A data folder of an earlier version is served unchanged. `data_folder_0.1.zip` was written by version 0.1.0."""

from __future__ import annotations

import stat
import zipfile
from pathlib import Path

import pytest

from server.doctor import examine
from tests.faults.changes import CHANGES, contents, opened, vector

FOLDER = Path(__file__).with_name("data_folder_0.1.zip")


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """As that version left it, readable by everybody."""
    folder = tmp_path / "data"
    with zipfile.ZipFile(FOLDER) as packed:
        packed.extractall(folder)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


def test_everything_is_there_and_becomes_private(old: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = {path: path.read_bytes() for path in (old / "vectors").rglob("*") if path.is_file()}
    [finding] = examine(old)
    assert "others than the owner can read" in finding.problem
    expected = {
        "vectors": {"known": ["number 2", "number 1", "number 2"], "other": ["number 3", "number 3"]},
        "files": [("more.jsonl", b"second\n" * 100), ("rows.jsonl", b"first\n" * 100)],
        "jobs": [("made", "cancelled")],
        "responses": ["resp_1"],
    }
    for _ in range(2):
        assert contents(old) == expected
    assert caplog.text == ""
    assert {path: path.read_bytes() for path in files} == files
    ours = [path for path in old.rglob("*") if path.name != "shipped-vectors.json"]  # that is not opened here
    assert [path for path in ours if stat.S_IMODE(path.stat().st_mode) & 0o077] == []


def test_everything_can_be_changed(old: Path) -> None:
    with opened(old) as house:
        for change, make in CHANGES.items():
            if change != "cancel a job":
                make(house)
        assert house.store.names() == ["new", "other"]
        assert house.store.get("other").vector == vector(3)
    assert [finding.problem for finding in examine(old) if "others" not in finding.problem] == []
