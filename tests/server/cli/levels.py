"""What a running server holds: as the operating system counts it, and as its metrics say."""

from __future__ import annotations

import collections
import os
import re
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.server.cli.running import DEADLINE


@dataclass(frozen=True)
class Levels:
    """What the server's process holds, as the operating system counts it."""

    num_files: int
    num_threads: int
    mebibytes: float

    @classmethod
    def of(cls, process_id: int) -> Levels:
        """Now."""
        folder = Path(f"/proc/{process_id}")
        resident = re.search(r"VmRSS:\s+(\d+) kB", (folder / "status").read_text())
        assert resident is not None
        return cls(len(os.listdir(folder / "fd")), len(os.listdir(folder / "task")), int(resident[1]) / 1024)


def metrics(url: str) -> dict[str, float]:
    """The server's metrics without their labels, those that are told apart added up."""
    lines = httpx.get(f"{url}/metrics", headers={"connection": "close"}, timeout=DEADLINE).text.splitlines()
    found: dict[str, float] = collections.defaultdict(float)
    for line in lines:
        if not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            found[name if "5xx" in name else name.partition("{")[0]] += float(value)
    return found


def is_idle(url: str) -> bool:
    """True when nothing runs or waits, and neither pages nor rows are held."""
    now = metrics(url)
    held = ("vllm:num_requests_running", "vllm:num_requests_waiting", "tiller:steering_rows_in_use")
    return not any(now[name] for name in held) and now["tiller:kv_pages_free"] == now["tiller:kv_pages"] > 0
