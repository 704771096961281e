"""Runs `python -m server.cli` as a person would, and reads what it says; or the same within the tests' own process."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import queue
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from server.cli import main
from server.cli.logs import LOUD
from tests.preloaded import start, start_python

ROOT = Path(__file__).parents[3]
TINY_STORIES = ROOT.parent / "shared" / "models" / "TinyStories-656K"
DEADLINE = 120.0
"""Seconds after which something that must come is missing; never a measure."""

_READY = re.compile(r"tiller is ready at (http://\S+)")


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without any setting of ours."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TILLER_")}
    return {**kept, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "120", **(extra or {})}


def tiller_preloaded(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """As `tiller`, with the imports done; see `tests.preloaded`."""
    words = ["-m", "server.cli", *map(str, arguments)]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        code = start(words, cwd=ROOT, env=environment(), stdout=out.fileno(), stderr=err.fileno()).wait(DEADLINE)
        shown = []
        for file in (out, err):
            file.seek(0)
            shown.append(file.read().decode())
    return subprocess.CompletedProcess(words, code, *shown)


def tiller(
    *arguments: str | Path, stdin: str = "", environ: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, in an interpreter of its own."""
    return subprocess.run(
        [sys.executable, "-m", "server.cli", *map(str, arguments)],
        cwd=ROOT,
        input=stdin,
        env=environment(environ),
        capture_output=True,
        encoding="utf-8",
        timeout=DEADLINE,
        check=False,
    )


def call_tiller(
    *arguments: str | Path, stdin: str = "", environ: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """As `tiller`, without a process of its own, which takes seconds to import what loads a model.

    For what a command does and says; that it can be started at all, is ended by signals and reads a terminal is asked
    of a process.
    """
    words = [*map(str, arguments)]
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    with as_it_was(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        sys.stdin = io.StringIO(stdin)
        os.environ["COLUMNS"] = "120"
        try:
            code = main(words, dict(environ or {}))
        except SystemExit as ended:  # help, version, and what the parser does not understand
            code = ended.code if isinstance(ended.code, int) else 0
    shown = [stream.buffer.getvalue().decode() for stream in (out, err)]
    return subprocess.CompletedProcess(words, code, *shown)


@contextlib.contextmanager
def as_it_was() -> Iterator[None]:
    """Puts back at the end what a command sets for its whole process: logging, the input, the width of the terminal."""
    loggers = [logging.root, *map(logging.getLogger, {*LOUD, *logging.root.manager.loggerDict})]
    levels = [(logger, logger.level) for logger in loggers]
    handlers, columns, stdin = logging.root.handlers[:], os.environ.get("COLUMNS"), sys.stdin
    for handler in handlers:  # so that basicConfig closes none of them
        logging.root.removeHandler(handler)
    try:
        yield
    finally:
        sys.stdin = stdin
        logging.captureWarnings(False)
        logging.root.handlers[:] = handlers
        for logger, level in levels:
            logger.setLevel(level)
        os.environ.pop("COLUMNS", None)
        if columns is not None:
            os.environ["COLUMNS"] = columns


class ServerProcess:
    """A `tiller serve` on a free port with a data directory of its own; as a context, ended at its end.

    `stdout`: the file descriptor for its standard output, where that shall not be among `lines`. `program`: Python that
    runs the command in place of `python -m server.cli`. `patience`: seconds to wait for what it must say or do.
    `preloaded`: with the imports done, which take seconds; see `tests.preloaded`.
    """

    def __init__(
        self,
        data_dir: Path,
        *arguments: str | Path,
        environ: Mapping[str, str] | None = None,
        stdout: int | None = None,
        program: str | None = None,
        patience: float = DEADLINE,
        preloaded: bool = True,
    ) -> None:
        self._patience = patience
        run = ["-m", "server.cli"] if program is None else ["-c", program]
        command = [*run, "serve", *map(str, arguments), "--port", "0", "--data-dir", str(data_dir)]
        self._process = (start if preloaded else start_python)(
            command,
            cwd=ROOT,
            env=environment(environ),
            stdout=subprocess.PIPE if stdout is None else stdout,
            stderr=subprocess.STDOUT if stdout is None else subprocess.PIPE,
        )
        self.lines: list[str] = []
        self._arriving: queue.Queue[str | None] = queue.Queue()
        stream = self._process.stdout or self._process.stderr
        assert stream is not None
        self._reader = threading.Thread(target=self._read, args=(stream,))
        self._reader.start()

    def wait_for_line(self, pattern: str | re.Pattern[str]) -> re.Match[str]:
        """The first line from here on that `pattern` finds."""
        deadline = time.monotonic() + self._patience
        while True:
            line = self._arriving.get(timeout=max(0.0, deadline - time.monotonic()))
            assert line is not None, f"the server ended without saying {pattern!r}:\n{self.output}"
            self.lines.append(line)
            if found := re.search(pattern, line):
                return found

    def wait_until_ready(self) -> str:
        """The URL of the server; the whole banner is in `lines` then."""
        url = self.wait_for_line(_READY)[1]
        self.wait_for_line("Ctrl-C stops the server")
        return url

    @property
    def process_id(self) -> int:
        """By which the operating system knows it."""
        return self._process.pid

    def signal(self, number: int) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    def wait(self) -> int:
        """The exit code."""
        code = self._process.wait(self._patience)
        self._reader.join(self._patience)
        while not self._arriving.empty():
            line = self._arriving.get_nowait()
            if line is not None:
                self.lines.append(line)
        return code

    def stop(self) -> int:
        """Ctrl-C once, and the exit code."""
        self.signal(signal.SIGINT)
        return self.wait()

    @property
    def output(self) -> str:
        """Everything read so far."""
        return "".join(self.lines)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self.wait()

    def _read(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                self._arriving.put(line)
        self._arriving.put(None)


def served(command: str, folder: Path) -> ServerProcess:
    """The server that a page's command starts, on a free port."""
    words = shlex.split(command.replace("\\\n", ""))
    at = words.index("serve")
    return ServerProcess(folder, *words[at + 1 :], environ=dict(word.split("=", 1) for word in words[: at - 1]))
