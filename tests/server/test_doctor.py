"""`tiller doctor`: it finds what is wrong with a data folder, changes nothing unless asked, and never deletes."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from server.cli import main
from server.doctor import examine
from server.shipped import MARKER
from tests.faults.changes import contents, fill, opened


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def execute(path: Path, statement: str) -> None:
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA foreign_keys = OFF")
    connection.execute(statement)
    connection.commit()
    connection.close()


def flip(path: Path, start: int, number: int) -> None:
    content = bytearray(path.read_bytes())
    for place in range(start, start + number):
        content[place] ^= 0xFF
    path.write_bytes(bytes(content))


def first_file(folder: Path) -> Path:
    return min((folder / "files").iterdir())


def first_object(folder: Path) -> Path:
    return min((folder / "vectors" / "objects").iterdir())


JOB = "'ftjob-0123456789abcdef01234567', 1"
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a missing object": (lambda folder: first_object(folder).unlink(), "is missing"),
    "a flipped byte": (lambda folder: flip(first_object(folder), -1, 1), "does not match its hash"),
    "a damaged name": (lambda folder: (folder / "vectors/names/known.json").write_bytes(b"{"), "known.json is damaged"),
    "a foreign file": (
        lambda folder: (folder / "vectors/names/x (copy).json").write_bytes(b""),
        "not a file of the st",
    ),
    "no names": (lambda folder: (folder / "vectors/names").rename(folder / "names"), "has no names"),
    "a damaged database of jobs": (lambda folder: flip(folder / "jobs.sqlite3", 0, 16), "jobs.sqlite3 is damaged"),
    "no database of jobs": (lambda folder: (folder / "jobs.sqlite3").unlink(), "2 files in files without a record"),
    "a damaged database of responses": (
        lambda folder: flip(folder / "responses.sqlite3", 0, 16),
        "responses.sqlite3 is",
    ),
    "a missing file": (lambda folder: first_file(folder).unlink(), "rows.jsonl) is missing"),
    "a damaged file": (lambda folder: flip(first_file(folder), 3, 1), "rows.jsonl) is damaged"),
    "a damaged job": (
        lambda folder: execute(
            folder / "jobs.sqlite3",
            f"INSERT INTO jobs VALUES ({JOB}, 'weird', 'm', 'n', 'f', 0, NULL, NULL, '{{', NULL, NULL, NULL, NULL,"
            " NULL, NULL, '[]', NULL, 0, 0)",
        ),
        "the record of the job 'ftjob-0123456789abcdef01234567' is damaged",
    ),
    "a damaged marker": (lambda folder: (folder / MARKER).write_bytes(b"{"), f"{MARKER} is damaged"),
    "open to others": (lambda folder: first_file(folder).chmod(0o644), "others than the owner can read files"),
}


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "data"
    folder.mkdir(mode=0o700)
    fill(folder)
    return folder


def copied(origin: Path, target: Path) -> Path:
    return Path(shutil.copytree(origin, target))


def test_a_whole_folder(origin: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = everything(origin)
    assert main(["doctor", str(origin)]) == 0
    assert main(["doctor", str(origin), "--repair"]) == 0
    assert capsys.readouterr().out == f"{origin} is whole\n" * 2
    assert everything(origin).keys() == before.keys()


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_found_repaired_and_kept(
    origin: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    spoil, words = DAMAGE[damage]
    folder = copied(origin, tmp_path / "data")
    spoil(folder)
    before = everything(folder)
    assert main(["doctor", str(folder)]) == 1
    out = capsys.readouterr().out
    assert words in out
    assert out.startswith("wrong: ")
    assert everything(folder) == before, "it only read"
    with opened(copied(folder, tmp_path / "served")) as house:  # a server starts with it
        assert house.store.names() or damage == "no names"
    assert main(["doctor", str(folder), "--repair"]) == 0
    assert "repaired: " in capsys.readouterr().out
    gone = [
        name
        for name, content in before.items()
        if content not in everything(folder).values() and not name.endswith((".json", "-wal", "sqlite3"))
    ]
    assert gone == [], "nothing was deleted"
    assert contents(folder)
    assert examine(folder) == []


@pytest.mark.parametrize("damage", ["a damaged job", "a missing file"])
def test_a_record_that_is_taken_out_is_kept_as_text(origin: Path, tmp_path: Path, damage: str) -> None:
    folder = copied(origin, tmp_path / "data")
    taken = {"a damaged job": "ftjob-0123456789abcdef01234567", "a missing file": first_file(folder).name}[damage]
    DAMAGE[damage][0](folder)
    assert main(["doctor", str(folder), "--repair"]) == 0
    assert [taken in path.read_text() for path in (folder / "quarantine").glob("*.json")] == [True]


def test_a_folder_in_use_and_one_that_is_not_there(
    origin: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied(origin, tmp_path / "data")
    with opened(folder):
        assert main(["doctor", str(folder), "--repair"]) == 1
    assert "stop it first" in capsys.readouterr().err
    assert main(["doctor", str(tmp_path / "nowhere")]) == 2
