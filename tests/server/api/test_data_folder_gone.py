"""A data folder that is taken from a running server: it is neither read nor written until it is back."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.api.serving import Server, direction, serving
from tests.server.jobs.trainers import PairTrainer

VECTORS = "/v1/steering/vectors"
CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, "temperature": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("house") / "data"


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with serving(folder, trainer=PairTrainer()) as made:
        made.http.post(VECTORS, json=vector("kept")).raise_for_status()
        upload(made).raise_for_status()
        made.http.post("/v1/responses", json=RESPONSE).raise_for_status()
        yield made


def vector(name: str) -> dict[str, Any]:
    return {"name": name, "directions": {"1": direction(1).tolist()}}


def upload(server: Server) -> httpx.Response:
    form = {"file": ("rows.jsonl", b"a row\n")}
    return server.http.post("/v1/files", files=form, data={"purpose": "fine-tune"})


JOB = {"model": "tiny", "training_file": f"file-{0:024x}"}
RESPONSE = {"input": "hi", "max_output_tokens": 2, "store": True}

ASKED: dict[str, Callable[[Server], httpx.Response]] = {
    "list": lambda server: server.http.get(VECTORS),
    "models": lambda server: server.http.get("/v1/models"),
    "get": lambda server: server.http.get(f"{VECTORS}/kept"),
    "content": lambda server: server.http.get(f"{VECTORS}/kept/content"),
    "create": lambda server: server.http.post(VECTORS, json=vector("new")),
    "change": lambda server: server.http.patch(f"{VECTORS}/kept", json={"default_scale": 2}),
    "delete": lambda server: server.http.delete(f"{VECTORS}/kept"),
    "steer": lambda server: server.http.post("/v1/chat/completions", json=CHAT | {"steering": [{"vector": "kept"}]}),
    "files": lambda server: server.http.get("/v1/files"),
    "upload": upload,
    "jobs": lambda server: server.http.get("/v1/fine_tuning/jobs"),
    "train": lambda server: server.http.post(
        "/v1/fine_tuning/jobs", json={"model": "tiny", "training_file": f"file-{0:024x}"}
    ),
    "store": lambda server: server.http.post("/v1/responses", json=RESPONSE),
}
READING = frozenset({"list", "models", "get", "content", "steer", "files", "jobs"})
OF_VECTORS = frozenset({"list", "models", "get", "content", "create", "change", "delete", "steer"})
OF_FILES = frozenset({"files", "upload", "train"})
OF_JOBS = OF_FILES | {"jobs"}
PARTS = {
    "": frozenset(ASKED),
    "vectors": OF_VECTORS,
    "vectors/names": OF_VECTORS,
    "vectors/objects": OF_VECTORS,
    "vectors/lock": OF_VECTORS,
    "files": OF_FILES,
    "jobs.sqlite": OF_JOBS,
    "jobs.sqlite-wal": OF_JOBS,
    "responses.sqlite": frozenset({"store"}),
}
"""What cannot be done without a part of the folder."""


def tree(folder: Path) -> dict[str, bytes]:
    """Every file under `folder`."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("is_replaced", [False, True], ids=["taken", "replaced"])
@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_is_taken_is_refused_by_name_until_it_is_back(
    server: Server, folder: Path, part: str, is_replaced: bool
) -> None:
    path = folder / part if part else folder
    aside = folder.parent / "aside"
    path.rename(aside)
    if is_replaced:
        copy = shutil.copytree if aside.is_dir() else shutil.copy
        copy(aside, path)
    other = tree(path) if is_replaced and path.is_dir() else {}
    before = tree(aside) if aside.is_dir() else {"": aside.read_bytes()}
    for name in PARTS[part]:
        answer = ASKED[name](server)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (503, "storage_gone"), name
        assert str(folder) not in error["message"]
    assert {name: ASKED[name](server).status_code for name in READING - PARTS[part]} == dict.fromkeys(
        READING - PARTS[part], 200
    )
    ready = server.http.get("/ready")
    assert ready.status_code == 503
    assert (part or "vectors") in ready.json()["error"]["message"]
    assert server.http.get("/health").status_code == 200
    assert server.http.post("/v1/chat/completions", json=CHAT).status_code == 200
    assert path.exists() == is_replaced
    if path.is_dir():
        assert tree(path) == other
    if part in ("", "vectors", "vectors/names", "vectors/objects"):
        assert (tree(aside) if aside.is_dir() else {"": aside.read_bytes()}) == before
    if is_replaced:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    aside.rename(path)
    assert server.http.get("/ready").status_code == 200
    assert {ASKED[name](server).status_code for name in READING} == {200}
    assert server.http.post(VECTORS, json=vector("again")).status_code == 201
    assert server.http.delete(f"{VECTORS}/again").status_code == 200
    assert upload(server).status_code == 200
    assert server.http.post("/v1/responses", json=RESPONSE).status_code == 200


def test_a_folder_that_never_comes_back(tmp_path: Path) -> None:
    """The system gives a number that is free to the next folder, so the one that is gone must not be let go."""
    folder = tmp_path / "data"
    with serving(folder, trainer=PairTrainer()) as server:
        names = folder / "vectors" / "names"
        number = names.stat().st_ino
        names.rmdir()
        others = [folder / "vectors" / str(made) for made in range(100)]
        for other in others:
            other.mkdir()
        assert number not in {other.stat().st_ino for other in others}
        others[0].rename(names)
        assert server.http.get(VECTORS).status_code == 503, "an empty list is no answer either"
        shutil.rmtree(folder)
        assert server.http.get("/ready").status_code == 503
    assert not folder.exists()
