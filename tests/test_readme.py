"""Every command in the README is run, on the embedded model, and its first forty lines hold what a newcomer needs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
import pytest

from server.demo import MODEL_DIR
from tests.server.cli.running import DEADLINE, environment, served
from tests.shared_files import ROOT

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
ADDRESS = "http://127.0.0.1:8000"
TILLER = f"{Path(sys.executable).parent}/tiller"
SERVE, UPLOAD, VECTORS, CHAT, TRAIN, OWN_MODEL, TEST = COMMANDS = (
    "make serve",
    "curl -s -T",
    "tiller vectors",
    "tiller chat",
    "tiller train",
    "TILLER_MANAGE_KEYS=",
    "make test",
)
"""By what a test finds each block of commands that it runs."""


def blocks(language: str, *, holding: str = "") -> list[str]:
    """The fenced blocks of a language that hold a text."""
    return [content for kind, content in BLOCKS if kind == language and holding in content]


def run(command: list[str], folder: Path) -> str:
    """Run a command in a folder and return what it prints; it must succeed."""
    done = subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, encoding="utf-8", timeout=DEADLINE, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


@contextlib.contextmanager
def serving(command: list[str], environ: Mapping[str, str]) -> Iterator[str]:
    """The URL of the server that `command` starts; at the end Ctrl-C for the server, and `command` must succeed."""
    with subprocess.Popen(
        command, cwd=ROOT, env=environment(environ), stdout=subprocess.PIPE, encoding="utf-8", start_new_session=True
    ) as process:
        try:
            assert process.stdout is not None
            found = None
            for line in process.stdout:
                found = found or re.search(r"ready at (http://\S+)", line)
                if "Ctrl-C" in line:
                    break
            assert found is not None
            yield found[1]
            os.kill(innermost(process.pid), signal.SIGINT)  # a make that gets one dies of it
            process.stdout.read()
            assert process.wait(DEADLINE) == 0
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def innermost(pid: int) -> int:
    """The process that `pid` waits for, through make and shells; `pid` itself, if for none."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return innermost(int(children[0])) if children else pid


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The server of `make serve` itself, from the recipe in the Makefile, in the environment that runs the tests."""
    assert blocks("bash", holding=SERVE) == ["make serve\n"]
    installed = tmp_path_factory.mktemp("make") / "installed"
    installed.touch()
    command = ["make", "serve", f"BIN={Path(sys.executable).parent}", f"INSTALLED={installed}", "ARGS=--port 0"]
    with serving(command, {"TILLER_DATA_DIR": str(tmp_path_factory.mktemp("data"))}) as url:
        yield url


def test_every_command_is_one_that_a_test_here_runs() -> None:
    assert {kind for kind, _ in BLOCKS} == {"bash", "json", "python", "text"}
    for block in blocks("bash"):
        assert any(command in block for command in COMMANDS), block
    for command in COMMANDS:
        assert len(blocks("bash", holding=command)) == 1, command


def test_the_first_screen_has_what_a_newcomer_needs() -> None:
    top = "\n".join(README.splitlines()[:50])
    for part in ("**Activation steering**", "**tiller**", "make serve", "from openai import OpenAI", "curl -s -T"):
        assert part in top, part


def test_the_tree_is_the_tree() -> None:
    (tree,) = blocks("text", holding="vectors/  ")
    for line in tree.splitlines():
        top, *names = re.findall(r"\b[a-z_]+(?:/|\.py)", line)
        assert all((ROOT / top / name).exists() for name in names), line


def test_the_question_is_answered_unsteered_and_steered_as_shown(url: str, tmp_path: Path) -> None:
    (program,) = blocks("python")
    (shown,) = blocks("text", holding="unsteered:")
    assert run([sys.executable, "-c", program.replace(ADDRESS, url)], tmp_path) == shown


def test_an_uploaded_vector_steers_as_shown(url: str, tmp_path: Path) -> None:
    (commands,) = blocks("bash", holding=UPLOAD)
    (shown,) = blocks("text", holding='"name":"merry"')
    assert run(["bash", "-euo", "pipefail", "-c", commands.replace(ADDRESS, url)], tmp_path) == shown
    chat = json.loads(commands.partition(" -d '")[2].rpartition("}'")[0] + "}")
    (applied,) = (json.loads(block) for block in blocks("json"))
    (found,) = httpx.post(f"{url}/v1/chat/completions", json=chat, timeout=DEADLINE).json()["steering"]
    dose = pytest.approx(found.pop("relative_dose"), abs=0.02)  # of bfloat16's activations or float32's
    assert (dose, found) == (applied.pop("relative_dose"), applied)


def test_the_vectors_commands_and_the_chat_run(url: str, tmp_path: Path) -> None:
    (vectors,) = blocks("bash", holding=VECTORS)
    script = re.sub(r"(vectors \w+.*)", rf"\1 --url {url}", vectors).replace(".venv/bin/tiller", TILLER)
    assert "cheerful" in run(["bash", "-euc", script], tmp_path)
    (chat,) = blocks("bash", holding=CHAT)
    answer = run(["bash", "-euc", chat.replace(".venv/bin/tiller chat", f"{TILLER} chat --url {url}")], tmp_path)
    assert "cheerful" in answer


def test_the_training_command_makes_a_vector_that_helps(url: str, tmp_path: Path) -> None:
    (training,) = blocks("bash", holding=TRAIN)
    fewer = "server.demo.heldout --count 200 >"  # a fifth of them, which takes a fifth of the time
    assert training.count("server.demo.heldout >") == 1
    script = training.replace(ADDRESS, url).replace("server.demo.heldout >", fewer)
    script = script.replace(".venv/bin/tiller", TILLER).replace(".venv/bin/python", sys.executable)
    printed = run(["bash", "-euc", f"export PYTHONPATH={ROOT}\n{script}"], tmp_path)
    assert re.search(r"verdict +it helps", printed)
    assert httpx.get(f"{url}/v1/steering/vectors/frank").status_code == 200


def test_the_own_model_command_serves_and_asks_for_its_key(tmp_path: Path) -> None:
    (command,) = blocks("bash", holding=OWN_MODEL)
    ours = {
        "Qwen/Qwen3-0.6B": str(MODEL_DIR),
        "--host 0.0.0.0": "--host 127.0.0.1",
        "--max-model-len 8192": "--max-model-len 512",
    }
    for shown, here in ours.items():
        assert command.count(shown) == 1, shown
        command = command.replace(shown, here)
    with served(command, tmp_path) as server:
        url = server.wait_until_ready()
        assert httpx.get(f"{url}/v1/models").status_code == 401
        assert httpx.get(f"{url}/v1/models", headers={"Authorization": "Bearer change-me"}).status_code == 200


@pytest.mark.parametrize("target", ["test", "check", "test-slow", "serve"])
def test_the_make_targets_that_are_named_exist(target: str) -> None:
    assert f"make {target}" in README
    assert blocks("bash", holding=TEST) == ["make test\n"]
    run(["make", "--dry-run", target], ROOT)
