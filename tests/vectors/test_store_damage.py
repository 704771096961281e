"""A damaged, half restored or foreign data folder: the store opens, serves what is whole and deletes nothing."""

from __future__ import annotations

import json
import logging
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vectors.errors import RevisionMismatch, StoreCorrupt
from vectors.formats.safetensors import encode_safetensors
from vectors.store import VectorStore
from vectors.store.inspection import findings_of, inspect
from vectors.store.layout import StoreLayout
from vectors.store.repair import repair
from vectors.vector import SteeringVector


def vector(number: int) -> SteeringVector:
    return SteeringVector({0: torch.full((4,), float(number + 1))}, description=f"number {number}")


REVISIONS = [vector(number).revision for number in range(6)]


def folder_with_names(root: Path, number: int = 3) -> Path:
    """`v0`, `v1`, … with one revision each, and `two` with two."""
    with VectorStore(root) as store:
        for each in range(number):
            store.put(f"v{each}", vector(each))
        store.put("two", vector(4))
        store.put("two", vector(5))
    return root


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def object_of(root: Path, number: int) -> Path:
    return root / "objects" / f"{REVISIONS[number]}.safetensors"


def problems(root: Path, *, is_deep: bool = True) -> list[str]:
    layout = StoreLayout(root)
    return [str(finding) for finding in findings_of(layout, inspect(layout, is_deep=is_deep))]


def test_lost_names_cost_no_object_and_come_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = folder_with_names(tmp_path / "store")
    objects = contents(root / "objects")
    (root / "names").rename(tmp_path / "aside")
    for _ in range(2):  # also after a change in between
        with VectorStore(root) as store:
            assert "v0" not in store.names()
            store.put("new", vector(0))
        assert contents(root / "objects") == objects
    assert "has no names, and 5 objects in store/objects belong to no name" in caplog.text
    for path in (tmp_path / "aside").iterdir():
        path.rename(root / "names" / path.name)
    with VectorStore(root) as store:
        assert store.names() == ["new", "two", "v0", "v1", "v2"]
        assert store.get("two").vector == vector(5)
    assert problems(root) == []


@pytest.mark.parametrize("lost", ["one name", "an older name"])
def test_a_half_restore_moves_nothing(tmp_path: Path, lost: str) -> None:
    root = folder_with_names(tmp_path / "store")
    if lost == "one name":
        (root / "names" / "v1.json").unlink()
    else:
        record = {"revision": REVISIONS[4], "created_at": 1, "bytes": len(encode_safetensors(vector(4)))}
        (root / "names" / "two.json").write_text(json.dumps({"current": REVISIONS[4], "history": [record]}))
    objects = contents(root / "objects")
    with VectorStore(root) as store:
        assert store.get("v0").vector == vector(0)
    assert contents(root / "objects") == objects
    assert any("is not as the store left it" in problem for problem in problems(root))


def test_an_orphan_of_a_whole_store_is_moved_and_not_deleted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = folder_with_names(tmp_path / "store")
    before = contents(root / "objects")
    stray = encode_safetensors(vector(3))
    object_of(root, 3).write_bytes(stray)
    for folder in (root, root / "names", root / "objects"):
        (folder / f"{'generation' if folder == root else 'v0'}.json.7.8.tmp").write_bytes(b"half")
    with VectorStore(root) as store:
        assert len(store.names()) == 4
    assert contents(root / "objects") == before
    assert not list(root.rglob("*.tmp"))
    assert contents(root / "quarantine") == {object_of(root, 3).name: stray}
    assert "belongs to no name and was moved to store/quarantine" in caplog.text
    object_of(root, 3).write_bytes(b"another of that name")
    VectorStore(root).close()
    assert len(contents(root / "quarantine")) == 2, "nothing in quarantine is replaced"


def test_a_revision_in_quarantine_is_put_back_when_a_name_has_it(tmp_path: Path) -> None:
    root = folder_with_names(tmp_path / "store")
    (root / "quarantine").mkdir()
    for number, name in ((0, ""), (4, ".1")):
        object_of(root, number).rename(root / "quarantine" / f"{REVISIONS[number]}.safetensors{name}")
    with VectorStore(root) as store:
        assert store.get("v0").vector == vector(0)
        assert store.get("two", REVISIONS[4]).vector == vector(4)


def test_a_folder_of_an_earlier_version_opens_and_becomes_known(tmp_path: Path) -> None:
    """It has no generation; what it does not refer to stays at first."""
    root = folder_with_names(tmp_path / "store")
    (root / "generation.json").unlink()
    object_of(root, 3).write_bytes(encode_safetensors(vector(3)))
    with VectorStore(root) as store:
        assert store.get("two").vector == vector(5)
        assert object_of(root, 3).exists()
    VectorStore(root).close()
    assert not object_of(root, 3).exists()
    assert (root / "quarantine" / object_of(root, 3).name).exists()


def test_an_earlier_folder_without_its_names_is_never_taken_for_whole(tmp_path: Path) -> None:
    root = folder_with_names(tmp_path / "store")
    (root / "generation.json").unlink()
    shutil.rmtree(root / "names")
    objects = contents(root / "objects")
    for name in ("one", "other"):
        with VectorStore(root) as store:
            store.put(name, vector(0))
    assert contents(root / "objects") == objects


def make_folder_of(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE: dict[str, Callable[[Path], object]] = {
    "an old revision is missing": lambda root: object_of(root, 4).unlink(),
    "an old revision is short": lambda root: object_of(root, 4).write_bytes(object_of(root, 4).read_bytes()[:-4]),
    "an old revision is a folder": lambda root: make_folder_of(object_of(root, 4)),
    "a foreign file in names": lambda root: (root / "names" / ".DS_Store.json").write_bytes(b"x"),
    "an editor's copy": lambda root: shutil.copy(root / "names" / "two.json", root / "names" / "two (copy).json"),
    "a name of another case": lambda root: shutil.copy(root / "names" / "two.json", root / "names" / "Two.json"),
    "a foreign file in objects": lambda root: (root / "objects" / "notes.safetensors").write_bytes(b"my notes"),
    "a generation that is no JSON": lambda root: (root / "generation.json").write_bytes(b"\0"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_costs_only_what_is_damaged_and_can_be_repaired(tmp_path: Path, damage: str) -> None:
    root = folder_with_names(tmp_path / "store")
    DAMAGE[damage](root)
    everything = sorted(path.read_bytes() for path in root.rglob("*") if path.is_file())
    with VectorStore(root) as store:
        assert store.names() == ["two", "v0", "v1", "v2"]
        assert store.get("two").vector == vector(5)
        assert store.get("v0").vector == vector(0)
        assert len(store.history("two")) == 2
        if "revision" in damage:
            with pytest.raises(StoreCorrupt, match=f"'two', revision {REVISIONS[4][:12]}"):
                store.get("two", REVISIONS[4])
    if "generation" not in damage:
        assert len(problems(root)) == 1
        assert everything == sorted(path.read_bytes() for path in root.rglob("*") if path.is_file())
    assert repair(StoreLayout(root)) or "generation" in damage
    assert problems(root) == []
    with VectorStore(root) as store:
        assert store.get("two").vector == vector(5)
        assert len(store.history("two")) == (1 if "revision" in damage else 2)


def test_a_flipped_byte_in_a_current_revision(tmp_path: Path) -> None:
    root = folder_with_names(tmp_path / "store")
    content = object_of(root, 5).read_bytes()
    object_of(root, 5).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    shutil.copytree(root, tmp_path / "other")
    with VectorStore(root) as store:
        with pytest.raises(StoreCorrupt, match="put the vector again, or roll back"):
            store.get("two")
        assert store.rollback("two", REVISIONS[4]).vector == vector(4)
        store.put("two", vector(5))
        assert store.get("two").vector == vector(5)
    assert problems(root) == []
    with VectorStore(tmp_path / "other") as store:
        store.put("two", vector(5))  # the content that it should have
        assert store.get("two").vector == vector(5)


def test_repair_goes_back_to_the_newest_whole_revision(tmp_path: Path) -> None:
    root = folder_with_names(tmp_path / "store")
    object_of(root, 5).write_bytes(b"damaged")
    object_of(root, 1).write_bytes(b"damaged too")
    assert len(problems(root)) == 2
    done = repair(StoreLayout(root))
    assert any(f"'two' lost 1 damaged revision, and is now at {REVISIONS[4][:12]}" in line for line in done)
    assert problems(root) == []
    kept = set(contents(root / "quarantine").values())
    assert {b"damaged", b"damaged too"} <= kept
    with VectorStore(root) as store:
        assert store.names() == ["two", "v0", "v2"]
        assert store.get("two").vector == vector(4)


def test_a_damaged_name_can_be_put_and_removed(tmp_path: Path) -> None:
    root = folder_with_names(tmp_path / "store")
    for name in ("v0", "v1"):
        (root / "names" / f"{name}.json").write_bytes(b"{")
    with VectorStore(root) as store:
        with pytest.raises(RevisionMismatch, match="exists"):
            store.put("v0", vector(0), if_none_match=True)
        with pytest.raises(RevisionMismatch, match="damaged"):
            store.remove("v1", if_match=REVISIONS[1])
        store.put("v0", vector(0))
        store.remove("v1")
        assert store.names() == ["two", "v0", "v2"]
        assert store.get("v0").vector == vector(0)
    assert [content for content in contents(root / "quarantine").values() if content == b"{"] == [b"{"] * 2
    assert len(problems(root)) == 1, "what the damaged files said is lost"
    repair(StoreLayout(root))
    assert problems(root) == []


def test_what_lies_in_a_store_is_its_owners_only(tmp_path: Path) -> None:
    root = folder_with_names(tmp_path / "store")
    for path in (root, *root.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    with VectorStore(root) as store:
        store.put("another", vector(3))
    for path in (root, *root.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_a_whole_store_says_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        root = folder_with_names(tmp_path / "store")
        VectorStore(root).close()
    assert (problems(root), caplog.text) == ([], "")
