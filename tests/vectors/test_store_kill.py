"""What was acknowledged survives SIGKILL at any moment, and what was not leaves no damage."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest
import torch

from tests.killing import talking
from vectors.errors import VectorNotFound
from vectors.store import VectorStore
from vectors.vector import SteeringVector

GONE = "-"


@pytest.fixture(scope="module")
def worker() -> Iterator[subprocess.Popen[str]]:
    with talking("tests.vectors.store_worker") as talking_process:
        yield talking_process


class Ledger:
    """What the names must be: the last acknowledged state, or one that was begun after it."""

    def __init__(self) -> None:
        self.acknowledged: dict[str, str] = {}
        self.kept: dict[str, set[str]] = {}
        """Every revision acknowledged since the name last went."""
        self.begun: tuple[str, str] | None = None
        self.num_done = 0
        self.num_cut = 0

    def note(self, line: str) -> None:
        if line.strip() == "open":
            return
        verb, name, state = line.split()
        if verb == "begin":
            self.begun = (name, state)
        else:
            assert (verb, self.begun) == ("done", (name, state)), line
            self.acknowledged[name] = state
            self._keep(name, state)
            self.begun = None
            self.num_done += 1

    def _keep(self, name: str, state: str) -> None:
        if state == GONE:
            self.kept.pop(name, None)
        else:
            self.kept.setdefault(name, set()).add(state)

    def settle(self, store: VectorStore) -> None:
        """Compare with what was found, and take it as the ground of the next round."""
        found = {name: store.get(name).revision for name in store.names()}
        for name in {*found, *self.acknowledged, *([self.begun[0]] if self.begun else [])}:
            allowed = {self.acknowledged.get(name, GONE)}
            if self.begun is not None and self.begun[0] == name:
                allowed.add(self.begun[1])
            assert found.get(name, GONE) in allowed, f"{name} is {found.get(name, GONE)}, not one of {allowed}"
        if self.begun is not None:
            self.num_cut += 1
            self._keep(self.begun[0], found.get(self.begun[0], GONE))
        for name, revisions in self.kept.items():
            lost = revisions - {record.revision for record in store.history(name)}
            assert not lost, f"{name} lost {lost}"
        self.acknowledged = found
        self.begun = None


def lines_until(stream: IO[str], last: str) -> Iterator[str]:
    for line in stream:
        if line.strip() == last:
            return
        yield line.strip()
    raise AssertionError("the worker ended")


def kill_once(worker: subprocess.Popen[str], root: Path, seed: int, ledger: Ledger) -> None:
    """One life of a child: some acknowledged changes, a random moment more, SIGKILL."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    chance = random.Random(seed)
    worker.stdin.write(f"{root} {seed}\n")
    worker.stdin.flush()
    word, child = worker.stdout.readline().split()
    assert word == "child"
    for _ in range(chance.randrange(12)):  # 0: it may die while it opens the store
        ledger.note(worker.stdout.readline())
    moment = time.perf_counter() + chance.random() * 0.02
    while time.perf_counter() < moment:
        pass
    os.kill(int(child), signal.SIGKILL)
    for line in lines_until(worker.stdout, "ended-child"):
        ledger.note(line)


def check(root: Path, ledger: Ledger) -> None:
    with VectorStore(root) as store:
        ledger.settle(store)
        kept = set()
        for name in store.names():
            history = [record.revision for record in store.history(name)]
            assert len(set(history)) == len(history)
            for revision in history:
                assert store.get(name, revision).vector.revision == revision
            kept |= set(history)
    assert {path.stem for path in (root / "objects").iterdir()} == kept, "no orphan, no leftover, nothing missing"
    assert {path.stem for path in (root / "names").iterdir()} == set(ledger.acknowledged)


@pytest.mark.parametrize("num_cut", [40, pytest.param(200, marks=pytest.mark.slow)])
def test_acknowledged_changes_survive_kills(worker: subprocess.Popen[str], tmp_path: Path, num_cut: int) -> None:
    """Lives of a child, one after the other, until so many changes were cut short."""
    ledger = Ledger()
    for seed in itertools.count():
        kill_once(worker, tmp_path, seed, ledger)
        check(tmp_path, ledger)
        if ledger.num_cut == num_cut:
            break
    assert ledger.num_done > num_cut


def test_ledger_tells_a_lost_change(tmp_path: Path) -> None:
    """The check itself fails for a store that forgot what it acknowledged."""
    ledger = Ledger()
    ledger.note("begin one abc")
    ledger.note("done one abc")
    with VectorStore(tmp_path) as store:
        with pytest.raises(VectorNotFound):
            store.get("one")
        with pytest.raises(AssertionError, match="one is -, not one of"):
            ledger.settle(store)


def test_ledger_tells_a_lost_revision(tmp_path: Path) -> None:
    """The same for an older revision of a name that is still there."""
    ledger = Ledger()
    with VectorStore(tmp_path) as store:
        current = store.put("one", SteeringVector({0: torch.ones(4)}))[0].revision
        for revision in ("abc", current):
            ledger.note(f"begin one {revision}")
            ledger.note(f"done one {revision}")
        with pytest.raises(AssertionError, match="one lost"):
            ledger.settle(store)
