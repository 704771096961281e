"""The pace of live traffic while a vector is trained: a real server, chat streams, and a training job.

`python -m server.bench.traffic` starts a server on the embedded model, runs streams alone and alongside a job in turns,
and prints the ratio of their tokens per second, the longest gap between two tokens, and the job's time.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
from rich.console import Console

from server.demo.heldout import quiz_items

NUM_STREAMS = 8
_STREAM_TOKENS = 256
_out = Console(highlight=False)


@dataclass(frozen=True, slots=True)
class Pace:
    """Tokens per second over all streams, and the longest gap between two tokens of one stream, in seconds."""

    tokens_per_second: float
    longest_gap: float


@contextlib.contextmanager
def running_server() -> Iterator[str]:
    """The URL of a server on the embedded model with an empty data directory."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "server.cli", "serve", "--port", "0", "--data-dir", folder]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8") as process:
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    if (ready := re.search(r"ready at (http://\S+)", line)) is not None:
                        break
                else:
                    raise SystemExit("the server did not start")
                yield ready[1]
            finally:
                process.terminate()


class Streams:
    """Endless chat streams; `pace` measures them between two moments."""

    def __init__(self, url: str, count: int) -> None:
        self._url = url
        self._stop = threading.Event()
        self._times: list[list[float]] = [[] for _ in range(count)]
        self._threads = [threading.Thread(target=self._stream, args=(number,)) for number in range(count)]

    def __enter__(self) -> Streams:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _stream(self, number: int) -> None:
        body = {
            "messages": [{"role": "user", "content": f"Tell me about music, please ({number})."}],
            "stream": True,
            "ignore_eos": True,
            "max_tokens": _STREAM_TOKENS,
            "seed": number,
        }
        with httpx.Client(timeout=120) as client:
            while not self._stop.is_set():
                with client.stream("POST", f"{self._url}/v1/chat/completions", json=body) as response:
                    for line in response.iter_lines():
                        if line.startswith("data:"):
                            self._times[number].append(time.monotonic())
                        if self._stop.is_set():
                            break

    def pace(self, start: float, end: float) -> Pace:
        """The streams' pace from `start` to `end` (monotonic seconds)."""
        within = [[moment for moment in times if start <= moment <= end] for times in self._times]
        gaps = [later - earlier for times in within for earlier, later in itertools.pairwise(times)]
        return Pace(sum(map(len, within)) / (end - start), max(gaps, default=0.0))


def run_job(url: str, content: bytes, steering: dict[str, Any]) -> dict[str, Any]:
    """Upload, train, wait; the finished job."""
    with httpx.Client(base_url=url, timeout=120) as client:
        files = {"file": ("sycophancy.jsonl", content)}
        uploaded = client.post("/v1/files", files=files, data={"purpose": "fine-tune"}).raise_for_status().json()
        method = {"type": "steering", "steering": steering}
        model = client.get("/v1/models").json()["data"][0]["id"]
        body = {"model": model, "training_file": uploaded["id"], "suffix": "bench", "method": method, "seed": 0}
        job: dict[str, Any] = client.post("/v1/fine_tuning/jobs", json=body).raise_for_status().json()
        pause = threading.Event()
        while job["status"] not in ("succeeded", "failed", "cancelled"):
            pause.wait(0.2)
            job = client.get(f"/v1/fine_tuning/jobs/{job['id']}").json()
        return job


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m server.bench.traffic", description=__doc__)
    parser.add_argument("--streams", type=int, default=NUM_STREAMS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--items", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=15.0, help="seconds that the streams run alone each time")
    options = parser.parse_args(arguments)
    rows = [
        {"question": item.question, "choices": item.choices, "answer": item.answer, "context": item.context}
        for item in quiz_items(11, options.items, "held_out", "wrong")
    ]
    content = "\n".join(map(json.dumps, rows)).encode()
    rounds = []
    with running_server() as url:
        alone_job = _timed_job(url, content)
        with Streams(url, options.streams) as streams:
            threading.Event().wait(3.0)
            for _ in range(options.repeats):
                started = time.monotonic()
                threading.Event().wait(options.seconds)
                alone = streams.pace(started, time.monotonic())
                started = time.monotonic()
                seconds = _timed_job(url, content)
                beside = streams.pace(started, time.monotonic())
                rounds.append((alone, beside, seconds))
    ratios = [beside.tokens_per_second / alone.tokens_per_second for alone, beside, _ in rounds]
    found = {
        "kept_pace": {"median": statistics.median(ratios), "each": ratios},
        "tokens_per_second_alone": [alone.tokens_per_second for alone, _, _ in rounds],
        "tokens_per_second_beside_a_job": [beside.tokens_per_second for _, beside, _ in rounds],
        "longest_gap_alone": max(alone.longest_gap for alone, _, _ in rounds),
        "longest_gap_beside_a_job": max(beside.longest_gap for _, beside, _ in rounds),
        "job_seconds": [seconds for _, _, seconds in rounds],
        "job_seconds_without_traffic": alone_job,
    }
    _out.print_json(json.dumps(found))


def _timed_job(url: str, content: bytes) -> float:
    started = time.monotonic()
    job = run_job(url, content, {"variant": "all"})
    if job["status"] != "succeeded":
        raise SystemExit(f"the job ended {job['status']}: {job['error']}")
    return time.monotonic() - started


if __name__ == "__main__":
    main()
