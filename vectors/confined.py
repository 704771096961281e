"""Confined: tasks in a child process with limits of memory and time, so that no input can take this process along.

The child loads a module once and then forks for each task. A task that exceeds a limit or crashes ends its fork, which
is all that it can do; the next one gets a new child. Bytes go in and out in frames, and nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import select
import signal
import struct
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import NoReturn

Task = Callable[[bytes], Iterator[bytes]]
"""What a module's `prepare(setup: bytes)` makes: the pieces of the result for an input."""

_HEAD = struct.Struct("<cQ")
_DATA, _END, _FAILURE = b"d", b"e", b"f"
_START_SECONDS = 120.0
_WALL_SECONDS = 20.0
"""How much longer than its processor time a task may take by the clock, per second of it, on a machine that is busy."""

_NICENESS = 10
"""How far a task gives way to the process that waits for it, and to its other threads.

A session of its own would not: Linux shares the processors among sessions first, and then by niceness within each.
"""

_OUT_OF_MEMORY, _FAILED = 100, 101


class TaskFailed(Exception):
    """The task exceeded a limit or crashed; the message says which, as in "it takes more than …"."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one task may take: memory beside what its module takes, and processor time."""

    memory_mib: int
    seconds: float


class Child:
    """A process that does the tasks of `module`, one at a time; not thread-safe. `setup` goes to its `prepare`.

    It starts with the first task, and again after one that failed. It ends with this process, or with `close`.
    """

    def __init__(self, module: str, limits: Limits, setup: bytes = b"") -> None:
        self._module = module
        self._limits = limits
        self._setup = setup
        self._process: subprocess.Popen[bytes] | None = None
        self.peak_bytes = 0
        """The memory that the latest task took."""

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def run(self, payload: bytes) -> Iterator[bytes]:
        """The pieces of the result, as they come. Raises `TaskFailed`."""
        if self._process is not None and self._process.poll() is not None:
            self.close()
        process = self._process = self._process or self._start()
        deadline = time.monotonic() + (1 + self._limits.seconds) * _WALL_SECONDS
        is_whole = False
        try:
            self._send(process, payload)
            while True:
                kind, piece = self._receive(process, deadline)
                if kind == _END:
                    break
                yield piece
            is_whole = True
            found = json.loads(piece)
            if found["is_out_of_memory"]:
                raise TaskFailed(self._too_large)
            self.peak_bytes = found["peak"]
        finally:
            if not is_whole:  # it ended, or nobody wants the rest
                self.close()

    def close(self) -> None:
        """End the process. Idempotent."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        if process.poll() is None:  # with the task that it is at
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        process.stdout.close()
        process.wait()

    def _start(self) -> subprocess.Popen[bytes]:
        code = (
            f"import sys; sys.path[:] = {sys.path!r}\n"
            f"from vectors.confined import serve; serve({self._module!r}, {asdict(self._limits)!r})"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0
        )
        self._process = process
        self._send(process, self._setup)
        self._receive(process, time.monotonic() + _START_SECONDS)
        return process

    def _send(self, process: subprocess.Popen[bytes], payload: bytes) -> None:
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # `_receive` says why
            process.stdin.write(_HEAD.pack(_DATA, len(payload)) + payload)
            process.stdin.flush()

    def _receive(self, process: subprocess.Popen[bytes], deadline: float) -> tuple[bytes, bytes]:
        kind, length = _HEAD.unpack(self._read(process, _HEAD.size, deadline))
        piece = self._read(process, length, deadline)
        if kind == _FAILURE:
            raise RuntimeError(f"a task of {self._module} failed:\n{piece.decode()}")
        return kind, piece

    def _read(self, process: subprocess.Popen[bytes], number: int, deadline: float) -> bytes:
        assert process.stdout is not None
        found = bytearray()
        ready = select.poll()
        ready.register(process.stdout, select.POLLIN)
        while len(found) < number:
            if not ready.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise TaskFailed(self._too_long)
            piece = os.read(process.stdout.fileno(), min(1 << 20, number - len(found)))
            if not piece:
                raise TaskFailed(self._why_ended(process.wait()))
            found += piece
        return bytes(found)

    def _why_ended(self, status: int) -> str:
        if status == signal.SIGPROF:
            return self._too_long
        if status in (signal.SIGABRT, signal.SIGKILL):
            return self._too_large
        return f"it ends the process that does it (status {status})"

    @property
    def _too_large(self) -> str:
        return f"it takes more than {self._limits.memory_mib} MiB of memory"

    @property
    def _too_long(self) -> str:
        return f"it takes more than {self._limits.seconds:g} s"


def serve(module: str, limits: dict[str, float]) -> NoReturn:
    """In the child: do the tasks of `module` that come on standard input, until it is closed."""
    source, out = sys.stdin.buffer, os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)  # what a library prints is no result
    _, setup = _read_frame(source.read) or sys.exit(0)
    try:
        task: Task = importlib.import_module(module).prepare(setup)
    except Exception:
        _write_frame(out, _FAILURE, traceback.format_exc().encode())
        sys.exit(1)
    os.nice(_NICENESS)
    _write_frame(out, _END, b"{}")
    while (frame := _read_frame(source.read)) is not None:
        process_id = os.fork()
        if process_id == 0:
            os.dup2(nowhere, 2)  # nor is what an allocator says at the end a line for the log
            _do(task, frame[1], out, limits)
        _, state, usage = os.wait4(process_id, 0)
        status = os.waitstatus_to_exitcode(state)
        if status not in (0, _OUT_OF_MEMORY):  # it may have ended within a frame, so the channel ends too
            os._exit(abs(status))
        peak = max(0, usage.ru_maxrss * 1024 - _resident_bytes())
        _write_frame(out, _END, json.dumps({"peak": peak, "is_out_of_memory": status != 0}).encode())
    sys.exit(0)


def _do(task: Task, payload: bytes, out: int, limits: dict[str, float]) -> NoReturn:
    try:
        if mapped := _mapped_bytes():
            most = mapped + int(limits["memory_mib"]) * 2**20
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.setitimer(signal.ITIMER_PROF, limits["seconds"])
        pieces = task(payload)
        while (piece := _next(pieces)) is not None:
            _write_frame(out, _DATA, piece)
        os._exit(0)
    except BaseException:
        _write_frame(out, _FAILURE, traceback.format_exc().encode())
        os._exit(_FAILED)


def _next(pieces: Iterator[bytes]) -> bytes | None:
    try:
        return next(pieces, None)
    except MemoryError:
        os._exit(_OUT_OF_MEMORY)


def _read_frame(read: Callable[[int], bytes]) -> tuple[bytes, bytes] | None:
    head = read(_HEAD.size)
    if len(head) < _HEAD.size:
        return None
    kind, length = _HEAD.unpack(head)
    return kind, read(length)


def _write_frame(out: int, kind: bytes, piece: bytes) -> None:
    left = memoryview(_HEAD.pack(kind, len(piece)) + piece)
    while left:
        left = left[os.write(out, left) :]


def _mapped_bytes() -> int:
    return _pages_of_memory()[0] * resource.getpagesize()


def _resident_bytes() -> int:
    return _pages_of_memory()[1] * resource.getpagesize()


def _pages_of_memory() -> tuple[int, int]:
    """Pages of this process that are mapped, and that are in memory; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            mapped, resident, *_ = map(int, file.read().split())
    except OSError:
        return 0, 0
    return mapped, resident
