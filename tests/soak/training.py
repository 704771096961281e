"""The clients that keep files and train: uploads, deletions, small jobs that end in every way, cancellations."""

from __future__ import annotations

import asyncio
import hashlib
import random
from typing import Any

from tests.server.cli.training.test_training_live import sycophancy
from tests.soak.ledger import FINAL, Job, Ledger, SoakFailed
from tests.soak.life import BUSY, Life
from tests.soak.vectors import PATH, read_vector

FILES, JOBS = "/v1/files", "/v1/fine_tuning/jobs"
MOST_FILES = 12
MOST_TRAINED = 4
"""How many finished trainings keep their vector and their files."""

METHOD = {"variant": "mean_difference", "layers": [3], "scales": [0.75], "allow_no_gain": True}
GOOD = sycophancy(24)
BAD = b'{"question": "q", "choices": ["a", "b"], "answer": 7}\n' * 20


async def upload(life: Life, ledger: Ledger, filename: str, content: bytes) -> str | None:
    """The id of the new file; None when the server was busy."""
    ledger.begin_upload(filename)
    form: Any = {"files": {"file": (filename, content)}, "data": {"purpose": "fine-tune"}}
    reply = await life.ask("POST", FILES, **form)
    identifier = None if reply.status_code in BUSY else str(reply.json()["id"])
    ledger.end_upload(filename, identifier, content)
    return identifier


async def delete(life: Life, ledger: Ledger, identifier: str) -> None:
    """Delete a file, unless an unfinished job needs it."""
    ledger.begin_deletion(identifier)
    reply = await life.ask("DELETE", f"{FILES}/{identifier}", expected=(200, 409))
    ledger.end_deletion(identifier, is_made=reply.status_code == 200)


async def read_file(life: Life, identifier: str) -> bytes:
    """The content of a file."""
    while (reply := await life.ask("GET", f"{FILES}/{identifier}/content")).status_code in BUSY:
        await asyncio.sleep(0.1)
    return reply.content


class FileKeeper:
    """Uploads files of random bytes, reads them again, and deletes them."""

    name = "uploads and checks of files"

    def __init__(self, ledger: Ledger, seed: int) -> None:
        self._ledger = ledger
        self._choose = random.Random(seed)
        self._number = 0
        self._own: list[str] = []

    async def act(self, life: Life) -> None:
        self._own = [identifier for identifier in self._own if identifier in self._ledger.files]
        chance = self._choose.random()
        if len(self._own) < 2 or (chance < 0.4 and len(self._own) < MOST_FILES):
            self._number += 1
            content = self._choose.randbytes(self._choose.randrange(1, 200_000))
            identifier = await upload(life, self._ledger, f"random-{self._number}.bin", content)
            self._own += [identifier] if identifier is not None else []
        elif chance < 0.7:
            identifier = self._choose.choice(self._own)
            if hashlib.sha256(await read_file(life, identifier)).hexdigest() != self._ledger.files[identifier]:
                raise SoakFailed(f"the file {identifier} is changed")
        else:
            await delete(life, self._ledger, self._choose.choice(self._own))
        await asyncio.sleep(0.05)


class Trainer:
    """Creates jobs that succeed and jobs that fail, cancels some, and looks how each ends."""

    name = "looks at jobs"

    def __init__(self, ledger: Ledger, seed: int) -> None:
        self._ledger = ledger
        self._choose = random.Random(seed)
        self._number = 0
        self._files: dict[str, str] = {}
        self._trained: list[tuple[str, list[str]]] = []

    async def act(self, life: Life) -> None:
        if len(self._ledger.open_jobs) < 2 and not life.is_over.is_set():
            await self._create(life)
        for identifier, job in self._ledger.open_jobs.items():
            await self.look(life, identifier, job)
        waiting = list(self._ledger.open_jobs.items())
        if waiting and self._choose.random() < 0.03:
            await self._cancel(life, *self._choose.choice(waiting))
        await asyncio.sleep(0.2)

    async def look(self, life: Life, identifier: str, job: Job) -> None:
        """Take in how a job is; if it has ended, check how."""
        shown = await life.read(f"{JOBS}/{identifier}")
        status = shown["status"]
        if status not in FINAL:
            return
        job.check_end(status, (shown["error"] or {}).get("code"))
        if status == "succeeded":
            if shown["fine_tuned_model"] != f"tiller-demo+{job.name}" or not shown["result_files"]:
                raise SoakFailed(f"the job {job.name} succeeded without a result: {shown}")
            results = {result: await read_file(life, result) for result in shown["result_files"]}
            self._ledger.vectors[job.name] = await read_vector(life, job.name)
            for result, content in results.items():
                self._ledger.add_file(result, content)
            self._trained.append((job.name, shown["result_files"]))
        job.status = status
        life.tally.done[f"jobs {status}"] += 1
        if len(self._trained) > MOST_TRAINED:
            await self._forget(life, *self._trained.pop(0))

    async def _create(self, life: Life) -> None:
        self._number += 1
        job = Job("bad" if self._choose.random() < 0.25 else "good", f"trained-{self._number}")
        identifier = self._files.get(job.kind)
        if identifier is None:
            content = GOOD if job.kind == "good" else BAD
            identifier = await upload(life, self._ledger, f"{job.kind}-{self._number}.jsonl", content)
            if identifier is None:
                return
            self._files[job.kind] = identifier
        body = {
            "model": "tiller-demo",
            "training_file": identifier,
            "suffix": job.name,
            "seed": 0,
            "metadata": {"name": job.name},
            "method": {"type": "steering", "steering": METHOD},
        }
        self._ledger.begin_job(job)
        reply = await life.ask("POST", JOBS, json=body)
        self._ledger.end_job(job.name, None if reply.status_code in BUSY else reply.json()["id"])

    async def _cancel(self, life: Life, identifier: str, job: Job) -> None:
        job.may_be_cancelled = True
        reply = await life.ask("POST", f"{JOBS}/{identifier}/cancel", expected=(200, 400))
        if reply.status_code == 400 and reply.json()["error"]["code"] != "job_ended":
            raise SoakFailed(f"cancelling {job.name}: {reply.text[:500]}")
        job.is_cancelled = reply.status_code == 200 or job.is_cancelled
        job.may_be_cancelled = job.is_cancelled

    async def _forget(self, life: Life, name: str, results: list[str]) -> None:
        self._ledger.begin_change(name, None)
        reply = await life.ask("DELETE", f"{PATH}/{name}")
        self._ledger.end_change(name, is_made=reply.status_code == 200)
        for identifier in results:
            await delete(life, self._ledger, identifier)


async def settle_training(life: Life, ledger: Ledger) -> None:
    """Compare the files and jobs with the ledger. Raises `SoakFailed`."""
    listed = await life.read_pages(FILES)
    jobs = await life.read_pages(JOBS)
    states = {job["id"]: job["status"] for job in jobs}
    ledger.settle_jobs(states, {job["id"]: (job["metadata"] or {}).get("name", "?") for job in jobs})
    unseen = {result for job in jobs if job["id"] in ledger.open_jobs for result in job["result_files"]}
    found = {file["id"]: file["filename"] for file in listed if file["id"] not in unseen}
    contents = {identifier: hashlib.sha256(await read_file(life, identifier)).hexdigest() for identifier in found}
    ledger.settle_files(found, contents)
