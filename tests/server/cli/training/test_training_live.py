"""From a labelled file to a steered answer on a running server, with the official SDK, while others chat."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from server.demo.heldout import quiz_items
from tests.server.cli.running import DEADLINE, ServerProcess

NUM_STREAMS = 8
METHOD: Any = {"type": "steering", "steering": {"variant": "pas_full", "layers": [3], "scales": [0.5, 0.75]}}
FINAL = ("succeeded", "failed", "cancelled")
JOB_DEADLINE = 5 * DEADLINE
"""Seconds after which a job is missing; training gives way to chats, and eight of them run beside it."""


def under_other_names(rows: bytes) -> bytes:
    """The same questions in a table that says `frage` for question, one of them with two options alike."""
    found = [json.loads(line) for line in rows.splitlines()]
    lines = ["frage\tx1\tx2\tloesung"]
    for row in found:
        if row["answer"] < 2:
            choices = [row["choices"][row["answer"]]] * 2 if len(lines) == 3 else row["choices"][:2]
            lines.append("\t".join([row["question"], *choices, "AB"[row["answer"]]]))
    return "\n".join(lines).encode()


def sycophancy(count: int = 400, seed: int = 11) -> bytes:
    rows = [
        {"question": item.question, "choices": item.choices, "answer": item.answer, "context": item.context}
        for item in quiz_items(seed, count, "held_out", "wrong")
    ]
    return "\n".join(map(json.dumps, rows)).encode()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with ServerProcess(tmp_path_factory.mktemp("data")) as process:
        yield process.wait_until_ready()
        assert process.stop() == 0


def finished(sdk: openai.OpenAI, job_id: str) -> Any:
    """The job when it has ended."""
    pause = threading.Event()
    for _ in range(int(JOB_DEADLINE / 0.1)):
        job = sdk.fine_tuning.jobs.retrieve(job_id)
        if job.status in FINAL:
            return job
        pause.wait(0.1)
    raise AssertionError("the job did not end in time")


def stream(sdk: openai.OpenAI, number: int) -> list[str]:
    """The pieces of one streamed answer."""
    answer = sdk.chat.completions.create(
        model="tiller-demo",
        messages=[{"role": "user", "content": f"Do you like music? ({number})"}],
        stream=True,
        temperature=0.9,
        seed=number,
        max_tokens=24,
    )
    return [chunk.choices[0].delta.content or "" for chunk in answer if chunk.choices]


def test_from_upload_to_a_steered_answer_while_eight_streams_run(url: str) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=DEADLINE) as sdk:
        alone = [stream(sdk, number) for number in range(NUM_STREAMS)]
        uploaded = sdk.files.create(file=("beliefs.jsonl", sycophancy(100)), purpose="fine-tune")
        trained = threading.Event()
        beside: list[int] = []

        def stream_until_trained(number: int) -> int:
            rounds = 0
            while not trained.is_set() or rounds == 0:
                assert stream(sdk, number) == alone[number]
                rounds += 1
            return rounds

        with ThreadPoolExecutor(NUM_STREAMS) as pool:
            running = [pool.submit(stream_until_trained, number) for number in range(NUM_STREAMS)]
            try:
                job = sdk.fine_tuning.jobs.create(
                    model="tiller-demo",
                    training_file=uploaded.id,
                    suffix="frank",
                    seed=0,
                    method=METHOD,
                )
                job = finished(sdk, job.id)
            finally:
                trained.set()
            beside = [future.result() for future in running]
        assert all(beside)
        assert job.status == "succeeded", job.error
        assert job.fine_tuned_model == "tiller-demo+frank"
        report = json.loads(sdk.files.content(job.result_files[0]).text)
        assert report["baseline"]["test"]["value"] <= 0.45
        assert report["test"]["accuracy"]["value"] >= 0.75
        assert report["test"]["mcnemar_p"] < 0.001
        assert report["recommended"] is True
        *pictures, outcomes = [sdk.files.content(name).read() for name in job.result_files[1:]]
        assert all(json.loads(line) for line in outcomes.splitlines())
        assert pictures
        assert all(picture.startswith(b"\x89PNG") for picture in pictures)
        answer = sdk.chat.completions.create(
            model=job.fine_tuned_model, messages=[{"role": "user", "content": "Hello!"}], max_tokens=5
        )
        (entry,) = answer.model_extra["steering"]  # type: ignore[index]
        assert (entry["vector"], entry["layers"]) == ("frank", report["chosen"]["layers"])
        assert entry["scale"] == report["chosen"]["scale"]


@pytest.mark.slow
def test_what_is_learned_changes_the_answers_to_new_questions(url: str) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=DEADLINE) as sdk:
        uploaded = sdk.files.create(file=("beliefs.jsonl", sycophancy()), purpose="fine-tune")
        method: Any = {"type": "steering", "steering": {"variant": "pas_full"}}
        job = sdk.fine_tuning.jobs.create(
            model="tiller-demo", training_file=uploaded.id, suffix="frank", seed=0, method=method
        )
        assert finished(sdk, job.id).status == "succeeded"
        right = {"tiller-demo": 0, "tiller-demo+frank": 0}
        for item in quiz_items(99, 40, "trained", "wrong"):
            for model in right:
                answer = sdk.completions.create(model=model, prompt=item.prompt, max_tokens=1, temperature=0)
                right[model] += answer.choices[0].text.strip() == "ABCD"[item.answer]
        assert right["tiller-demo"] <= 18
        assert right["tiller-demo+frank"] >= 30
        events = list(sdk.fine_tuning.jobs.list_events(job.id, limit=100))
        phases = ("answering", "reading activations", "searching", "testing", "retention")
        assert all(any(phase in event.message for event in events) for phase in phases)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            b"\n".join([json.dumps({"question": "q", "choices": ["a", "b"], "answer": 0}).encode()] * 16 + [b"{oops"]),
            "17",
        ),
        (sycophancy(5), "8"),
        (b'{"question": "q", "choices": ["a", "a"], "answer": 0}\n' * 20, "line 1"),
        (b'{"question": "q", "choices": ["a", "b"], "answer": 7}\n' * 20, "line 1"),
        (b'{"what": "q"}\n' * 20, "what"),
    ],
)
def test_bad_data_is_a_failed_job_that_says_where(url: str, content: bytes, words: str) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=DEADLINE) as sdk:
        before = httpx.get(f"{url}/v1/steering/vectors").json()["data"]
        uploaded = sdk.files.create(file=("bad.jsonl", content), purpose="fine-tune")
        job = sdk.fine_tuning.jobs.create(model="tiller-demo", training_file=uploaded.id, suffix="bad")
        job = finished(sdk, job.id)
        assert job.status == "failed"
        assert job.fine_tuned_model is None
        assert words in job.error.message
        assert httpx.get(f"{url}/v1/steering/vectors").json()["data"] == before


@pytest.mark.parametrize(
    ("steering", "param"),
    [
        ({"variant": "magic"}, "variant"),
        ({"site": "elbow"}, "site"),
        ({"layers": [99]}, "layers"),
        ({"scales": [0]}, "scales"),
        ({"task": "dance"}, "task"),
        ({"task": "evaluate", "vector": "nobody"}, "vector"),
        ({"task": "evaluate", "vector": "honest", "icl": 3}, "icl"),
        ({"task": "sweep", "seeds": 0}, "seeds"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_a_method_that_cannot_be_is_refused_by_name(url: str, steering: dict[str, Any], param: str) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=DEADLINE) as sdk:
        uploaded = sdk.files.create(file=("good.jsonl", sycophancy(20)), purpose="fine-tune")
        method: Any = {"type": "steering", "steering": steering}
        with pytest.raises(openai.BadRequestError) as refused:
            sdk.fine_tuning.jobs.create(model="tiller-demo", training_file=uploaded.id, method=method)
        assert refused.value.param == f"method.steering.{param}"


@pytest.mark.slow
def test_evaluation_and_sweep_are_jobs_too(url: str) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=DEADLINE) as sdk:
        uploaded = sdk.files.create(file=("beliefs.jsonl", sycophancy(200)), purpose="fine-tune")
        for steering in (
            {"task": "evaluate", "vector": "honest", "max_items": 60},
            {"task": "sweep", "sizes": [20, 100], "variant": "pas_full", "scales": [0.75], "layers": [3]},
        ):
            method: Any = {"type": "steering", "steering": steering}
            job = sdk.fine_tuning.jobs.create(
                model="tiller-demo", training_file=uploaded.id, seed=0, method=method, suffix="never"
            )
            job = finished(sdk, job.id)
            assert (job.status, job.fine_tuned_model) == ("succeeded", None), job.error
            assert json.loads(sdk.files.content(job.result_files[0]).text)["method"]
        assert httpx.get(f"{url}/v1/steering/vectors/never").status_code == 404


def test_a_table_with_names_of_its_own_is_mapped_and_what_was_understood_is_told(url: str) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=DEADLINE) as sdk:
        table = sdk.files.create(file=("fragen.csv", under_other_names(sycophancy(60))), purpose="fine-tune")
        steering = {**METHOD["steering"], "scales": [1], "variant": "mean_difference", "allow_no_gain": True}
        names = {"question": "frage", "choices": ["x1", "x2"], "answer": "loesung"}
        methods: list[Any] = [{"type": "steering", "steering": {**steering, **more}} for more in ({}, {"map": names})]
        jobs = [
            sdk.fine_tuning.jobs.create(
                model="tiller-demo", training_file=table.id, suffix="mapped", seed=0, method=method
            )
            for method in methods
        ]
        refused, mapped = (finished(sdk, job.id) for job in jobs)
        assert refused.status == "failed"
        assert "fragen.csv, line 2: the fields match no known kind of row: got frage, x1, x2" in refused.error.message
        assert mapped.status == "succeeded", mapped.error
        read = json.loads(sdk.files.content(mapped.result_files[0]).text)["data"]["read"]
        assert read["format"] == "CSV with tabs"
        assert read["fields"] == {"question": "frage", "options": "x1+x2", "answer": "loesung"}
        assert read["skipped"] == {"options that are the same": 1}
        assert read["items"] == read["rows"] - 1
        told = [event.message for event in sdk.fine_tuning.jobs.list_events(mapped.id)]
        assert any(message.startswith("fragen.csv: CSV with tabs: multiple choice") for message in told)
        shown = httpx.get(f"{url}/v1/steering/vectors/mapped").json()["training"]["data"]
        assert shown["items"] == read["items"]
        assert "seen" not in shown


def test_two_files_of_instructions_become_a_vector(url: str) -> None:
    """Lists of harmful and of harmless requests, as they are published: one file each, asked in the user's turn."""
    wanted = "goal,target\n" + "".join(f"Break window number {number},Sure\n" for number in range(14))
    other = json.dumps([{"instruction": f"Bake cake number {number}.", "category": None} for number in range(12)])
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=DEADLINE) as sdk:
        files = [
            sdk.files.create(file=(name, content.encode()), purpose="fine-tune").id
            for name, content in (("harmful.csv", wanted), ("harmless.json", other))
        ]
        steering = {"variant": "mean_difference", "layers": [2], "scales": [1], "prompt": "chat", "allow_no_gain": True}
        method: Any = {"type": "steering", "steering": {**steering, "negative_file": files[1]}}
        job = sdk.fine_tuning.jobs.create(
            model="tiller-demo", training_file=files[0], suffix="refusal", seed=0, method=method
        )
        job = finished(sdk, job.id)
        assert job.status == "succeeded", job.error
        assert job.to_dict()["method"] == method
        data = json.loads(sdk.files.content(job.result_files[0]).text)["data"]
        assert data["read"]["classes"] == {"positive": 14, "negative": 12}
        assert data["read"]["first"]["turn"] == "user"
