"""A server killed in any phase of a training: the registry is as it was, and the job goes on to a true end."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.cli.running import DEADLINE, ServerProcess
from tests.server.cli.training.test_training_live import FINAL, sycophancy

pytestmark = pytest.mark.slow

PHASES = ("answering", "reading activations", "searching", "testing", "retention")


def until(url: str, path: str, is_so: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """What `path` answers when it is so."""
    pause = threading.Event()
    for _ in range(int(DEADLINE / 0.02)):
        answer: dict[str, Any] = httpx.get(f"{url}{path}").json()
        if is_so(answer):
            return answer
        pause.wait(0.02)
    raise AssertionError("it did not become so in time")


def has_begun(phase: str) -> Callable[[dict[str, Any]], bool]:
    def is_so(events: dict[str, Any]) -> bool:
        return any(f"{phase} begins" in event["message"] for event in events["data"])

    return is_so


def names(url: str) -> list[str]:
    return [vector["name"] for vector in httpx.get(f"{url}/v1/steering/vectors").json()["data"]]


@pytest.mark.parametrize("phase", PHASES)
def test_killed_in_a_phase_the_job_ends_truly_and_publishes_once(phase: str, tmp_path: Path) -> None:
    with ServerProcess(tmp_path) as process:
        url = process.wait_until_ready()
        before = names(url)
        files = {"file": ("beliefs.jsonl", sycophancy(1000))}
        uploaded = httpx.post(f"{url}/v1/files", files=files, data={"purpose": "fine-tune"}).json()
        body = {
            "model": "tiller-demo",
            "training_file": uploaded["id"],
            "suffix": "frank",
            "seed": 0,
            "method": {"type": "steering", "steering": {"variant": "pas_full"}},
        }
        job = httpx.post(f"{url}/v1/fine_tuning/jobs", json=body).json()
        path = f"/v1/fine_tuning/jobs/{job['id']}"
        until(url, f"{path}/events?limit=100", has_begun(phase))
        process.signal(signal.SIGKILL)
        process.wait()
    with ServerProcess(tmp_path) as process:
        url = process.wait_until_ready()
        job = httpx.get(f"{url}{path}").json()
        if job["status"] not in FINAL:
            assert job["fine_tuned_model"] is None
        ended = until(url, path, lambda job: job["status"] in FINAL)
        assert ended["status"] == "succeeded", ended["error"]
        assert names(url) == sorted([*before, "frank"])
        vector = httpx.get(f"{url}/v1/steering/vectors/frank").json()
        assert len(vector["history"]) == 1
        report = json.loads(httpx.get(f"{url}/v1/files/{ended['result_files'][0]}/content").text)
        assert vector["training"]["chosen"] == report["chosen"]
        kept = httpx.get(f"{url}/v1/files").json()["data"]
        assert {file["id"] for file in kept} == {uploaded["id"], *ended["result_files"]}
        assert process.stop() == 0
