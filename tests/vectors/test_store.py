"""VectorStore: names, revisions, conditions, damage on disk, and many threads."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from vectors.errors import (
    InvalidRevision,
    InvalidVectorName,
    RevisionMismatch,
    RevisionNotFound,
    StoreCorrupt,
    StoreLocked,
    VectorExists,
    VectorNotFound,
)
from vectors.formats import decode
from vectors.formats.safetensors import encode_safetensors
from vectors.store import VectorStore
from vectors.vector import SteeringVector
from vectors.vocabulary import check_name

ROOT = Path(__file__).parents[2]


def vector(number: int, hidden: int = 4) -> SteeringVector:
    return SteeringVector({0: torch.full((hidden,), float(number + 1))}, description=f"number {number}")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[VectorStore]:
    with VectorStore(tmp_path / "store") as opened:
        yield opened


def files(root: Path) -> dict[str, bytes]:
    """Everything on disk but the lock and the generation, which counts."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name not in ("lock", "generation.json")
    }


def object_of(root: Path, revision: str) -> Path:
    return root / "objects" / f"{revision}.safetensors"


# What the calls mean


def test_put_and_get(store: VectorStore) -> None:
    before = int(time.time())
    stored, is_new = store.put("calm", vector(1))
    assert is_new
    assert stored.name == "calm"
    assert stored.revision == vector(1).revision
    assert before <= stored.record.created_at <= int(time.time())
    got = store.get("calm")
    assert got == stored
    assert torch.equal(got.vector.directions[0], vector(1).directions[0])
    assert store.content("calm") == encode_safetensors(vector(1))
    assert stored.record.num_bytes == len(store.content("calm"))
    assert store.history("calm") == stored.history == (stored.record,)
    assert store.current_records() == {"calm": stored.record}


def test_a_new_revision_becomes_current_and_the_old_stays(store: VectorStore) -> None:
    store.put("calm", vector(1))
    stored, is_new = store.put("calm", vector(2))
    assert not is_new
    assert store.get("calm").revision == stored.revision == vector(2).revision
    assert store.get("calm", vector(1).revision).vector == vector(1)
    assert store.content("calm", vector(1).revision) == encode_safetensors(vector(1))
    assert [record.revision for record in store.history("calm")] == [vector(2).revision, vector(1).revision]


def test_put_of_the_current_content_adds_nothing(tmp_path: Path, store: VectorStore) -> None:
    first, _ = store.put("calm", vector(1))
    before = files(tmp_path)
    again, is_new = store.put("calm", vector(1))
    assert not is_new
    assert again == first
    assert files(tmp_path) == before


def test_put_of_an_older_revision_makes_it_current_and_lists_it_once(store: VectorStore) -> None:
    for number in (1, 2, 3, 1):
        store.put("calm", vector(number))
    assert store.get("calm").vector == vector(1)
    assert [record.revision for record in store.history("calm")] == [vector(n).revision for n in (1, 3, 2)]


def test_rollback_moves_the_name_and_keeps_the_history(store: VectorStore) -> None:
    for number in (1, 2, 3):
        store.put("calm", vector(number))
    history = store.history("calm")
    assert store.rollback("calm", vector(1).revision).vector == vector(1)
    assert store.get("calm").vector == vector(1)
    assert store.history("calm") == history
    assert store.rollback("calm", vector(1).revision[:10]).vector == vector(1)
    assert store.rollback("calm", vector(3).revision[:6]).vector == vector(3)
    with pytest.raises(RevisionNotFound):
        store.rollback("calm", vector(4).revision)
    assert store.get("calm").vector == vector(3)


def test_put_after_a_rollback(store: VectorStore) -> None:
    for number in (1, 2):
        store.put("calm", vector(number))
    store.rollback("calm", vector(1).revision)
    assert store.put("calm", vector(1))[1] is False
    assert [record.revision for record in store.history("calm")] == [vector(n).revision for n in (2, 1)]
    store.put("calm", vector(3))
    assert [record.revision for record in store.history("calm")] == [vector(n).revision for n in (3, 2, 1)]


def test_removed_name_is_gone_with_its_files_and_begins_anew(tmp_path: Path, store: VectorStore) -> None:
    for number in (1, 2):
        store.put("calm", vector(number))
    store.remove("calm")
    for call in (store.get, store.content, store.history, store.remove):
        with pytest.raises(VectorNotFound, match="'calm'"):
            call("calm")
    with pytest.raises(VectorNotFound):
        store.get("calm", vector(1).revision)
    assert store.names() == []
    assert files(tmp_path) == {}
    assert store.put("calm", vector(2))[1] is True
    assert len(store.history("calm")) == 1
    with pytest.raises(RevisionNotFound):
        store.get("calm", vector(1).revision)


def test_content_that_two_names_share_outlives_one_of_them(tmp_path: Path, store: VectorStore) -> None:
    store.put("one", vector(1))
    store.put("two", vector(1))
    store.put("two", vector(2))
    assert len(list((tmp_path / "store" / "objects").iterdir())) == 2
    store.remove("one")
    assert store.get("two", vector(1).revision).vector == vector(1)
    assert store.content("two", vector(1).revision) == encode_safetensors(vector(1))
    store.remove("two")
    assert files(tmp_path) == {}


def test_a_revision_of_another_name_is_not_found(store: VectorStore) -> None:
    store.put("one", vector(1))
    store.put("two", vector(2))
    with pytest.raises(RevisionNotFound, match="'one' has no revision"):
        store.get("one", vector(2).revision)


def test_vector_held_while_its_name_goes_stays_whole(store: VectorStore) -> None:
    store.put("calm", vector(1))
    held = store.get("calm")
    store.put("calm", vector(2))
    store.remove("calm")
    assert held.revision == held.vector.revision == vector(1).revision
    assert held.vector.directions[0].tolist() == [2.0] * 4


def test_create_takes_only_free_names(store: VectorStore) -> None:
    assert store.create("calm", vector(1)).vector == vector(1)
    for number in (1, 2):
        with pytest.raises(VectorExists, match="'calm' already exists"):
            store.create("calm", vector(number))
    assert len(store.history("calm")) == 1
    store.remove("calm")
    store.create("calm", vector(2))


def test_if_match(tmp_path: Path, store: VectorStore) -> None:
    with pytest.raises(RevisionMismatch, match="does not exist"):
        store.put("calm", vector(1), if_match="*")
    with pytest.raises(RevisionMismatch, match="does not exist"):
        store.put("calm", vector(1), if_match=vector(1).revision)
    assert files(tmp_path) == {}
    store.put("calm", vector(1))
    store.put("calm", vector(2), if_match=vector(1).revision)
    before = files(tmp_path)
    stale = vector(1).revision
    calls: list[Callable[[], object]] = [
        lambda: store.put("calm", vector(3), if_match=stale),
        lambda: store.put("calm", vector(2), if_match=stale),
        lambda: store.put("calm", vector(3), if_match=vector(2).revision[:12]),
        lambda: store.rollback("calm", vector(1).revision, if_match=stale),
        lambda: store.remove("calm", if_match=stale),
        lambda: store.put("calm", vector(3), if_none_match=True),
        lambda: store.put("calm", vector(2), if_none_match=True),
    ]
    for call in calls:
        with pytest.raises(RevisionMismatch):
            call()
    assert files(tmp_path) == before
    assert store.get("calm").vector == vector(2)
    store.put("calm", vector(3), if_match="*")
    store.rollback("calm", vector(1).revision, if_match=vector(3).revision)
    store.remove("calm", if_match=vector(1).revision)
    assert store.put("calm", vector(1), if_none_match=True)[1] is True


def test_prefixes(store: VectorStore) -> None:
    store.put("calm", vector(1))
    revision = vector(1).revision
    for length in (6, 7, 32, 64):
        assert store.get("calm", revision[:length]).revision == revision
        assert store.get("calm", revision[:length].upper()).revision == revision
    other = ("0" if revision[0] != "0" else "1") + revision[1:]
    with pytest.raises(RevisionNotFound, match=f"has no revision '{other}'"):
        store.get("calm", other)
    for wrong in (
        "",
        revision[:5],
        "g" * 6,
        revision + "0",
        revision[:6] + "\n",
        " " + revision[:6],
        "../../x",
        "-12345",
    ):
        for call in (store.get, store.content, store.rollback):
            with pytest.raises(InvalidRevision, match="expected 6 or more leading hex digits"):
                call("calm", wrong)


def colliding() -> tuple[SteeringVector, SteeringVector]:
    """Two vectors whose hashes share 6 digits (found among a few thousand: a birthday in 24 bits)."""
    seen: dict[str, SteeringVector] = {}
    for number in range(100_000):
        one = SteeringVector({0: torch.ones(1)}, default_scale=number)
        if one.revision[:6] in seen:
            return seen[one.revision[:6]], one
        seen[one.revision[:6]] = one
    raise AssertionError("no collision")


def test_ambiguous_prefix_is_refused_and_a_longer_one_settles_it(store: VectorStore) -> None:
    one, two = colliding()
    store.put("calm", one)
    assert store.get("calm", one.revision[:6]).vector == one
    store.put("calm", two)
    for call in (store.get, store.content, store.rollback):
        with pytest.raises(InvalidRevision, match="ambiguous: 2 revisions begin with it"):
            call("calm", one.revision[:6])
    assert store.get("calm", one.revision[:32]).vector == one
    assert store.get("calm", two.revision[:32]).vector == two


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "-a",
        "_a",
        "a/b",
        "../a",
        "/etc",
        "a b",
        "a\n",
        "a\0",
        "ä",
        "a+b",
        "a:b",
        "a@b",
        "a" * 65,
        "\ud800",
    ],
)
def test_unusable_name_is_refused_everywhere(tmp_path: Path, store: VectorStore, name: str) -> None:
    calls: list[Callable[[], object]] = [
        lambda: store.put(name, vector(1)),
        lambda: store.create(name, vector(1)),
        lambda: store.get(name),
        lambda: store.content(name),
        lambda: store.history(name),
        lambda: store.rollback(name, "abcdef"),
        lambda: store.remove(name),
        lambda: check_name(name),
    ]
    for call in calls:
        with pytest.raises(InvalidVectorName, match="is not a valid name"):
            call()
    assert files(tmp_path) == {}


@pytest.mark.parametrize(
    "name", ["a", "0", "A.b_c-d", "a" * 64, "a.json", "a.tmp", "a.json.1.2.tmp", "lock", "con", "a..b"]
)
def test_usable_name_survives_reopening(tmp_path: Path, name: str) -> None:
    with VectorStore(tmp_path) as store:
        store.put(name, vector(1))
    with VectorStore(tmp_path) as store:
        assert store.names() == [name]
        assert store.get(name).vector == vector(1)


def test_names_are_pages_in_order(store: VectorStore) -> None:
    given = ["b", "B", "a.1", "a", "10", "9", "c"]
    for name in given:
        store.put(name, vector(1))
    ordered = sorted(given)
    assert store.names() == ordered
    assert store.names(order="desc") == ordered[::-1]
    assert store.names(limit=3) == ordered[:3]
    assert store.names(after=ordered[2], limit=3) == ordered[3:6]
    assert store.names(after=ordered[2], order="desc") == ordered[1::-1]
    assert store.names(after="aa") == ["b", "c"]
    assert store.names(after="zz") == store.names(limit=0) == []


# What is on disk


def test_everything_is_there_after_reopening(tmp_path: Path) -> None:
    with VectorStore(tmp_path) as store:
        for number in (1, 2, 3):
            store.put("calm", vector(number))
        store.put("other", vector(2))
        store.put("gone", vector(5))
        store.remove("gone")
        store.rollback("calm", vector(2).revision)
        history = store.history("calm")
    before = files(tmp_path)
    with VectorStore(tmp_path) as store:
        assert store.names() == ["calm", "other"]
        assert store.get("calm").vector == vector(2)
        assert store.history("calm") == history
        for number in (1, 2, 3):
            assert store.get("calm", vector(number).revision).vector == vector(number)
    assert files(tmp_path) == before


def test_objects_are_canonical_files_named_by_their_hash(tmp_path: Path) -> None:
    with VectorStore(tmp_path) as store:
        store.put("calm", vector(1))
    (path,) = (tmp_path / "objects").iterdir()
    assert path.name == f"{vector(1).revision}.safetensors"
    assert decode(path.read_bytes(), num_layers=1, hidden_size=4) == vector(1)


OTHER_PROCESS = """
import sys
from pathlib import Path
from vectors.errors import StoreLocked
from vectors.store import VectorStore
for line in sys.stdin:
    try:
        print(VectorStore(Path(sys.argv[1])).names(), flush=True)
    except StoreLocked as error:
        print(error, flush=True)
"""


def test_lock_keeps_other_processes_out(tmp_path: Path) -> None:
    command = [sys.executable, "-c", OTHER_PROCESS, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None
        assert other.stdout is not None

        def other_says() -> str:
            other.stdin.write("open\n")  # type: ignore[union-attr]
            other.stdin.flush()  # type: ignore[union-attr]
            return other.stdout.readline().strip()  # type: ignore[union-attr]

        with VectorStore(tmp_path) as store:
            store.put("calm", vector(1))
            before = files(tmp_path)
            assert other_says() == f"another process has the vector store {tmp_path} open"
            assert files(tmp_path) == before
        assert other_says() == "['calm']"
    assert other.returncode == 0


def test_lock_keeps_a_second_store_of_this_process_out_until_closed(tmp_path: Path) -> None:
    first = VectorStore(tmp_path)
    with pytest.raises(StoreLocked):
        VectorStore(tmp_path)
    first.close()
    first.close()
    VectorStore(tmp_path).close()


def test_refused_opening_releases_the_lock(tmp_path: Path) -> None:
    with VectorStore(tmp_path) as store:
        store.put("calm", vector(1))
    (tmp_path / "names").rename(tmp_path / "aside")
    (tmp_path / "names").write_bytes(b"a file where a folder should be")
    with pytest.raises(OSError):
        VectorStore(tmp_path)
    (tmp_path / "names").unlink()
    (tmp_path / "aside").rename(tmp_path / "names")
    with VectorStore(tmp_path) as store:
        assert store.get("calm").vector == vector(1)


def test_changed_object_is_named_when_it_is_read(tmp_path: Path) -> None:
    """Same size, other bytes: only the hash tells."""
    with VectorStore(tmp_path) as store:
        store.put("calm", vector(1))
        store.put("calm", vector(2))
    path = object_of(tmp_path, vector(1).revision)
    whole = path.read_bytes()
    flipped = whole[:-1] + bytes([whole[-1] ^ 1])
    for damaged in (flipped, b"\xff" + whole[1:], bytes(len(whole)), encode_safetensors(vector(3))):
        assert len(damaged) == len(whole)
        path.write_bytes(damaged)
        with VectorStore(tmp_path) as store:
            for call in (store.get, store.content, store.rollback):
                with pytest.raises(StoreCorrupt, match=f"'calm', revision .*{path.name} is damaged"):
                    call("calm", vector(1).revision)
            assert store.get("calm").vector == vector(2)


def test_object_lost_while_open_is_named(tmp_path: Path, store: VectorStore) -> None:
    store.put("calm", vector(1))
    path = object_of(tmp_path / "store", vector(1).revision)
    path.unlink()
    with pytest.raises(StoreCorrupt, match=f"{path.name} is missing"):
        store.content("calm")


def good_entry() -> dict[str, object]:
    record = {"revision": vector(1).revision, "created_at": 1, "bytes": len(encode_safetensors(vector(1)))}
    return {"current": vector(1).revision, "history": [record]}


@pytest.mark.parametrize(
    "entry",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"[" * 100_000,
        b'{"current": "x"}',
        {"current": vector(2).revision},
        {"current": None},
        {"current": vector(1).revision[:8]},
        {"history": []},
        {"history": None},
        {"history": ["x"]},
        {"history": [{}]},
        {"history": [{"revision": "../../x", "created_at": 1, "bytes": 1}]},
        {"history": [{"revision": vector(1).revision, "created_at": "now", "bytes": 1}]},
        {"history": [{"revision": vector(1).revision, "created_at": float("inf"), "bytes": 1}]},
        {"history": [*good_entry()["history"], *good_entry()["history"]]},  # type: ignore[misc]
    ],
)
def test_damaged_name_is_named_and_nothing_is_removed(tmp_path: Path, entry: object) -> None:
    with VectorStore(tmp_path) as store:
        store.put("calm", vector(1))
        store.put("other", vector(2))
    path = tmp_path / "names" / "calm.json"
    path.write_bytes(entry if isinstance(entry, bytes) else json.dumps(good_entry() | entry).encode())  # type: ignore[operator]
    before = files(tmp_path)
    with VectorStore(tmp_path) as store:
        assert store.names() == ["calm", "other"]
        assert store.get("other").vector == vector(2)
        for call in (store.get, store.content, store.history):
            with pytest.raises(StoreCorrupt, match=r"'calm': .*calm\.json is damaged"):
                call("calm")
    assert files(tmp_path) == before


def test_the_entry_of_the_test_above_is_good_but_for_its_fault(tmp_path: Path) -> None:
    with VectorStore(tmp_path) as store:
        store.put("calm", vector(1))
    (tmp_path / "names" / "calm.json").write_text(json.dumps(good_entry()))
    with VectorStore(tmp_path) as store:
        assert store.get("calm").vector == vector(1)


def test_put_that_the_disk_refuses_leaves_everything_as_it_was(tmp_path: Path) -> None:
    """A full disk, by the process's limit of file size."""
    script = """
import resource, signal, sys
from pathlib import Path
import torch
from vectors.errors import StorageFailed
from vectors.store import VectorStore
from vectors.vector import SteeringVector
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = VectorStore(Path(sys.argv[1]))
store.put("calm", SteeringVector({0: torch.ones(4)}))
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
for name in ("calm", "other"):
    try:
        store.put(name, SteeringVector({0: torch.ones(100_000)}))
    except StorageFailed as error:
        is_told = "File too large" in str(error)
        print(is_told, store.names(), len(store.history("calm")), store.get("calm").vector.hidden_size)
store.put("calm", SteeringVector({0: torch.ones(5)}))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=100, check=True
    )
    assert done.stdout.splitlines() == ["True ['calm'] 1 4"] * 2
    assert not [path for path in files(tmp_path) if path.endswith(".tmp")]
    with VectorStore(tmp_path) as store:
        assert store.names() == ["calm"]
        assert [store.get("calm", r.revision).vector.hidden_size for r in store.history("calm")] == [5, 4]


def test_many_revisions_are_all_there_beyond_the_cache(tmp_path: Path) -> None:
    """Laid out by hand as the module describes it, to save the flushes of 550 puts."""
    VectorStore(tmp_path).close()
    history = []
    for number in range(550):
        content = encode_safetensors(vector(number))
        object_of(tmp_path, vector(number).revision).write_bytes(content)
        history.append({"revision": vector(number).revision, "created_at": number, "bytes": len(content)})
    (tmp_path / "names" / "calm.json").write_text(json.dumps({"current": vector(7).revision, "history": history}))
    with VectorStore(tmp_path) as store:
        assert store.get("calm").vector == vector(7)
        assert len(store.history("calm")) == 550
        for number in [*range(550), 0, 1, 549]:
            assert store.get("calm", vector(number).revision).vector == vector(number)


# Threads


def run_together(jobs: list[Callable[[], None]]) -> None:
    """Run all at once, to their end; the first failure of any fails."""
    failures: list[BaseException] = []
    start = threading.Barrier(len(jobs))

    def guarded(job: Callable[[], None]) -> None:
        start.wait()
        try:
            job()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def test_a_name_swapped_by_many_threads_is_always_one_whole_vector(tmp_path: Path) -> None:
    choices = {vector(number, 64).revision: vector(number, 64) for number in range(6)}
    with VectorStore(tmp_path) as store:
        store.put("calm", vector(0, 64))
        writing = [True] * 4

        def write(seed: int) -> None:
            try:
                for step in range(25):
                    number = (seed * 7 + step) % 6
                    if step % 5 == 4:
                        store.rollback("calm", store.history("calm")[-1].revision)
                    else:
                        store.put("calm", vector(number, 64))
            finally:
                writing[seed] = False

        def read() -> None:
            while any(writing):
                got = store.get("calm")
                assert got.vector.revision == got.revision
                assert got.record in got.history
                assert torch.equal(got.vector.directions[0], choices[got.revision].directions[0])
                content = store.content("calm", got.revision)
                assert content == encode_safetensors(choices[got.revision])
                history = [record.revision for record in store.history("calm")]
                assert len(history) == len(set(history))

        run_together([lambda seed=seed: write(seed) for seed in range(4)] + [read] * 4)
        last = store.get("calm").revision
    with VectorStore(tmp_path) as store:
        assert store.get("calm").revision == last
        assert {record.revision for record in store.history("calm")} <= set(choices)


def test_of_many_creators_one_wins(store: VectorStore) -> None:
    for turn in range(10):
        won: list[int] = []

        def create(number: int, name: str = f"name{turn}", won: list[int] = won) -> None:
            try:
                store.create(name, vector(number))
            except VectorExists:
                return
            won.append(number)

        run_together([lambda number=number: create(number) for number in range(6)])  # type: ignore[misc]
        assert len(won) == 1
        assert store.get(f"name{turn}").vector == vector(won[0])


def test_compare_and_swap_loses_no_step(store: VectorStore) -> None:
    store.put("count", SteeringVector({0: torch.ones(1)}, default_scale=0))

    def step() -> None:
        done = 0
        while done < 10:
            current = store.get("count")
            following = current.vector.with_defaults(default_scale=current.vector.default_scale + 1)
            try:
                store.put("count", following, if_match=current.revision)
            except RevisionMismatch:
                continue
            done += 1

    run_together([step] * 5)
    assert store.get("count").vector.default_scale == 50


def test_a_change_is_of_the_revision_that_it_names(store: VectorStore) -> None:
    one, other = vector(1), vector(2)
    store.put("calm", one)

    def move() -> None:
        for step in range(60):
            store.put("calm", other if step % 2 else one)

    def change() -> None:
        for step in range(60):
            try:
                changed = store.change("calm", {"default_scale": step + 2}, if_match=one.revision)
            except RevisionMismatch:
                continue
            assert changed.vector == one.with_defaults(default_scale=step + 2)

    run_together([move, change])
    store.put("calm", one)
    assert store.change("calm", {"default_scale": 0.5}).vector == one.with_defaults(default_scale=0.5)
    with pytest.raises(RevisionMismatch):
        store.change("calm", {"default_scale": 3}, if_match=one.revision)
    with pytest.raises(VectorNotFound):
        store.change("gone", {"default_scale": 3})


def test_names_that_come_and_go_leave_only_what_is_there(tmp_path: Path) -> None:
    with VectorStore(tmp_path) as store:
        # all names share contents, so that a removal must not take what another name has just put
        def churn(seed: int) -> None:
            for step in range(20):
                store.put(f"name{seed}", vector((seed + step) % 3))
                assert store.content(f"name{seed}")
                if step % 2:
                    store.remove(f"name{seed}")
            store.put(f"name{seed}", vector(seed % 3))

        run_together([lambda seed=seed: churn(seed) for seed in range(6)])  # type: ignore[misc]
        assert store.names() == [f"name{seed}" for seed in range(6)]
        for seed in range(6):
            assert decode(store.content(f"name{seed}"), num_layers=1, hidden_size=4) == vector(seed % 3)
    before = files(tmp_path)
    VectorStore(tmp_path).close()
    assert files(tmp_path) == before, "nothing was orphaned"
