"""What signals do to a server: real processes, while they load, under full load, when a step hangs, and at its end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from server.demo.heldout import quiz_items
from server.jobs.database import JobDatabase
from server.jobs.records import JobStatus
from tests.server.cli.running import DEADLINE, ROOT, ServerProcess

MODEL = "TinyStories-656K"
STREAM = {"prompt": "Once upon a time", "max_tokens": 480, "ignore_eos": True, "stream": True}

HANGING = """
import signal, sys, threading
import server.engine.runner as runner
hangs = threading.Event()
signal.signal(signal.SIGUSR1, lambda *_: hangs.set())
run = runner.Runner.run
def run_or_hang(self, chunks):
    if hangs.is_set():
        threading.Event().wait()
    return run(self, chunks)
runner.Runner.run = run_or_hang
from server.cli import main
sys.exit(main())
"""
"""A server whose next step after SIGUSR1 never ends."""


@pytest.mark.parametrize(
    ("number", "status", "said"),
    [(signal.SIGINT, 130, "tiller: interrupted"), (signal.SIGTERM, 143, "tiller: terminated")],
)
@pytest.mark.parametrize("moment", ["loading", "reserving the KV cache"])
def test_a_signal_while_loading_is_one_line_and_the_status(
    tiny_model: Path, tmp_path: Path, number: int, status: int, said: str, moment: str
) -> None:
    in_imports = moment == "loading" and number == signal.SIGINT
    with ServerProcess(tmp_path, tiny_model, preloaded=not in_imports) as server:
        server.wait_for_line(moment)
        server.signal(number)
        assert server.wait() == status
        assert server.lines[-1] == f"{said}\n"
        assert "Traceback" not in server.output


ENDING = """
import os, signal, sys, threading
from uvicorn.protocols.http.h11_impl import H11Protocol
from server.cli.serve.listening import DrainingServer, bind

def never(seconds):
    threading.Event().wait()

def again(seconds):
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait()

def drain(seconds):
    print("running requests get", seconds, flush=True)
    {"never": never, "raises": lambda _: 1 / 0, "again": again}.get(how, lambda _: None)(seconds)

how = sys.argv[1]
begin = (lambda: server.fail(70)) if how == "fails" else (lambda: os.kill(os.getpid(), signal.SIGTERM))
server = DrainingServer(
    None, protocol=H11Protocol, on_ready=lambda: begin(), drain=drain, drain_seconds=1.0 if how == "never" else 100.0
)
sys.exit(server.run_on(bind("127.0.0.1", 0)))
"""


@pytest.mark.parametrize(
    ("how", "status", "seconds"),
    [("well", 0, 90.0), ("never", 1, 0.5), ("raises", 0, 90.0), ("again", 143, 90.0), ("fails", 70, 0.0)],
)
def test_a_server_ends_however_its_last_requests_do(how: str, status: int, seconds: float) -> None:
    """Its drain returns, never returns or raises; a second signal comes; it ends because it does not work."""
    done = subprocess.run(
        [sys.executable, "-c", ENDING, how],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        timeout=DEADLINE,
        check=False,
    )
    assert (done.returncode, done.stdout) == (status, f"running requests get {seconds}\n"), done.stderr


HANGING_UP = """
import os, signal, sys
from server.cli.serve.listening import hangups
signal.signal(signal.SIGHUP, signal.SIG_IGN if sys.argv[1] == "nohup" else signal.SIG_DFL)
with hangups(lambda: print("stops")):
    os.kill(os.getpid(), signal.SIGHUP)
    print("goes on")
"""


@pytest.mark.parametrize(
    ("has_terminal", "how", "said"),
    [(True, "", "stops\ngoes on\n"), (True, "nohup", "goes on\n"), (False, "", "goes on\n")],
)
def test_a_hangup_stops_a_server_only_in_a_terminal(has_terminal: bool, how: str, said: str) -> None:
    keyboard, terminal = os.openpty()
    done = subprocess.run(
        [sys.executable, "-c", HANGING_UP, how],
        cwd=ROOT,
        stdin=terminal if has_terminal else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        encoding="utf-8",
        timeout=DEADLINE,
        check=True,
    )
    os.close(terminal)
    os.close(keyboard)
    assert done.stdout == said


def labelled(count: int) -> bytes:
    rows = [
        {"question": item.question, "choices": item.choices, "answer": item.answer}
        for item in quiz_items(3, count, "held_out", "none")
    ]
    return "\n".join(map(json.dumps, rows)).encode()


class Load:
    """Clients that stream without pause until they are refused or the server is gone."""

    def __init__(self, url: str, num_clients: int) -> None:
        self._url = url
        self.refusals: list[httpx.Response] = []
        self.ends: list[str] = []
        """The last line of every stream."""
        self.has_begun = threading.Semaphore(0)
        self._threads = [threading.Thread(target=self._ask_on) for _ in range(num_clients)]
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        """Wait for all of them."""
        for thread in self._threads:
            thread.join(DEADLINE)
            assert not thread.is_alive()

    def _ask_on(self) -> None:
        with httpx.Client(base_url=self._url, timeout=DEADLINE) as client:
            while not self.refusals:
                try:
                    response = client.send(client.build_request("POST", "/v1/completions", json=STREAM), stream=True)
                except httpx.TransportError:  # the server has gone, and no answer had begun
                    return
                with contextlib.closing(response):
                    self._take(response)

    def _take(self, response: httpx.Response) -> None:
        if response.status_code != 200:
            response.read()
            self.refusals.append(response)
            return
        last = ""
        for line in response.iter_lines():
            if line:
                last = line
                self.has_begun.release()
        self.ends.append(last)


def test_sigterm_under_full_load_and_a_running_job_refuses_finishes_and_ends(tiny_model: Path, tmp_path: Path) -> None:
    template = tmp_path / "chat.jinja"
    template.write_text("{% for message in messages %}{{ message['content'] }}\n{% endfor %}")
    limits = ("--max-running", "2", "--chat-template", template, "--drain-timeout", "30")
    with ServerProcess(tmp_path / "data", tiny_model, *limits) as server, httpx.Client(timeout=DEADLINE) as client:
        client.base_url = url = server.wait_until_ready()
        load = Load(url, 6)
        assert load.has_begun.acquire(timeout=DEADLINE)
        file = client.post(
            "/v1/files", files={"file": ("quiz.jsonl", labelled(300))}, data={"purpose": "fine-tune"}
        ).json()
        job = client.post("/v1/fine_tuning/jobs", json={"model": MODEL, "training_file": file["id"]}).json()
        metrics: list[object] = []
        while not metrics:  # it gets on although the load leaves no place free
            assert client.get(f"/v1/fine_tuning/jobs/{job['id']}").json()["status"] in ("queued", "running")
            events = client.get(f"/v1/fine_tuning/jobs/{job['id']}/events?limit=100").json()["data"]
            metrics = [event for event in events if event["type"] == "metrics" and event["data"]["num_done"] > 0]
        assert client.get("/ready").status_code == 200
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        server.wait_for_line("finishing running requests")
        while (ready := client.get("/ready")).status_code == 200:
            pass
        for refusal in (ready, client.post("/v1/completions", json=STREAM)):
            assert (refusal.status_code, refusal.json()["error"]["code"]) == (503, "shutting_down")
            assert refusal.headers["retry-after"] == "5"
        assert server.wait() == 0, server.output
        print(f"from SIGTERM to the end: {time.monotonic() - began:.1f} s")
        load.join()
    assert "Traceback" not in server.output
    with JobDatabase(tmp_path / "data" / "jobs.sqlite3") as database:
        (stopped,) = database.jobs()
    assert (stopped.status, stopped.num_starts) == (JobStatus.QUEUED, 0)
    for refusal in load.refusals:
        assert (refusal.status_code, refusal.json()["error"]["code"]) == (503, "shutting_down")
    assert load.ends
    for end in load.ends:
        assert end == "data: [DONE]" or json.loads(end.removeprefix("data: "))["error"]["code"] == "shutting_down", end


def test_a_hanging_step_is_told_and_sigterm_ends_the_server_all_the_same(tiny_model: Path, tmp_path: Path) -> None:
    limits = ("--step-timeout", "1", "--on-failure", "stay")
    with (
        ServerProcess(tmp_path, tiny_model, *limits, program=HANGING) as server,
        httpx.Client(timeout=DEADLINE) as client,
    ):
        client.base_url = server.wait_until_ready()
        assert client.get("/health").status_code == client.get("/ready").status_code == 200
        server.signal(signal.SIGUSR1)
        with client.stream("POST", "/v1/completions", json=STREAM) as stream:
            server.wait_for_line("the server is in trouble: a step has taken")
            server.wait_for_line("the server stays, as --on-failure says")
            for path in ("/health", "/ready"):
                answer = httpx.get(f"{client.base_url}{path}", timeout=DEADLINE)
                assert (answer.status_code, answer.json()["error"]["code"]) == (503, "server_broken")
                assert "a step has taken" in answer.json()["error"]["message"]
            assert httpx.post(f"{client.base_url}/v1/completions", json=STREAM).status_code == 503
            server.signal(signal.SIGHUP)  # without a terminal
            server.wait_for_line("SIGHUP does nothing")
            server.signal(signal.SIGTERM)
            last = [line for line in stream.iter_lines() if line][-1]
            assert "error" in json.loads(last.removeprefix("data: "))
        assert server.wait() == 0, server.output


def test_a_server_that_stays_broken_ends_with_a_status_of_its_own(tiny_model: Path, tmp_path: Path) -> None:
    with (
        ServerProcess(tmp_path, tiny_model, "--step-timeout", "1", program=HANGING) as server,
        httpx.Client(timeout=DEADLINE) as client,
    ):
        url = server.wait_until_ready()
        server.signal(signal.SIGUSR1)
        answer = client.post(f"{url}/v1/completions", json={"prompt": "Once", "max_tokens": 9})
        assert answer.status_code == 500
        assert server.wait() == 70, server.output
