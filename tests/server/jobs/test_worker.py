"""The worker: jobs are done one at a time and end in a true state, whatever happens to the training or the server."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from server.errors import InvalidRequest, NotFound, Unavailable
from server.jobs.database import JobDatabase
from server.jobs.files import FileStore
from server.jobs.records import RESULTS_PURPOSE, JobRecord, JobRequest, JobStatus, VectorReference
from server.jobs.trainer import Outcome, Progress, ReadFile, Trainer
from server.jobs.worker import MAX_STARTS, JobWorker, name_for
from tests.server.api.serving import eventually
from tests.server.jobs.trainers import DATA, LINES, PHASES, FailingTrainer, GatedTrainer, PairTrainer, features
from vectors.cancellation import Cancelled
from vectors.errors import (
    InvalidData,
    InvalidMethod,
    InvalidVector,
    InvalidVectorName,
    MissingDependency,
    StorageFailed,
    StorageFull,
    StoreCorrupt,
)
from vectors.formats.safetensors import encode_safetensors
from vectors.store import VectorStore
from vectors.vector import SteeringVector

DEADLINE = 60.0
"""Seconds after which something that must come is missing; never a measure."""


class House:
    """A worker with its parts in a folder; may be closed and opened again, as a server is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextlib.contextmanager
    def open(self, trainer: Trainer | None = None, *, start: bool = True, **options: Any) -> Iterator[JobWorker]:
        """One life of the server."""
        with VectorStore(self.folder / "vectors") as self.store, JobDatabase(self.folder / "jobs.sqlite") as database:
            self.files = FileStore(self.folder / "files", database)
            with JobWorker(database, self.files, self.store, trainer or PairTrainer(), **options) as worker:
                if start:
                    worker.start()
                yield worker

    def stored(self) -> set[str]:
        """The names of what lies in the folder of files."""
        return {path.name for path in (self.folder / "files").iterdir()}


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def ask(worker: JobWorker, content: bytes = DATA, **fields: Any) -> JobRecord:
    """Upload data and create a job for it."""
    file = worker.files.put("quiz.jsonl", "fine-tune", content)
    return worker.create(JobRequest(model="tiny", training_file=file.id, **fields))


def messages(worker: JobWorker, job: JobRecord) -> list[str]:
    """What was told in words, oldest first."""
    events = worker.database.events(job.id, order="asc")
    return [event.message for event in events if event.type == "message"]


def test_a_job_makes_its_vector_and_its_report(house: House) -> None:
    with house.open() as worker:
        job = ask(worker, name="polite", seed=5, steering={"layers": [2]}, metadata={"a": "b"})
        assert (job.status, job.seed, job.name, job.num_starts) == (JobStatus.QUEUED, 5, "polite", 0)
        done = worker.wait(job.id, timeout=DEADLINE)
        assert (done.status, done.error, done.num_starts, done.trained_tokens) == (JobStatus.SUCCEEDED, None, 1, 400)
        stored = house.store.get("polite")
        expected = (
            sum(features(line["positive"]) for line in LINES) / 4
            - sum(features(line["negative"]) for line in LINES) / 4
        )
        assert torch.equal(stored.vector.directions[2], expected)  # type: ignore[arg-type]
        assert done.fine_tuned_vector == VectorReference("polite", stored.revision)
        assert done.created_at <= (done.started_at or 0) <= (done.finished_at or 0)
        assert done.estimated_finish is None
        name, content = worker.files.read(done.result_files[0])
        assert (name, json.loads(content)) == ("report.json", {"items": 4, "seed": 5})
        assert [record.id for record in worker.files.list(purpose=RESULTS_PURPOSE)] == list(done.result_files)
        assert messages(worker, job) == [
            "the job was created and is waiting for its turn",
            "the job started",
            *(f"{phase} begins" for phase in PHASES),
            f"the vector was published as polite, revision {stored.revision[:12]}: it helps",
        ]
        assert worker.database.unpublished(job.id) is None


def test_a_taken_name_becomes_a_new_revision(house: House) -> None:
    with house.open() as worker:
        house.store.put("polite", SteeringVector({0: torch.ones(32)}))
        for seed in (1, 2, 2):
            done = worker.wait(ask(worker, name="polite", seed=seed).id, timeout=DEADLINE)
            assert done.status is JobStatus.SUCCEEDED
        assert len(house.store.history("polite")) == 3, "the same again is no new revision"


def test_jobs_are_done_one_at_a_time_oldest_first(house: House) -> None:
    trainer = GatedTrainer()
    with house.open(trainer) as worker:
        jobs = [ask(worker) for _ in range(4)]
        assert trainer.has_come.wait(DEADLINE)
        statuses = [worker.get(job.id).status for job in jobs]
        assert statuses == [JobStatus.RUNNING, *[JobStatus.QUEUED] * 3]
        trainer.gate.set()
        for job in jobs:
            assert worker.wait(job.id, timeout=DEADLINE).status is JobStatus.SUCCEEDED
        assert trainer.order == [job.id for job in jobs]


def test_without_gain_nothing_is_published_and_the_last_event_says_so(house: House) -> None:
    content = b'{"positive": "unhelpful", "negative": "x"}'
    with house.open() as worker:
        done = worker.wait(ask(worker, content, name="vain").id, timeout=DEADLINE)
        assert (done.status, done.fine_tuned_vector, len(done.result_files)) == (JobStatus.SUCCEEDED, None, 2)
        assert messages(worker, done)[-1] == "no vector was published: it does not help"
        assert house.store.names() == []
        all_the_same = ask(worker, content, name="vain", steering={"allow_no_gain": True})
        assert worker.wait(all_the_same.id, timeout=DEADLINE).fine_tuned_vector is not None
        assert "the vector is not recommended: it does not help" in messages(worker, all_the_same)
        assert house.store.names() == ["vain"]


def test_a_job_that_waits_is_cancelled_at_once(house: House) -> None:
    trainer = GatedTrainer()
    with house.open(trainer) as worker:
        first, second = ask(worker), ask(worker)
        cancelled = worker.cancel(second.id)
        assert (cancelled.status, cancelled.num_starts) == (JobStatus.CANCELLED, 0)
        assert cancelled.finished_at is not None
        trainer.gate.set()
        worker.wait(first.id, timeout=DEADLINE)
    assert trainer.order == [first.id]


def test_a_job_that_runs_is_cancelled_and_leaves_nothing(house: House) -> None:
    trainer = GatedTrainer()
    with house.open(trainer) as worker:
        job = ask(worker, name="never")
        assert trainer.has_come.wait(DEADLINE)
        assert worker.cancel(job.id).is_cancel_asked
        done = worker.wait(job.id, timeout=DEADLINE)
        assert (done.status, done.error, done.result_files) == (JobStatus.CANCELLED, None, ())
        assert (house.store.names(), house.stored()) == ([], {job.training_file})
        with pytest.raises(InvalidRequest) as ended:
            worker.cancel(job.id)
        assert ended.value.code == "job_ended"
        trainer.gate.set()
        assert worker.wait(ask(worker).id, timeout=DEADLINE).status is JobStatus.SUCCEEDED, "the next one is not meant"
    with house.open() as worker, pytest.raises(NotFound):
        worker.cancel("ftjob-none")


class LateTrainer(PairTrainer):
    """Does not look whether it is cancelled; `at_the_end` is called when all is done but the return."""

    def __init__(self, at_the_end: Callable[[JobRecord], object]) -> None:
        self.at_the_end = at_the_end

    def run(
        self,
        job: JobRecord,
        read_file: ReadFile,
        report: Callable[[Progress], None],
        is_cancelled: Callable[[], bool],
    ) -> Outcome:
        """Train, then call."""
        outcome = super().run(job, read_file, report, lambda: False)
        self.at_the_end(job)
        return outcome


def test_a_cancellation_that_was_acknowledged_wins_over_the_end(house: House) -> None:
    workers: list[JobWorker] = []
    trainer = LateTrainer(lambda job: workers[0].cancel(job.id))
    with house.open(trainer) as worker:
        workers.append(worker)
        job = ask(worker, name="never")
        assert worker.wait(job.id, timeout=DEADLINE).status is JobStatus.CANCELLED
        assert (house.store.names(), house.stored()) == ([], {job.training_file})


@pytest.mark.parametrize(
    ("error", "code", "message", "param"),
    [
        (InvalidData("no answer", "quiz.jsonl", 3), "invalid_training_data", "quiz.jsonl, line 3: no answer", None),
        (InvalidMethod("bad", "layers"), "invalid_method", "bad", "method.steering.layers"),
        (InvalidMethod("bad"), "invalid_method", "bad", None),
        (InvalidVector("zero", "residual.1"), "training_failed", "zero", "residual.1"),
        (MissingDependency("pip install scipy"), "training_failed", "pip install scipy", None),
        (StoreCorrupt("files/x is damaged"), "stored_data_damaged", "files/x is damaged", None),
        (StorageFull("the disk is full"), "disk_full", "the disk is full", None),
        (StorageFailed("the disk failed"), "storage_failed", "the disk failed", None),
        (RuntimeError("/secret/place"), "server_error", None, None),
        (NotFound("nothing here", code="file_not_found"), "file_not_found", "nothing here", None),
    ],
)
def test_a_training_that_raises_fails_its_job_and_no_other(
    house: House, caplog: pytest.LogCaptureFixture, error: Exception, code: str, message: str | None, param: str | None
) -> None:
    hidden = "the training failed; the server's log has the details"
    trainer = FailingTrainer(error)
    with house.open(trainer) as worker:
        for _ in range(2):
            done = worker.wait(ask(worker).id, timeout=DEADLINE)
            assert done.status is JobStatus.FAILED
            assert done.error is not None
            assert (done.error.code, done.error.message, done.error.param) == (code, message or hidden, param)
            last = worker.database.events(done.id)[0]
            assert (last.level, last.message) == ("error", message or hidden)
        assert house.store.names() == []
    logged = [record for record in caplog.records if record.levelno == logging.ERROR and record.exc_info]
    assert len(logged) == (2 if message is None else 0)


def test_a_training_that_gives_up_by_itself_is_cancelled(house: House) -> None:
    with house.open(FailingTrainer(Cancelled())) as worker:
        assert worker.wait(ask(worker).id, timeout=DEADLINE).status is JobStatus.CANCELLED


def test_bad_data_names_its_line(house: House) -> None:
    with house.open() as worker:
        done = worker.wait(ask(worker, DATA + b"\n{}").id, timeout=DEADLINE)
        assert done.error is not None
        assert (done.error.code, done.error.message) == (
            "invalid_training_data",
            "quiz.jsonl, line 5: no positive and negative",
        )


def test_what_can_be_known_without_data_is_refused_at_once(house: House) -> None:
    with house.open(start=False) as worker:
        result = worker.files.put("report.json", RESULTS_PURPOSE, b"x")
        data = worker.files.put("quiz.jsonl", "fine-tune", DATA)
        absent = worker.database.new_id("file")

        def refusal(kind: type[Exception], **fields: Any) -> Any:
            with pytest.raises(kind) as refused:
                worker.create(JobRequest(**{"model": "tiny", "training_file": data.id} | fields))
            return refused.value

        assert refusal(NotFound, training_file=absent).param == "training_file"
        assert refusal(NotFound, validation_file=absent).param == "validation_file"
        assert refusal(NotFound, retention_file="x").param == "method.steering.retention_file"
        assert refusal(InvalidRequest, training_file=result.id).param == "training_file"
        assert refusal(InvalidMethod, steering={"layers": [9]}).param == "layers"
        assert refusal(InvalidMethod, steering={"colour": 1}).param == "colour"
        refusal(InvalidVectorName, name="../x")
        assert worker.database.jobs() == []


def test_metrics_come_at_most_once_a_second_and_at_the_end_of_a_phase(house: House) -> None:
    class Counting(PairTrainer):
        def run(
            self, job: JobRecord, read_file: ReadFile, report: Callable[[Progress], None], is_cancelled: Any
        ) -> Outcome:
            for number in range(1, 101):
                report(Progress("sweep", number, 100, float("nan") if number < 50 else number / 100, 100.0 - number))
            for number in range(1, 8):  # ends before it is complete
                report(Progress("test", number, 100))
            return super().run(job, read_file, report, is_cancelled)

    ticks = itertools.count()
    with house.open(Counting(), clock=lambda: next(ticks) / 10) as worker:
        job = worker.wait(ask(worker).id, timeout=DEADLINE)
        events = worker.database.events(job.id, order="asc")
        metrics = [event for event in events if event.type == "metrics"]
        assert all(event.data is not None for event in metrics)
        told = [(event.data["phase"], event.data["num_done"]) for event in metrics if event.data is not None]
        assert told[:11] == [("sweep", number) for number in (*range(1, 101, 10), 100)]
        assert told[11:13] == [("test", 1), ("test", 7)]
        first = metrics[0].data
        assert first == {"phase": "sweep", "num_done": 1, "num_total": 100, "best": None, "seconds_left": 99.0}
        kinds = [event.message for event in events if event.type == "message"]
        assert kinds[2:4] == ["sweep begins", "test begins"]


def test_the_estimated_finish_follows_what_the_training_says(house: House) -> None:
    trainer = GatedTrainer(("extract", 2))
    with house.open(trainer) as worker:
        job = ask(worker)
        running = worker.wait(job.id, lambda job: job.estimated_finish is not None, timeout=DEADLINE)
        assert running.status is JobStatus.RUNNING
        assert running.estimated_finish is not None
        assert running.started_at is not None
        assert running.estimated_finish >= running.started_at
        trainer.gate.set()
        assert worker.wait(job.id, timeout=DEADLINE).estimated_finish is None


def test_a_closed_worker_leaves_its_job_to_the_next_one(house: House) -> None:
    trainer = GatedTrainer()
    for _ in range(MAX_STARTS + 1):  # stopping in an orderly way is no failure of the job
        with house.open(trainer) as worker:
            job = ask(worker, name="patient") if not worker.database.jobs() else worker.database.jobs()[0]
            assert trainer.has_come.wait(DEADLINE)
            trainer.has_come.clear()
        with house.open(start=False) as worker:
            left = worker.get(job.id)
            assert (left.status, left.num_starts, left.started_at) == (JobStatus.QUEUED, 0, None)
            assert (house.store.names(), house.stored()) == ([], {job.training_file})
    with house.open() as worker:
        assert worker.wait(job.id, timeout=DEADLINE).status is JobStatus.SUCCEEDED
        worker.close()
        with pytest.raises(Unavailable):
            ask(worker)


def test_an_error_while_the_worker_closes_counts_as_a_start(house: House) -> None:
    class Torn(GatedTrainer):
        def between(self, phase: str, number: int, is_cancelled: Callable[[], bool]) -> None:
            super().between(phase, number, is_cancelled)
            if is_cancelled():
                raise RuntimeError("the engine is gone")

    trainer = Torn()
    with house.open(trainer) as worker:
        job = ask(worker)
        assert trainer.has_come.wait(DEADLINE)
    with house.open(start=False) as worker:
        assert (worker.get(job.id).status, worker.get(job.id).num_starts) == (JobStatus.QUEUED, 1)


def leave_running(house: House, num_starts: int = 1, **fields: Any) -> JobRecord:
    """A job as a killed server leaves it."""
    with house.open(start=False) as worker:
        job = ask(worker, name="revenant", seed=1)
        return worker.database.change_job(job.id, status=JobStatus.RUNNING, num_starts=num_starts, **fields)


def test_a_job_whose_server_was_killed_starts_again(house: House) -> None:
    job = leave_running(house)
    with house.open() as worker:
        done = worker.wait(job.id, timeout=DEADLINE)
        assert (done.status, done.num_starts) == (JobStatus.SUCCEEDED, 2)
        assert "the server stopped; the job will start again" in messages(worker, job)


def test_a_job_that_always_meets_the_end_of_its_server_fails(house: House) -> None:
    job = leave_running(house, MAX_STARTS)
    with house.open() as worker:
        done = worker.get(job.id)
        assert done.status is JobStatus.FAILED
        assert done.error is not None
        assert done.error.code == "interrupted"
        assert house.store.names() == []


def test_a_cancellation_outlives_the_server(house: House) -> None:
    job = leave_running(house, is_cancel_asked=True)
    with house.open() as worker:
        assert worker.get(job.id).status is JobStatus.CANCELLED


def test_a_complete_training_is_published_and_not_repeated(house: House) -> None:
    vector = SteeringVector({1: torch.ones(32)})
    fields: dict[str, Any] = {
        "fine_tuned_vector": VectorReference("revenant", vector.revision),
        "unpublished": encode_safetensors(vector),
        "is_cancel_asked": False,
    }
    job = leave_running(house, MAX_STARTS, **fields)
    with house.open(start=False) as worker:
        house.store.put("revenant", vector)  # it was killed between the registry and its own record
        with pytest.raises(InvalidRequest, match="being published"):
            worker.cancel(job.id)
    with house.open(FailingTrainer(RuntimeError("trained anew"))) as worker:
        done = worker.get(job.id)
        assert (done.status, done.fine_tuned_vector) == (JobStatus.SUCCEEDED, fields["fine_tuned_vector"])
        assert [record.revision for record in house.store.history("revenant")] == [vector.revision]
        assert worker.database.unpublished(job.id) is None


def test_a_registry_that_is_closed_costs_no_trained_vector(house: House) -> None:
    trainer = LateTrainer(lambda job: house.store.close())
    with house.open(trainer) as worker:
        job = ask(worker)
        worker.wait(job.id, lambda job: job.fine_tuned_vector is not None, timeout=DEADLINE)
        assert worker.get(job.id).status is JobStatus.RUNNING
    with house.open(FailingTrainer(RuntimeError("trained anew"))) as worker:
        done = worker.wait(job.id, timeout=DEADLINE)
        assert done.status is JobStatus.SUCCEEDED
        assert worker.files.read(done.result_files[0])[0] == "report.json"
        assert house.store.names() == [job.name]


class FullDisk:
    """Refuses what it is asked about while it is full."""

    is_full = False

    def check(self) -> None:
        if self.is_full:
            raise StorageFull("the disk is full")


DISK = FullDisk()


class FillingStore(VectorStore):
    """A registry on that disk."""

    def put(self, *arguments: Any, **options: Any) -> Any:
        DISK.check()
        return super().put(*arguments, **options)


class FillingDatabase(JobDatabase):
    """A database of jobs on that disk: no record of a job can be changed."""

    def change_job(self, *arguments: Any, **options: Any) -> Any:
        DISK.check()
        return super().change_job(*arguments, **options)


@contextlib.contextmanager
def on_a_disk_that_fills(folder: Path, trainer: Trainer, store: type[VectorStore] = VectorStore) -> Iterator[JobWorker]:
    DISK.is_full = False
    kind = FillingDatabase if store is VectorStore else JobDatabase
    with store(folder / "vectors") as opened, kind(folder / "jobs.sqlite") as database:
        with JobWorker(database, FileStore(folder / "files", database), opened, trainer).start() as worker:
            yield worker
        DISK.is_full = False


def test_a_vector_that_the_disk_refuses_is_published_when_it_has_room(tmp_path: Path) -> None:
    def fill(job: JobRecord) -> None:
        DISK.is_full = True

    with on_a_disk_that_fills(tmp_path, LateTrainer(fill), FillingStore) as worker:
        job = ask(worker)
        worker.wait(job.id, lambda job: job.fine_tuned_vector is not None, timeout=DEADLINE)
        other = worker.wait(ask(worker, b"no data").id, timeout=DEADLINE)
        assert other.status is JobStatus.FAILED, "other jobs go on meanwhile"
        assert worker.get(job.id).status is JobStatus.RUNNING
        assert any("the vector is kept" in message for message in messages(worker, job))
        DISK.is_full = False
        assert worker.wait(job.id, timeout=DEADLINE).status is JobStatus.SUCCEEDED
        assert worker.database.unpublished(job.id) is None


def test_a_job_whose_records_the_disk_refuses_fails_with_the_reason_and_the_worker_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = GatedTrainer()
    with on_a_disk_that_fills(tmp_path, trainer) as worker:
        job = ask(worker)
        assert trainer.has_come.wait(DEADLINE)
        DISK.is_full = True
        trainer.gate.set()
        eventually(lambda: "cannot be recorded yet" in caplog.text)
        assert worker.get(job.id).status is JobStatus.RUNNING
        DISK.is_full = False
        done = worker.wait(job.id, timeout=DEADLINE)
        assert done.status is JobStatus.FAILED
        assert done.error is not None
        assert (done.error.code, done.error.message) == ("disk_full", "the disk is full")
        assert worker.wait(ask(worker).id, timeout=DEADLINE).status is JobStatus.SUCCEEDED


def test_waiting_ends_in_time(house: House) -> None:
    with house.open(start=False) as worker:
        job = ask(worker)
        with pytest.raises(TimeoutError):
            worker.wait(job.id, timeout=0.01)
        assert worker.wait(job.id, lambda job: job.status is JobStatus.QUEUED) == job


@pytest.mark.parametrize(
    ("filename", "name"),
    [
        ("quiz.jsonl", "quiz-0a1b2c3d"),
        ("a.b.csv", "a.b-0a1b2c3d"),
        ("plain", "plain-0a1b2c3d"),
        ("../../etc/passwd", "passwd-0a1b2c3d"),
        ("C:\\data\\my quiz (2).csv", "my-quiz-2-0a1b2c3d"),
        ("données.jsonl", "donn-es-0a1b2c3d"),
        (".hidden", "hidden-0a1b2c3d"),
        ("数据.jsonl", "vector-0a1b2c3d"),
        ("-._", "vector-0a1b2c3d"),
        ("x" * 300 + ".jsonl", "x" * 55 + "-0a1b2c3d"),
        ("y" * 54 + "-z.jsonl", "y" * 54 + "-0a1b2c3d"),
    ],
)
def test_a_name_comes_from_the_file_and_the_job(filename: str, name: str) -> None:
    assert name_for(filename, "ftjob-00000000000000ff0a1b2c3d") == name
