"""`tiller chat` against a running server, piped and in a terminal."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.server.cli.running import DEADLINE, ROOT, call_tiller, environment, tiller

GREEDY = ["--temperature", "0", "--max-tokens", "12"]


@pytest.fixture(scope="module")
def vector_name(server_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A vector in the registry that turns answers over."""
    import torch
    from safetensors.torch import save

    file = tmp_path_factory.mktemp("chat") / "v.safetensors"
    file.write_bytes(save({"residual.0": torch.randn(128, generator=torch.Generator().manual_seed(1))}))
    assert call_tiller("vectors", "put", "chatty", file, "--url", server_url).returncode == 0
    yield "chatty"
    call_tiller("vectors", "rm", "chatty", "--url", server_url)


def said(server_url: str, *lines: str, options: list[str] = GREEDY) -> subprocess.CompletedProcess[str]:
    return call_tiller("chat", "--url", server_url, *options, stdin="\n".join(lines) + "\n")


def test_an_answer(server_url: str) -> None:
    shown = said(server_url, "Once upon a time")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.strip()
    assert "steered by" not in shown.stdout
    process = tiller("chat", "--url", server_url, *GREEDY, stdin="Once upon a time\n")
    assert (process.returncode, process.stdout, process.stderr) == (0, shown.stdout, "")


def test_steering_changes_the_answer_and_shows_the_plan(server_url: str, vector_name: str) -> None:
    plain = said(server_url, "Once upon a time").stdout
    steered = said(
        server_url, f"/steer {vector_name} 20 layers=0", "Once upon a time", "/steer off", "/reset", "Once upon a time"
    )
    assert (steered.returncode, steered.stderr) == (0, "")
    first, rest = steered.stdout.split("steered by ")
    assert first.startswith(f"steering: {vector_name} scale=20.0 layers=0\n")
    assert first.removeprefix(f"steering: {vector_name} scale=20.0 layers=0\n") != plain
    plan, after = rest.split("\n", 1)
    assert plan.startswith(f"{vector_name}@")
    assert plan.endswith(" × 20, add at layers 0, response")
    assert after == f"not steered\nnew conversation\n{plain}"


def test_scale_0_is_exactly_unsteered_and_still_shown(server_url: str, vector_name: str) -> None:
    plain = said(server_url, "Once upon a time").stdout
    steered = said(server_url, f"/steer {vector_name} 0", "Once upon a time").stdout
    assert steered.startswith(f"steering: {vector_name} scale=0.0\n{plain}steered by {vector_name}@")


def test_the_conversation_is_remembered_until_reset(server_url: str) -> None:
    twice = said(server_url, "Once upon a time", "Once upon a time").stdout
    reset = said(server_url, "Once upon a time", "/reset", "Once upon a time").stdout
    plain = said(server_url, "Once upon a time").stdout
    assert reset == f"{plain}new conversation\n{plain}"
    assert twice != plain * 2
    prompted = said(server_url, "Once upon a time", options=[*GREEDY, "--system", "A dog was sad."]).stdout
    assert prompted == said(server_url, "/system A dog was sad.", "Once upon a time").stdout.split("\n", 1)[1]
    assert prompted != plain


def test_failures_are_one_line_each_and_the_chat_goes_on(server_url: str) -> None:
    shown = said(
        server_url, "/steer nobody 1", "Hello", "/steer off", "/dance", "/steer x y", "Hello", "/quit", "Hello"
    )
    errors = shown.stderr.splitlines()
    assert [line.split()[0] for line in errors] == ["error:"] * 3
    assert "nobody" in errors[0]
    assert "/dance" in errors[1]
    assert shown.returncode == 1
    assert shown.stdout == "steering: nobody scale=1.0\nnot steered\n" + said(server_url, "Hello").stdout


def test_vectors_and_help_are_shown(server_url: str, vector_name: str) -> None:
    shown = said(server_url, "/vectors", "/help", "/steer").stdout
    assert f"{vector_name} " in shown
    assert "/steer NAME [SCALE]" in shown
    assert shown.endswith("not steered\n")


def test_ctrl_c_stops_the_answer_and_ctrl_d_leaves(server_url: str) -> None:
    master, terminal = pty.openpty()
    chat = subprocess.Popen(
        [sys.executable, "-m", "server.cli", "chat", "--url", server_url, "--max-tokens", "450"],
        cwd=ROOT,
        env=environment({"TERM": "dumb"}),
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        preexec_fn=_own_terminal,
    )
    os.close(terminal)
    try:
        screen = Screen(master)
        screen.wait_for("chatting with")
        screen.wait_for("> ")
        os.write(master, b"Once upon a time\n")
        screen.wait_for("time\r\n")
        screen.wait_for_more()
        os.write(master, b"\x03")  # whether the answer is still under way or the prompt is back: the chat goes on
        screen.wait_for("> ")
        os.write(master, b"/steer\n")
        screen.wait_for("not steered")
        screen.wait_for("> ")
        os.write(master, b"\x04")
        assert chat.wait(DEADLINE) == 0
    finally:
        chat.kill()
        chat.wait()
        os.close(master)


def _own_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Screen:
    """What a terminal shows, read from its other end."""

    def __init__(self, master: int) -> None:
        self._master = master
        self._unseen = ""

    def wait_for(self, text: str) -> None:
        """Read until `text` was shown after all that was waited for before."""
        while text not in self._unseen:
            self._read(text)
        self._unseen = self._unseen.split(text, 1)[1]

    def wait_for_more(self) -> None:
        """Read until anything is shown."""
        while not self._unseen:
            self._read("anything")

    def _read(self, wanted: str) -> None:
        ready, _, _ = select.select([self._master], [], [], DEADLINE)
        assert ready, f"never saw {wanted!r} after {self._unseen!r}"
        self._unseen += os.read(self._master, 4096).decode(errors="replace")
