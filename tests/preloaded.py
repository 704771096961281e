"""Python processes that need not import torch and transformers, which takes seconds: forks of one that has.

`start` is `subprocess.Popen` for `python -m module` and `python -c program`. A process is a real one, with its own
arguments, environment, folder, streams, signals and end; only its imports are done. Starting with none of them is the
subject of tests of its own.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import io
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TypedDict

MODULES = (
    "llguidance",
    "server.app",
    "server.cli.loading.engine",
    "server.cli.serve.command",
    "server.cli.serve.connections",
    "server.cli.serve.listening",
    "server.cli.training.command",
    "server.cli.training.local",
    "server.engine.engine",
    "server.jobs.worker",
    "server.response_store",
    "server.shipped",
    "server.training.steering_trainer",
    "server.watchdog",
    "transformers.models.llama.modeling_llama",
    "vectors.training.train",
)
"""What the processes begin with."""

_MOST_BYTES = 1 << 17


def start_python(
    arguments: Sequence[str], *, cwd: Path, env: Mapping[str, str], stdout: int, stderr: int
) -> subprocess.Popen[str]:
    """The same in an interpreter that imports all it needs."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        encoding="utf-8",
    )


class Forked:
    """A process, as `subprocess.Popen` shows it. `pid`: by which the operating system knows it."""

    def __init__(self, pid: int, status: int, stdout: IO[str] | None, stderr: IO[str] | None) -> None:
        self.pid = pid
        self.stdout, self.stderr = stdout, stderr
        self._status = status
        self._code: int | None = None

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        """The exit code when it has ended. Raises `subprocess.TimeoutExpired`."""
        if self._code is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            self._code = int(os.read(self._status, 16))
            os.close(self._status)
        return self._code

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)


def start(arguments: Sequence[str], *, cwd: Path, env: Mapping[str, str], stdout: int, stderr: int) -> Forked:
    """A process of `python arguments` without input. `stdout` and `stderr`: `PIPE`, a file descriptor, or `STDOUT`."""
    with contextlib.ExitStack() as opened:
        nothing = os.open(os.devnull, os.O_RDONLY)
        opened.callback(os.close, nothing)
        ours: list[IO[str] | None] = []
        theirs = [nothing]
        for stream in (stdout, stderr):
            kept = None
            if stream == subprocess.PIPE:
                reading, stream = os.pipe()
                opened.callback(os.close, stream)
                kept = os.fdopen(reading, encoding="utf-8")
            elif stream == subprocess.STDOUT:
                stream = theirs[-1]
            ours.append(kept)
            theirs.append(stream)
        status, tells = os.pipe()
        opened.callback(os.close, tells)
        asked = json.dumps({"arguments": [*arguments], "cwd": str(cwd), "env": {**env}}).encode()
        assert len(asked) < _MOST_BYTES
        channel = _channel()
        socket.send_fds(channel, [asked], [*theirs, tells])
        pid = int(channel.recv(16))
    return Forked(pid, status, *ours)


@functools.cache
def _channel() -> socket.socket:
    """To the process that forks; it ends when this one does."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.preloaded", str(theirs.fileno())],
            cwd=Path(__file__).parents[1],
            env=environ,
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )

    def close() -> None:
        ours.close()
        process.wait()

    atexit.register(close)
    return ours


def _fork_on_request(channel: socket.socket) -> list[str] | None:
    """Returns in each fork, with its arguments, and with None when nobody can ask any more."""
    running: dict[int, int] = {}
    woken, wakes = os.pipe()
    os.set_blocking(wakes, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakes)
    while True:
        for ready in select.select([channel.fileno(), woken], [], [])[0]:
            if ready == woken:
                os.read(woken, 4096)
                _tell_ends(running)
                continue
            asked, descriptors, _, _ = socket.recv_fds(channel, _MOST_BYTES, 4)
            if not asked:
                return None
            *streams, tells = descriptors
            pid = os.fork()
            if pid == 0:
                channel.detach()
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                return _begin(json.loads(asked), streams)
            running[pid] = tells
            for descriptor in streams:
                os.close(descriptor)
            channel.send(str(pid).encode())


def _tell_ends(running: dict[int, int]) -> None:
    """The exit codes of those that have ended, to who waits for them."""
    for pid in [*running]:
        found, state = os.waitpid(pid, os.WNOHANG)
        if found:
            tells = running.pop(pid)
            with contextlib.suppress(BrokenPipeError):
                os.write(tells, str(os.waitstatus_to_exitcode(state)).encode())
            os.close(tells)


class _Asked(TypedDict):
    """What a process is asked for."""

    arguments: list[str]
    cwd: str
    env: dict[str, str]


def _begin(asked: _Asked, streams: list[int]) -> list[str]:
    """In a fork: what a process is given at its start."""
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    assert isinstance(sys.stdout, io.TextIOWrapper)
    sys.stdout.reconfigure(line_buffering=os.isatty(1))
    return asked["arguments"]


def _run(arguments: list[str]) -> None:
    """As the interpreter does with its arguments."""
    kind, what, *rest = arguments
    sys.path[0] = os.getcwd()
    if kind == "-m":
        sys.argv = [what, *rest]
        runpy.run_module(what, run_name="__main__", alter_sys=True)
        return
    assert kind == "-c"
    sys.argv = ["-c", *rest]
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    exec(compile(what, "<string>", "exec"), main.__dict__)


if __name__ == "__main__":
    for module in MODULES:
        importlib.import_module(module)
    assert len(os.listdir("/proc/self/task")) == 1, "a fork has only one thread"
    gc.freeze()  # what a fork has from here is no garbage of its own
    arguments = _fork_on_request(socket.socket(fileno=int(sys.argv[1])))
    if arguments is not None:
        _run(arguments)
