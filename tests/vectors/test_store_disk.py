"""What lies on the disk: file names that differ on every disk, one owner of the files, and what is made durable.

Python's audit events tell what a process asks of the disk, and let a test refuse it or hold it up.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vectors.errors import StoreLocked
from vectors.store import VectorStore
from vectors.vector import SteeringVector

A, B = (SteeringVector({0: torch.ones(4)}, default_scale=scale) for scale in (1.0, 2.0))


def test_names_that_differ_in_case_have_files_that_differ_without_it(tmp_path: Path) -> None:
    names = ["Vector", "vector", "VECTOR", "vEctor"]
    with VectorStore(tmp_path) as store:
        for name in names:
            store.put(name, A.with_defaults(description=name))
        assert len({path.name.lower() for path in (tmp_path / "names").iterdir()}) == len(names)
        held = {name: store.get(name).revision for name in names}
    with VectorStore(tmp_path) as again:
        assert {name: again.get(name).revision for name in again.names()} == held


def test_a_closed_store_changes_nothing(tmp_path: Path) -> None:
    store = VectorStore(tmp_path)
    store.put("v", A)
    store.close()
    with VectorStore(tmp_path) as owner:
        with pytest.raises(StoreLocked):
            store.put("v", B)
        with pytest.raises(StoreLocked):
            store.remove("v")
        assert owner.get("v").revision == A.revision


ROOT = Path(__file__).parents[2]
PRELUDE = """
import errno, os, sys, threading
from pathlib import Path
import torch
from vectors.errors import StorageFailed
from vectors.store import VectorStore
from vectors.vector import SteeringVector
A, B = (SteeringVector({0: torch.ones(4)}, default_scale=scale) for scale in (1.0, 2.0))
root = Path(sys.argv[1])
"""


def run(script: str, root: Path) -> list[str]:
    """The lines that `script` says in a process of its own, which its audit hook then ends with."""
    command = [sys.executable, "-c", PRELUDE + script, str(root)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=True).stdout.split("\n")


def test_every_folder_that_is_made_is_flushed_in_its_parent(tmp_path: Path) -> None:
    said = run(
        """
def listen(event, arguments):
    if event == "os.mkdir":
        print("made", arguments[0])
    elif event == "open" and arguments[1] is None and Path(arguments[0]).is_dir():
        print("flushed", arguments[0])
VectorStore(root / "one" / "two" / "three").close()  # so that nothing else is imported while it listens
sys.addaudithook(listen)
VectorStore(root / "1" / "2" / "3").close()
""",
        tmp_path,
    )
    made = [line.removeprefix("made ") for line in said if line.startswith("made ")]
    top = tmp_path / "1"
    assert set(made) == {
        str(folder) for folder in (top, top / "2", top / "2/3", top / "2/3/objects", top / "2/3/names")
    }
    for folder in made:
        assert f"flushed {Path(folder).parent}" in said[said.index(f"made {folder}") :]


CHANGES = ("put('v', B)", "rollback('v', A.revision)", "remove('v')", "put('new', A)")


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What stores say whose disk refuses a flush, by the change that it refused; all in one process."""
    said = run(
        f"""
refusing = False
def refuse(event, arguments):
    if refusing and event == "open" and arguments[1] is None and Path(arguments[0]).name == "names":
        raise OSError(errno.EIO, "the disk refuses")
sys.addaudithook(refuse)
for number, change in enumerate({CHANGES!r}):
    store = VectorStore(root / str(number))
    store.put("v", A)
    store.put("v", B)
    store.rollback("v", B.revision)
    if change.startswith("put('v'"):
        store.rollback("v", A.revision)
    before = store.get("v"), store.names()
    refusing = True
    try:
        eval(f"store.{{change}}")
    except StorageFailed as error:
        print("the disk refuses" in str(error))
    print((store.get("v"), store.names()) == before)
    try:
        store.put("w", A)  # the first change is still to be undone
    except StorageFailed as error:
        print("the disk refuses" in str(error))
    refusing = False
    store.put("w", A)
    print(store.get("v") == before[0])
    store.close()
    with VectorStore(root / str(number)) as anew:
        print((anew.get("v"), anew.names()) == (before[0], [*before[1], "w"]))
    print("end")
""",
        tmp_path_factory.mktemp("refused"),
    )
    *parts, rest = "\n".join(said).split("end\n")
    assert rest == ""
    return {change: part.splitlines() for change, part in zip(CHANGES, parts, strict=True)}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_whose_flush_the_disk_refuses_is_undone(refused: dict[str, list[str]], change: str) -> None:
    """By the next change at the latest, which works as soon as the disk does; readers never see it."""
    assert refused[change] == ["True"] * 5


def test_readers_do_not_wait_for_a_disk_that_a_writer_waits_for(tmp_path: Path) -> None:
    said = run(
        """
reached, let_go = threading.Event(), threading.Event()
def hold_up(event, arguments):
    if event == "os.rename" and "B" in threading.current_thread().name:
        reached.set()
        let_go.wait()
store = VectorStore(root)
store.put("v", A)
sys.addaudithook(hold_up)
writer = threading.Thread(target=store.put, args=("v", B), name="B")
writer.start()
reached.wait()
print(store.get("v").revision == A.revision, store.names(), len(store.history("v")), len(store.content("v")) > 0)
let_go.set()
writer.join()
print(store.get("v").revision == B.revision)
""",
        tmp_path,
    )
    assert said == ["True ['v'] 1 True", "True", ""]
