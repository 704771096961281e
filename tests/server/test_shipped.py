"""Shipped vectors come into the registry, later ones over earlier ones, and never against its owner's wish."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from server.shipped import MARKER, put_shipped_vectors
from tests.server.cli.running import ROOT, environment
from vectors.errors import VectorsError
from vectors.formats.safetensors import encode_safetensors
from vectors.store import VectorStore
from vectors.vector import SteeringVector


@dataclass(frozen=True)
class Model:
    """The numbers of a model that a vector must fit."""

    num_layers: int = 4
    hidden_size: int = 8
    sites: tuple[str, ...] = ("residual",)


MODEL = Model()


def vector(value: float, hidden_size: int = 8) -> SteeringVector:
    return SteeringVector({1: torch.full((hidden_size,), value)})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a release ships: two vectors."""
    shipped = tmp_path / "shipped"
    shipped.mkdir()
    (shipped / "cheerful.safetensors").write_bytes(encode_safetensors(vector(1.0)))
    (shipped / "honest.safetensors").write_bytes(encode_safetensors(vector(2.0)))
    return shipped


@pytest.fixture
def store(tmp_path: Path) -> Iterator[VectorStore]:
    """An empty registry."""
    with VectorStore(tmp_path / "vectors") as store:
        yield store


def test_the_first_start_puts_them_and_later_ones_do_not(store: VectorStore, folder: Path, tmp_path: Path) -> None:
    assert put_shipped_vectors(store, folder, tmp_path, MODEL) == ["cheerful", "honest"]
    assert store.get("honest").revision == vector(2.0).revision
    assert put_shipped_vectors(store, folder, tmp_path, MODEL) == []


def test_a_name_that_is_taken_stays_as_it_is(store: VectorStore, folder: Path, tmp_path: Path) -> None:
    mine, _ = store.put("honest", vector(-1.0))
    assert put_shipped_vectors(store, folder, tmp_path, MODEL) == ["cheerful"]
    store.remove("honest")
    assert put_shipped_vectors(store, folder, tmp_path, MODEL) == []
    assert store.names() == ["cheerful"]
    assert mine.revision != vector(2.0).revision


def test_a_deleted_one_stays_deleted_and_a_changed_one_changed(
    store: VectorStore, folder: Path, tmp_path: Path
) -> None:
    put_shipped_vectors(store, folder, tmp_path, MODEL)
    store.remove("cheerful")
    changed, _ = store.put("honest", vector(3.0))
    (folder / "cheerful.safetensors").write_bytes(encode_safetensors(vector(5.0)))  # a later release
    assert put_shipped_vectors(store, folder, tmp_path, MODEL) == []
    assert store.names() == ["honest"]
    assert store.get("honest").revision == changed.revision


def test_a_later_release_replaces_what_nobody_touched(store: VectorStore, folder: Path, tmp_path: Path) -> None:
    for release in (5.0, 6.0):
        put_shipped_vectors(store, folder, tmp_path, MODEL)
        (folder / "cheerful.safetensors").write_bytes(encode_safetensors(vector(release)))
        assert put_shipped_vectors(store, folder, tmp_path, MODEL) == ["cheerful"]
        assert store.get("cheerful").revision == vector(release).revision
    assert [record.revision for record in store.history("cheerful")][1:] == [vector(5.0).revision, vector(1.0).revision]


def test_a_release_that_was_rolled_back_stays_so(store: VectorStore, folder: Path, tmp_path: Path) -> None:
    put_shipped_vectors(store, folder, tmp_path, MODEL)
    (folder / "cheerful.safetensors").write_bytes(encode_safetensors(vector(5.0)))
    put_shipped_vectors(store, folder, tmp_path, MODEL)
    store.rollback("cheerful", vector(1.0).revision)
    for release in (5.0, 6.0):
        (folder / "cheerful.safetensors").write_bytes(encode_safetensors(vector(release)))
        assert put_shipped_vectors(store, folder, tmp_path, MODEL) == []
    assert store.get("cheerful").revision == vector(1.0).revision


def test_a_later_release_may_bring_another_one(store: VectorStore, folder: Path, tmp_path: Path) -> None:
    put_shipped_vectors(store, folder, tmp_path, MODEL)
    (folder / "terse.safetensors").write_bytes(encode_safetensors(vector(4.0)))
    assert put_shipped_vectors(store, folder, tmp_path, MODEL) == ["terse"]


def test_a_start_that_was_killed_before_it_remembered_puts_nothing_twice(
    store: VectorStore, folder: Path, tmp_path: Path
) -> None:
    put_shipped_vectors(store, folder, tmp_path, MODEL)
    (tmp_path / MARKER).unlink()
    assert put_shipped_vectors(store, folder, tmp_path, MODEL) == []
    assert len(store.history("honest")) == 1


@pytest.mark.parametrize("content", ["", "[]", "{", '{"cheerful": 1}'])
def test_a_damaged_marker_is_moved_aside_and_taken_names_are_left(
    store: VectorStore, folder: Path, tmp_path: Path, content: str
) -> None:
    (tmp_path / MARKER).write_text(content, encoding="utf-8")
    store.put("honest", vector(7.0))
    put = put_shipped_vectors(store, folder, tmp_path, MODEL)
    assert "honest" not in put
    assert store.get("honest").vector == vector(7.0)
    assert (tmp_path / "quarantine" / MARKER).read_text(encoding="utf-8") == content
    assert put_shipped_vectors(store, folder, tmp_path, MODEL) == []


def test_one_that_does_not_fit_is_refused(store: VectorStore, folder: Path, tmp_path: Path) -> None:
    (folder / "cheerful.safetensors").write_bytes(encode_safetensors(vector(1.0, hidden_size=9)))
    with pytest.raises(VectorsError, match="hidden size 9"):
        put_shipped_vectors(store, folder, tmp_path, MODEL)
    assert store.names() == []


LISTENING = """
import sys
from pathlib import Path
from server.shipped import put_shipped_vectors
from tests.server.test_shipped import MODEL
from vectors.store import VectorStore
shipped, data_dir = map(Path, sys.argv[1:])
said = []
def listen(event, arguments):
    if event == "os.rename":
        said.append(f"put {arguments[1]}")
    elif event == "open" and arguments[1] is None and Path(arguments[0]).is_dir():
        said.append(f"flushed {arguments[0]}")
with VectorStore(data_dir / "vectors") as store:
    sys.addaudithook(listen)
    put_shipped_vectors(store, shipped, data_dir, MODEL)
print(*said, sep="\\n")
"""


def test_what_was_shipped_is_remembered_for_good(folder: Path, tmp_path: Path) -> None:
    """A marker that a power loss takes back would make every shipped vector look like its owner's."""
    command = [sys.executable, "-c", LISTENING, str(folder), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=True)
    said = done.stdout.splitlines()
    puts = [place for place, line in enumerate(said) if line == f"put {tmp_path / MARKER}"]
    assert len(puts) == 2
    assert all(said[place + 1] == f"flushed {tmp_path}" for place in puts)
