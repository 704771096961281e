"""The changes of a data folder whose steps are made to fail, and what a folder holds."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from server.jobs.database import JobDatabase, missing_file
from server.jobs.files import FileStore
from server.jobs.records import JobRequest
from server.jobs.worker import JobWorker
from server.response_store import ResponseStore, StoredResponse
from tests.server.jobs.trainers import PairTrainer
from vectors.errors import VectorsError
from vectors.store import VectorStore
from vectors.vector import SteeringVector

OWNER = b"owner"


def vector(number: int) -> SteeringVector:
    """Different lengths, so that a torn or mixed file cannot pass for another."""
    return SteeringVector({0: torch.full((8 + number,), float(number + 1))}, description=f"number {number}")


@dataclass(frozen=True)
class House:
    """The open parts of a data folder."""

    store: VectorStore
    database: JobDatabase
    files: FileStore
    responses: ResponseStore
    worker: JobWorker


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[House]:
    """Open a data folder as a server does; jobs do not run."""
    with (
        VectorStore(folder / "vectors") as store,
        JobDatabase(folder / "jobs.sqlite3") as database,
        ResponseStore(folder / "responses.sqlite3", max_count=10) as responses,
    ):
        files = FileStore(folder / "files", database)
        yield House(store, database, files, responses, JobWorker(database, files, store, PairTrainer()))


def fill(folder: Path) -> None:
    """A small folder of everything."""
    with opened(folder) as house:
        for number in (1, 2):
            house.store.put("known", vector(number))
        house.store.put("other", vector(3))
        file = house.files.put("rows.jsonl", "fine-tune", b"first\n" * 100)
        house.files.put("more.jsonl", "fine-tune", b"second\n" * 100)
        house.worker.create(JobRequest(model="tiny", training_file=file.id, name="made"))
        house.responses.put(OWNER, StoredResponse({"id": "resp_1", "output": []}, []))


def file_named(house: House, name: str) -> str:
    """The id of a file. Raises `NotFound`."""
    for record in house.files.list():
        if record.filename == name:
            return record.id
    raise missing_file(name)


def new_id(house: House) -> str:
    """An id that no response has."""
    return "resp_2" if house.responses.find(OWNER, "resp_2") is None else "resp_3"


CHANGES: Mapping[str, Callable[[House], object]] = {
    "put a new vector": lambda house: house.store.put("new", vector(5)),
    "put a revision": lambda house: house.store.put("known", vector(6)),
    "roll back": lambda house: house.store.rollback("known", vector(1).revision),
    "delete a vector": lambda house: house.store.remove("known"),
    "upload a file": lambda house: house.files.put("new.jsonl", "fine-tune", b"third\n" * 100),
    "delete a file": lambda house: house.files.delete(file_named(house, "more.jsonl")),
    "create a job": lambda house: house.worker.create(
        JobRequest(model="tiny", training_file=file_named(house, "rows.jsonl"), name="again")
    ),
    "cancel a job": lambda house: house.worker.cancel(house.database.jobs()[0].id),
    "store a response": lambda house: house.responses.put(
        OWNER, StoredResponse({"id": new_id(house), "output": []}, [])
    ),
    "delete a response": lambda house: house.responses.remove(OWNER, "resp_1"),
}
"""By what a client asks for."""


def contents(folder: Path) -> dict[str, Any]:
    """Everything that clients can get from a data folder after a start, without ids that differ from run to run."""
    try:
        with opened(folder) as house:
            return contents_of(house)
    except VectorsError as error:
        return {"damaged": str(error)}


def contents_of(house: House) -> dict[str, Any]:
    """`contents` of a folder that is open."""
    return {
        "vectors": {
            name: [house.store.get(name, record.revision).vector.description for record in house.store.history(name)]
            + [house.store.get(name).vector.description]
            for name in house.store.names()
        },
        "files": sorted(house.files.read(record.id) for record in house.files.list()),
        "jobs": sorted((job.name, job.status.label) for job in house.database.jobs()),
        "responses": [name for name in ("resp_1", "resp_2") if house.responses.find(OWNER, name) is not None],
    }
