"""SIGKILL at any moment of a job leaves a true state: no vector of an incomplete one, nothing acknowledged lost."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.jobs.database import JobDatabase
from server.jobs.files import FileStore
from server.jobs.records import RESULTS_PURPOSE, JobRecord, JobStatus
from server.jobs.worker import MAX_STARTS, JobWorker
from tests.killing import talking
from tests.server.jobs.trainers import DATA, PHASES, PairTrainer
from vectors.store import VectorStore

NUM_KILLS = 300
LIVES_OF_A_FOLDER = 20
MOMENTS = ("child", "open", "kept", "created", *PHASES, "writing", "completing", "publishing", "published", "ended")
"""Words of the child after which it is killed."""


@pytest.fixture(scope="module")
def process() -> Iterator[subprocess.Popen[str]]:
    with talking("tests.server.jobs.jobs_process") as talking_process:
        yield talking_process


class Ledger:
    """What was acknowledged and must hold from then on."""

    def __init__(self) -> None:
        self.kept: set[str] = set()
        self.created: set[str] = set()
        self.asked: set[str] = set()
        self.ended: dict[str, str] = {}

    def note(self, words: list[str]) -> None:
        """Take in one line."""
        if words[0] == "failed":
            raise AssertionError(" ".join(words))
        if words[0] in ("kept", "created", "asked"):
            getattr(self, words[0]).add(words[1])
        elif words[0] == "ended":
            self.ended[words[1]] = words[2]


def kill_once(process: subprocess.Popen[str], root: Path, seed: int, ledger: Ledger) -> str:
    """One life of a child, killed a moment after it said a certain word; that word, or what it said last."""
    assert process.stdin is not None
    assert process.stdout is not None
    chance = random.Random(seed)
    target = MOMENTS[seed % len(MOMENTS)]
    times = 1 if target in ("child", "open") else chance.choice((1, 1, 1, 2, 3))
    process.stdin.write(f"{root} {seed}\n")
    process.stdin.flush()
    child, heard = 0, Counter[str]()
    while heard[target] < times:
        words = process.stdout.readline().split()
        heard[words[0]] += 1
        child = int(words[1]) if words[0] == "child" else child
        ledger.note(words)
        if target == "child":
            break
    moment = time.perf_counter() + chance.random() * (0.05 if target == "child" else 0.004)
    while time.perf_counter() < moment:
        pass
    os.kill(child, signal.SIGKILL)
    while (words := process.stdout.readline().split()) != ["ended-child"]:
        ledger.note(words)
    return target


def expected_revision(job: JobRecord) -> str:
    """The revision of the vector that the job makes, whenever and however often."""
    outcome = PairTrainer().run(job, lambda _: ("quiz.jsonl", DATA), lambda _: None, lambda: False)
    assert outcome.vector is not None
    return outcome.vector.revision


def check_job(job: JobRecord, store: VectorStore, files: FileStore) -> None:
    """What is recorded of a job agrees with the registry and the files."""
    published = [record.revision for record in store.history(job.name)] if job.name in store.names() else []
    assert published in ([], [expected_revision(job)])
    assert job.num_starts <= MAX_STARTS
    if job.fine_tuned_vector is not None:
        assert job.fine_tuned_vector.revision == expected_revision(job)
        assert [files.read(result)[0] for result in job.result_files] == ["report.json", "grid.png"]
        assert job.status in (JobStatus.RUNNING, JobStatus.SUCCEEDED)
        assert published or job.status is JobStatus.RUNNING
    else:
        assert (published, job.result_files) == ([], ()), "nothing of a training that is not complete"
        assert job.status is not JobStatus.SUCCEEDED
    if job.status is JobStatus.FAILED:
        assert job.error is not None
        assert (job.error.code, job.num_starts) == ("interrupted", MAX_STARTS)


def check(root: Path, ledger: Ledger) -> Counter[str]:
    """Everything is whole and true right after a kill; how many jobs were found in which state."""
    found: Counter[str] = Counter()
    with VectorStore(root / "vectors") as store, JobDatabase(root / "jobs.sqlite") as database:
        files = FileStore(root / "files", database)
        records = {record.id: record for record in files.list()}
        stray = {path.name for path in (root / "files").iterdir()} - records.keys()
        assert not stray or max(stray) < min(records, default="g"), "left from before the first record"
        for identifier in records:
            files.read(identifier)
        jobs = {job.id: job for job in database.jobs()}
        assert ledger.kept <= records.keys()
        assert ledger.created <= jobs.keys()
        results = [result for job in jobs.values() for result in job.result_files]
        assert sorted(results) == sorted(id for id, record in records.items() if record.purpose == RESULTS_PURPOSE)
        assert sum(job.status is JobStatus.RUNNING for job in jobs.values()) <= 1
        for job in jobs.values():
            check_job(job, store, files)
            is_complete = job.status is JobStatus.RUNNING and job.fine_tuned_vector is not None
            found["complete" if is_complete else job.status.label] += 1
            assert (database.unpublished(job.id) is not None) == is_complete
            if job.id in ledger.asked:
                assert job.is_cancel_asked or job.status is JobStatus.CANCELLED
            if job.id in ledger.ended:
                assert job.status.label == ledger.ended[job.id]
    return found


def finish(root: Path, ledger: Ledger) -> Counter[str]:
    """A last life that is not killed: every job comes to an end."""
    with (
        VectorStore(root / "vectors") as store,
        JobDatabase(root / "jobs.sqlite") as database,
        JobWorker(database, FileStore(root / "files", database), store, PairTrainer()).start() as worker,
    ):
        for job in database.jobs():
            ended = worker.wait(job.id, timeout=60)
            if job.id in ledger.asked:
                assert ended.status is JobStatus.CANCELLED, "an acknowledged cancellation holds"
    return check(root, ledger)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_kill_at_any_moment_leaves_a_true_state(process: subprocess.Popen[str], tmp_path: Path) -> None:
    moments, states, ends = Counter[str](), Counter[str](), Counter[str]()
    seed = 0
    for number in range(NUM_KILLS // LIVES_OF_A_FOLDER):
        root, ledger = tmp_path / str(number), Ledger()
        for _ in range(LIVES_OF_A_FOLDER):
            moments[kill_once(process, root, seed, ledger)] += 1
            states += check(root, ledger)
            seed += 1
        ends += finish(root, ledger)
    print(f"\n{seed} kills: after {dict(moments)}; found {dict(states)}; in the end {dict(ends)}")
    assert moments.keys() == set(MOMENTS)
    assert states.keys() >= {"queued", "running", "complete", "succeeded", "cancelled"}
    assert ends.keys() <= {"succeeded", "cancelled", "failed"}
