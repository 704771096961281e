"""Uploads files, creates, does and cancels training jobs until killed, saying each step.

The parent imports torch once and forks a child for each line of stdin, `folder seed`. A child says `child` and its
process id, `open` once all is open, `kept file`, `created job` and `asked job` for what was acknowledged, `ended job
status` for what it saw, and between them where the worker is: `read`, `extract`, `sweep`, `writing`, `completing`,
`publishing`, `published`. When it is dead the parent says `ended-child`.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from server.errors import InvalidRequest
from server.jobs.database import JobDatabase
from server.jobs.files import FileStore
from server.jobs.records import FileRecord, JobRecord, JobRequest
from server.jobs.worker import JobWorker
from tests.killing import fork_for_every_line, say
from tests.server.jobs.trainers import DATA, PairTrainer
from vectors.store import StoredVector, VectorStore
from vectors.vector import SteeringVector

torch.set_num_threads(1)


class TalkingTrainer(PairTrainer):
    """Says the phase of each item."""

    def between(self, phase: str, number: int, is_cancelled: Callable[[], bool]) -> None:
        say(phase)


class TalkingFiles(FileStore):
    """Says when it writes."""

    def write(self, filename: str, purpose: str, source: BinaryIO) -> FileRecord:
        say("writing")
        return super().write(filename, purpose, source)


class TalkingDatabase(JobDatabase):
    """Says when a training becomes complete."""

    def change_job(self, identifier: str, **changes: Any) -> JobRecord:
        if changes.get("result_files"):
            say("completing")
        return super().change_job(identifier, **changes)


class TalkingStore(VectorStore):
    """Says when it publishes."""

    def put(self, name: str, vector: SteeringVector, **conditions: Any) -> tuple[StoredVector, bool]:
        say("publishing")
        stored = super().put(name, vector, **conditions)
        say("published")
        return stored


def work(root: Path, seed: int) -> None:
    chance = random.Random(seed)
    with TalkingStore(root / "vectors") as store, TalkingDatabase(root / "jobs.sqlite") as database:
        files = TalkingFiles(root / "files", database)
        with JobWorker(database, files, store, TalkingTrainer()) as worker:
            worker.start()
            say("open")
            for number in itertools.count():
                file = files.put("quiz.jsonl", "fine-tune", DATA)
                say("kept", file.id)
                request = JobRequest(model="tiny", training_file=file.id, name=f"v{seed}-{number}")
                job = worker.create(request)
                say("created", job.id)
                if chance.random() < 0.4:
                    for _ in range(chance.randrange(3)):
                        worker.database.events(job.id)  # let the worker go on for a moment
                    try:
                        worker.cancel(job.id)
                        say("asked", job.id)
                    except InvalidRequest:
                        pass  # it was faster
                if chance.random() < 0.7:
                    say("ended", job.id, worker.wait(job.id).status.label)


if __name__ == "__main__":
    fork_for_every_line(work)
