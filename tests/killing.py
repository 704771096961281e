"""Processes that say what they do and are killed while they do it: both halves, the child's and the test's.

A talking module imports what is slow once, and forks a child for each line of its stdin, `folder seed`. The child says
`child` and its process id, then what its `work` says; when it is dead the parent says `ended-child`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.shared_files import ROOT


def say(*words: str) -> None:
    """One unbuffered line: what is written is out, whatever happens to the process."""
    os.write(1, (" ".join(words) + "\n").encode())


def fork_for_every_line(work: Callable[[Path, int], None]) -> None:
    """The parent's life: `work(folder, seed)` in a child for each line."""
    for line in sys.stdin:
        folder, seed = line.split()
        child = os.fork()
        if child == 0:
            try:
                say("child", str(os.getpid()))
                work(Path(folder), int(seed))
            except BaseException as error:
                say("failed", *repr(error).split())
            finally:
                os._exit(1)
        os.waitpid(child, 0)
        say("ended-child")


@contextlib.contextmanager
def talking(module: str) -> Iterator[subprocess.Popen[str]]:
    """The parent process of a talking module; it and its child are gone at the end."""
    command = [sys.executable, "-u", "-m", module]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            os.killpg(process.pid, signal.SIGKILL)
