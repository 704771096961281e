"""What `test_confined` has done in a child: harmless things, larger or longer than the limits that it sets."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

from vectors.confined import Task


def prepare(setup: bytes) -> Task:
    """Tasks that know what they were set up with."""

    def do(payload: bytes) -> Iterator[bytes]:
        what, _, rest = payload.partition(b" ")
        if what == b"echo":
            print("no result")
            yield setup
            yield rest
        elif what == b"allocate":
            yield b"begun"
            yield str(len(b"x" * (int(rest) << 20))).encode()
        elif what == b"spin":
            yield b"begun"
            while True:
                pass
        elif what == b"standing":
            yield f"{os.nice(0)} {os.getsid(0)}".encode()
        elif what == b"wait":
            signal.pause()
        elif what == b"crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif what == b"abort":
            os.write(2, b"nothing that the log should have")
            os.abort()
        else:
            raise ValueError("no such task")

    return do
