"""A preloaded process is to those who start it what a process of a new interpreter is."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.preloaded import start, start_python

PROGRAMS = {
    "told": """
import atexit, os, signal, sys
atexit.register(print, "at the end")
print(__name__, sys.argv, os.getcwd(), os.environ["WORD"], os.environ.get("HOME"), sys.stdin.read())
print([signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)])
print(len(os.listdir("/proc/self/fd")), sys.path[0] in ("", os.getcwd()), flush=True)
print("said", file=sys.stderr)
sys.exit(3)
""",
    "killed": "import os, signal; print('begun', flush=True); os.kill(os.getpid(), signal.SIGTERM); signal.pause()",
    "raises": "1 / 0",
    "ends": "pass",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_it_says_and_ends_as_one_of_a_new_interpreter(name: str, tmp_path: Path) -> None:
    environ = {**{key: value for key, value in os.environ.items() if key != "HOME"}, "WORD": "given"}
    found = []
    for begin in (start, start_python):
        process = begin(
            ["-c", PROGRAMS[name], "a word"],
            cwd=tmp_path,
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        with process.stdout, process.stderr:
            found.append([process.stdout.read(), process.stderr.read().splitlines()[-1:], process.wait(60)])
        assert process.poll() == process.wait()
    assert found[0] == found[1]


def test_it_can_be_signalled_while_it_runs(tmp_path: Path) -> None:
    sleeps = "import signal; print('begun', flush=True); signal.pause()"
    for number in (signal.SIGTERM, signal.SIGKILL):
        process = start(["-c", sleeps], cwd=tmp_path, env=os.environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert process.stdout is not None
        with process.stdout:
            assert process.stdout.readline() == "begun\n"
            assert process.poll() is None
            process.send_signal(number)
            assert process.wait(60) == -number
        process.kill()  # it has ended: nobody else gets the signal
