"""The Fine-tuning API: the official client drives a training from upload to a steered answer; the rest is refused."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from server.errors import from_vectors_error
from server.jobs.records import JobRequest
from server.keys import ApiKeys
from tests.server.api.serving import Server, serving, vector
from tests.server.jobs.trainers import DATA, LINES, FailingTrainer, GatedTrainer, PairTrainer
from vectors.errors import (
    InvalidData,
    InvalidMethod,
    MissingDependency,
    StorageFull,
    StoreCorrupt,
    StoreLocked,
    VectorNotFound,
    VectorsError,
)

PATH = "/v1/fine_tuning/jobs"
FIELDS = {
    "id", "object", "created_at", "finished_at", "estimated_finish", "status", "error", "model", "fine_tuned_model",
    "organization_id", "training_file", "validation_file", "result_files", "trained_tokens", "seed", "hyperparameters",
    "method", "integrations", "metadata",
}  # fmt: skip
DEADLINE = 60.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that trains; tests use names of their own."""
    with serving(tmp_path_factory.mktemp("data"), trainer=PairTrainer()) as running:
        running.store.put("calm", vector(1))
        yield running


@pytest.fixture(scope="module")
def file(server: Server) -> str:
    """The id of an uploaded file."""
    return upload(server)


def upload(server: Server, content: bytes = DATA, name: str = "my quiz.jsonl") -> str:
    return server.sdk.files.create(file=(name, content), purpose="fine-tune").id


def error_of(response: httpx.Response) -> dict[str, Any]:
    """What an error's envelope holds."""
    assert set(response.json()) == {"error"}
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def finished(server: Server, job: str) -> Any:
    """The job as the client sees it when it has ended."""
    server.jobs.wait(job, timeout=DEADLINE)
    return server.sdk.fine_tuning.jobs.retrieve(job)


def test_a_training_from_upload_to_a_steered_answer(server: Server) -> None:
    training, validation, retention = (upload(server, name=f"{name}.jsonl") for name in ("a", "b", "c"))
    method: Any = {"type": "steering", "steering": {"layers": [1], "scales": "auto", "retention_file": retention}}
    made = server.sdk.fine_tuning.jobs.create(
        model="tiny",
        training_file=training,
        validation_file=validation,
        suffix="polite",
        seed=42,
        method=method,
        metadata={"who": "me"},
        hyperparameters={"n_epochs": "auto"},
        integrations=[],
    )
    assert (made.object, made.status, made.model, made.seed) == ("fine_tuning.job", "queued", "tiny", 42)
    assert (made.fine_tuned_model, made.finished_at, made.trained_tokens, made.error) == (None, None, None, None)
    assert (made.training_file, made.validation_file, made.metadata) == (training, validation, {"who": "me"})
    done = finished(server, made.id)
    assert (done.status, done.fine_tuned_model, done.trained_tokens) == ("succeeded", "tiny+polite", 400)
    assert done.to_dict()["method"] == method
    assert done.finished_at >= done.created_at
    report, plot = (server.sdk.files.retrieve(result) for result in done.result_files)
    assert (report.filename, report.purpose, plot.filename) == ("report.json", "fine-tune-results", "grid.png")
    assert json.loads(server.sdk.files.content(report.id).read()) == {"items": len(LINES), "seed": 42}
    assert "tiny+polite" in [model.id for model in server.sdk.models.list()]
    answer = server.sdk.chat.completions.create(
        model=done.fine_tuned_model, messages=[{"role": "user", "content": "hi"}], max_tokens=1
    )
    assert [entry["vector"] for entry in answer.steering] == ["polite"]  # type: ignore[attr-defined]
    assert set(server.http.get(f"{PATH}/{made.id}").json()) == FIELDS


def test_events_and_checkpoints_as_the_official_client_reads_them(server: Server, file: str) -> None:
    job = server.sdk.fine_tuning.jobs.create(model="tiny", training_file=file)
    finished(server, job.id)
    events = list(server.sdk.fine_tuning.jobs.list_events(job.id, limit=2))
    assert len(events) > 4
    assert len({event.id for event in events}) == len(events)
    assert events[-1].message == "the job was created and is waiting for its turn"
    assert "was published as" in events[0].message
    assert {(event.object, event.level) for event in events} == {("fine_tuning.job.event", "info")}
    metrics = [event for event in events if event.type == "metrics"]
    assert set(metrics[0].data) == {"phase", "num_done", "num_total", "best", "seconds_left"}  # type: ignore[call-overload]
    after = server.sdk.fine_tuning.jobs.list_events(job.id, after=events[2].id, limit=1)
    assert (after.data, after.has_more) == ([events[3]], True)
    assert list(server.sdk.fine_tuning.jobs.checkpoints.list(job.id)) == []
    raw = server.http.get(f"{PATH}/{job.id}/checkpoints").json()
    assert raw == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}


def test_without_a_suffix_the_name_comes_from_the_file_and_the_job(server: Server, file: str) -> None:
    first, second = (server.sdk.fine_tuning.jobs.create(model="tiny", training_file=file) for _ in range(2))
    names = [finished(server, job.id).fine_tuned_model for job in (first, second)]
    assert names == [f"tiny+my-quiz-{job.id[-8:]}" for job in (first, second)]
    assert first.seed != second.seed


def test_lists_come_newest_first_and_by_metadata(tmp_path: Path) -> None:
    with serving(tmp_path, trainer=PairTrainer()) as server:
        file, jobs = upload(server), server.sdk.fine_tuning.jobs
        given: list[dict[str, str] | None] = [{"a": "1"}, {"a": "1", "b[c]": ""}, {"a": "2"}, None]
        ids = [jobs.create(model="tiny", training_file=file, metadata=metadata).id for metadata in given]
        assert [job.id for job in jobs.list(limit=3)] == ids[::-1]
        assert [job.id for job in jobs.list(metadata={"a": "1"})] == [ids[1], ids[0]]
        assert [job.id for job in jobs.list(metadata={"a": "1", "b[c]": ""})] == [ids[1]]
        assert [job.id for job in jobs.list(metadata={"a": "3"})] == []
        assert [job["id"] for job in server.http.get(f"{PATH}?metadata=null").json()["data"]] == [ids[3]]
        page = jobs.list(limit=1, after=ids[2])
        assert ([job.id for job in page.data], page.has_more) == ([ids[1]], True)


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("after=x", "after"),
        ("order=asc", "order"),
        ("metadata=x", "metadata"),
        ("metadata[a=x", "metadata"),
        ("metadata=null&metadata[a]=x", "metadata"),
        ("metadata[a]=x&metadata[a]=y", "metadata[a]"),
    ],
)
def test_a_list_is_asked_for_properly_or_refused(server: Server, query: str, param: str) -> None:
    refused = server.http.get(f"{PATH}?{query}")
    assert (refused.status_code, error_of(refused)["param"]) == (400, param)


def test_cancelling_a_job(tmp_path: Path) -> None:
    trainer = GatedTrainer()
    with serving(tmp_path, trainer=trainer) as server:
        jobs, file = server.sdk.fine_tuning.jobs, upload(server)
        running, queued = (jobs.create(model="tiny", training_file=file) for _ in range(2))
        assert trainer.has_come.wait(DEADLINE)
        assert jobs.retrieve(running.id).status == "running"
        assert jobs.cancel(queued.id).status == "cancelled"
        assert jobs.cancel(running.id).status in ("running", "cancelled")
        assert finished(server, running.id).status == "cancelled"
        with pytest.raises(openai.BadRequestError) as ended:
            jobs.cancel(running.id)
        assert ended.value.code == "job_ended"
        assert server.store.names() == []


def test_a_failed_job_says_why(server: Server) -> None:
    job = server.sdk.fine_tuning.jobs.create(model="tiny", training_file=upload(server, b"no json"))
    done = finished(server, job.id)
    assert (done.status, done.fine_tuned_model, done.result_files) == ("failed", None, [])
    assert (done.error.code, done.error.param) == ("invalid_training_data", None)
    assert done.error.message == "my quiz.jsonl, line 1: no positive and negative"


def test_a_broken_trainer_tells_its_log_and_nobody_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with serving(tmp_path, trainer=FailingTrainer(RuntimeError("secret"))) as server:
        job = server.sdk.fine_tuning.jobs.create(model="tiny", training_file=upload(server))
        assert finished(server, job.id).error.code == "server_error"
        assert (
            "secret" not in server.http.get(f"{PATH}/{job.id}").text + server.http.get(f"{PATH}/{job.id}/events").text
        )
    assert "secret" in caplog.text


def test_no_gain_is_a_success_that_publishes_nothing(server: Server) -> None:
    file = upload(server, b'{"positive": "unhelpful", "negative": "x"}')
    job = server.sdk.fine_tuning.jobs.create(model="tiny", training_file=file, suffix="vain")
    done = finished(server, job.id)
    assert (done.status, done.fine_tuned_model, len(done.result_files)) == ("succeeded", None, 2)
    last = server.sdk.fine_tuning.jobs.list_events(job.id).data[0]
    assert (last.level, last.message) == ("warn", "no vector was published: it does not help")
    assert "vain" not in server.store.names()


STEERING = {"type": "steering", "steering": {}}
BODIES: dict[str, tuple[dict[str, Any], int, str | None, str]] = {
    "no model": ({"model": None}, 400, "model", "invalid_type"),
    "another model": ({"model": "gpt-4o-mini"}, 404, "model", "model_not_found"),
    "a steered model": ({"model": "tiny+calm"}, 400, "model", "invalid_value"),
    "a malformed model": ({"model": "tiny+calm:x"}, 400, "model", "invalid_steering"),
    "no file": ({"training_file": None}, 400, "training_file", "missing_required_parameter"),
    "no such file": ({"training_file": "file-" + "0" * 24}, 404, "training_file", "file_not_found"),
    "a path": ({"training_file": "../jobs.sqlite"}, 404, "training_file", "file_not_found"),
    "no such validation": ({"validation_file": "file-x"}, 404, "validation_file", "file_not_found"),
    "no such retention": (
        {"method": {"type": "steering", "steering": {"retention_file": "file-x"}}},
        404,
        "method.steering.retention_file",
        "file_not_found",
    ),
    "retention of another type": (
        {"method": {"type": "steering", "steering": {"retention_file": 1}}},
        400,
        "method.steering.retention_file",
        "invalid_type",
    ),
    "no such negative": (
        {"method": {"type": "steering", "steering": {"negative_file": "file-x"}}},
        404,
        "method.steering.negative_file",
        "file_not_found",
    ),
    "negative of another type": (
        {"method": {"type": "steering", "steering": {"negative_file": []}}},
        400,
        "method.steering.negative_file",
        "invalid_type",
    ),
    "a bad suffix": ({"suffix": "../x"}, 400, "suffix", "invalid_vector_name"),
    "an empty suffix": ({"suffix": ""}, 400, "suffix", "invalid_vector_name"),
    "a long suffix": ({"suffix": "x" * 65}, 400, "suffix", "invalid_vector_name"),
    "a bad seed": ({"seed": -1}, 400, "seed", "invalid_value"),
    "a huge seed": ({"seed": 2**31}, 400, "seed", "invalid_value"),
    "a seed as text": ({"seed": "1"}, 400, "seed", "invalid_type"),
    **{
        kind: ({"method": {"type": kind, kind: {}}}, 400, "method.type", "unsupported_parameter")
        for kind in ("supervised", "dpo", "reinforcement", "love")
    },
    "no method type": ({"method": {}}, 400, "method.type", "missing_required_parameter"),
    "a method as text": ({"method": "steering"}, 400, "method", "invalid_type"),
    "two methods": ({"method": STEERING | {"dpo": {}}}, 400, "method.dpo", "unknown_parameter"),
    "an unknown option": (
        {"method": {"type": "steering", "steering": {"colour": 1}}},
        400,
        "method.steering.colour",
        "invalid_method",
    ),
    "a wrong option": (
        {"method": {"type": "steering", "steering": {"layers": [99]}}},
        400,
        "method.steering.layers",
        "invalid_method",
    ),
    "hyperparameters": (
        {"hyperparameters": {"n_epochs": 3}}, 400, "hyperparameters.n_epochs", "unsupported_parameter"
    ),
    "unknown hyperparameters": ({"hyperparameters": {"x": 1}}, 400, "hyperparameters.x", "unknown_parameter"),
    "integrations": ({"integrations": [{"type": "wandb"}]}, 400, "integrations", "unsupported_parameter"),
    "an unknown field": ({"colour": 1}, 400, "colour", "unknown_parameter"),
    "much metadata": ({"metadata": {str(n): "" for n in range(17)}}, 400, "metadata", "invalid_value"),
    "a long key": ({"metadata": {"x" * 65: ""}}, 400, None, "invalid_value"),
    "a long value": ({"metadata": {"x": "y" * 513}}, 400, "metadata.x", "invalid_value"),
    "numbers as metadata": ({"metadata": {"x": 1}}, 400, "metadata.x", "invalid_type"),
}  # fmt: skip


@pytest.mark.parametrize("case", BODIES)
def test_a_job_that_cannot_be_is_refused_by_name(server: Server, file: str, case: str) -> None:
    change, status, param, code = BODIES[case]
    before = server.jobs.database.jobs()
    refused = server.http.post(PATH, json={"model": "tiny", "training_file": file} | change)
    error = error_of(refused)
    assert (refused.status_code, error["code"]) == (status, code)
    assert param is None or error["param"] == param
    assert server.jobs.database.jobs() == before
    if code == "unsupported_parameter" and param == "method.type":
        assert "steering" in error["message"]


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b"null", b'{"model": NaN}', b'{"model": "\\ud800"}', b"[" * 100_000]
)
def test_a_body_that_is_no_object_is_refused(server: Server, body: bytes) -> None:
    refused = server.http.post(PATH, content=body)
    assert (refused.status_code, error_of(refused)["code"]) == (400, "invalid_json")


def test_a_large_body_is_refused(server: Server, file: str) -> None:
    steering = {"type": "steering", "steering": {"layers": [1] * 200_000}}
    refused = server.http.post(PATH, json={"model": "tiny", "training_file": file, "method": steering})
    assert (refused.status_code, error_of(refused)["code"]) == (413, "payload_too_large")


def test_results_are_no_training_data(server: Server, file: str) -> None:
    done = finished(server, server.sdk.fine_tuning.jobs.create(model="tiny", training_file=file).id)
    with pytest.raises(openai.BadRequestError) as refused:
        server.sdk.fine_tuning.jobs.create(model="tiny", training_file=done.result_files[0])
    assert refused.value.param == "training_file"


def test_what_asks_for_nothing_is_taken(server: Server, file: str) -> None:
    for nothing in (
        {"method": None, "hyperparameters": None, "integrations": None, "metadata": None, "seed": None, "suffix": None},
        {"method": {"type": "steering"}, "hyperparameters": {}, "integrations": [], "metadata": {}},
        {"method": {"type": "steering", "steering": None}, "hyperparameters": {"batch_size": "auto"}},
    ):
        made = server.http.post(PATH, json={"model": "tiny", "training_file": file} | nothing)
        assert (made.status_code, made.json()["method"]) == (200, STEERING)
        assert finished(server, made.json()["id"]).status == "succeeded"


def test_jobs_that_are_not_there(server: Server) -> None:
    jobs = server.sdk.fine_tuning.jobs
    for name in ("ftjob-" + "0" * 24, "x", "..%2f..", "%00"):
        for call in (jobs.retrieve, jobs.cancel, jobs.list_events, jobs.checkpoints.list):
            with pytest.raises(openai.NotFoundError) as missing:
                call(name)
            assert missing.value.code == "fine_tuning_job_not_found"


def test_a_job_cannot_be_paused(server: Server, file: str) -> None:
    job = server.sdk.fine_tuning.jobs.create(model="tiny", training_file=file)
    for call, verb in ((server.sdk.fine_tuning.jobs.pause, "pause"), (server.sdk.fine_tuning.jobs.resume, "resume")):
        with pytest.raises(openai.BadRequestError) as refused:
            call(job.id)
        assert refused.value.code == "unsupported_operation"
        assert verb in refused.value.message
    finished(server, job.id)


READING = [("GET", PATH), *(("GET", f"{PATH}/JOB{end}") for end in ("", "/events", "/checkpoints"))]
CHANGING = [("POST", PATH), *(("POST", f"{PATH}/JOB/{verb}") for verb in ("cancel", "pause", "resume"))]


def test_only_keys_that_manage_may_read_or_change(tmp_path: Path) -> None:
    with serving(tmp_path, trainer=PairTrainer(), keys=ApiKeys(use=["use"], manage=["manage"])) as server:
        file = server.jobs.files.put("a.jsonl", "fine-tune", DATA).id
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="manage", max_retries=0) as client:
            job = client.fine_tuning.jobs.create(model="tiny", training_file=file).id
        for method, path in READING + CHANGING:
            for key, status in ((None, 401), ("wrong", 401), ("use", 403)):
                headers = {} if key is None else {"Authorization": f"Bearer {key}"}
                reply = server.http.request(method, path.replace("JOB", job), headers=headers)
                assert reply.status_code == status, (method, path, key)


def test_without_a_trainer_there_are_no_jobs(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        for method, path in READING + CHANGING[:2]:
            reply = server.http.request(method, path)
            assert (reply.status_code, error_of(reply)["code"]) == (503, "training_not_available")


class Refusing(PairTrainer):
    """Refuses every method."""

    def __init__(self, error: VectorsError) -> None:
        self.error = error

    def check(self, job: JobRequest) -> None:
        """Raise."""
        raise self.error


@pytest.mark.parametrize(
    ("error", "status", "code", "param"),
    [
        (InvalidMethod("no"), 400, "invalid_method", "method.steering"),
        (InvalidMethod("no", "layers"), 400, "invalid_method", "method.steering.layers"),
        (InvalidData("no"), 400, "invalid_training_data", "method.steering"),
        (VectorNotFound("x"), 404, "vector_not_found", "method.steering"),
        (MissingDependency("pip install scipy"), 503, "missing_dependency", "method.steering"),
        (StoreCorrupt("x is damaged"), 503, "stored_data_damaged", "method.steering"),
        (StorageFull("x is full"), 507, "disk_full", "method.steering"),
        (StoreLocked("/secret/place"), 500, "internal_error", None),
    ],
)
def test_what_the_trainer_refuses_has_a_status(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    error: VectorsError,
    status: int,
    code: str,
    param: str | None,
) -> None:
    caplog.set_level(logging.CRITICAL, "tiller.access")
    with serving(tmp_path, trainer=Refusing(error)) as server:
        reply = server.http.post(PATH, json={"model": "tiny", "training_file": upload(server)})
        assert (reply.status_code, error_of(reply)["code"], error_of(reply)["param"]) == (status, code, param)
        assert "secret" not in reply.text


def test_the_table_of_errors_keeps_what_an_error_names() -> None:
    assert from_vectors_error(InvalidMethod("no", "layers"), "method").param == "layers"
    assert from_vectors_error(InvalidMethod("no"), "method").param == "method"
