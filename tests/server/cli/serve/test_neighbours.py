"""How long streams wait between two pieces while a neighbour's schemas are compiled: a figure, printed by `-s`."""

from __future__ import annotations

import json
import signal
import statistics
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.cli.running import DEADLINE, ServerProcess

NUM_STREAMS = 4
NUM_TOKENS = 800
TEXT = {"type": "string"}
SERVER = """
import atexit, gc, sys
from server.cli import main
held = lambda: (gc.get_freeze_count(), len(gc.get_objects()))
atexit.register(lambda: print("held by the collector:", *held(), "turns:", sys.getswitchinterval(), flush=True))
sys.exit(main())
"""


def costly(number: int) -> dict[str, Any]:
    """Schemas that take long to compile, each another one."""
    names = [f"p{number}_{index}" for index in range(2500)]
    required = {"type": "object", "properties": dict.fromkeys(names, TEXT), "required": names}
    optional = {"type": "object", "properties": dict.fromkeys(names[:450], TEXT)}
    texts = {"type": "array", "items": {"anyOf": [{"type": "string", "minLength": number + i} for i in range(250)]}}
    values = {"enum": names * 2}
    many = {"type": "object", "properties": dict.fromkeys([f"{name}x" for name in names] + names, TEXT)}
    return (required, optional, texts, values, many)[number % 5]


class Stream(threading.Thread):
    """A long answer, and when each of its pieces came."""

    def __init__(self, url: str, seed: int) -> None:
        super().__init__()
        self._url, self._seed = url, seed
        self.times: list[float] = []
        self.text = ""
        self.start()

    def run(self) -> None:
        body = {"prompt": "Do you like music?", "max_tokens": NUM_TOKENS, "ignore_eos": True, "stream": True}
        with httpx.stream(
            "POST", f"{self._url}/v1/completions", json=body | {"seed": self._seed}, timeout=DEADLINE
        ) as it:
            for line in it.iter_lines():
                if line.startswith("data: {"):
                    self.text += json.loads(line.removeprefix("data: "))["choices"][0]["text"]
                    self.times.append(time.perf_counter())

    def gaps(self) -> list[float]:
        return [after - before for before, after in zip(self.times[:-1], self.times[1:], strict=True)]


def stream_all(url: str) -> list[Stream]:
    return [Stream(url, seed) for seed in range(NUM_STREAMS)]


def shown(streams: list[Stream]) -> str:
    gaps = sorted(gap for stream in streams for gap in stream.gaps())
    most = sorted(max(stream.gaps()) for stream in streams)
    middle, rare = statistics.median(gaps), gaps[int(len(gaps) * 0.999)]
    return f"median {1e3 * middle:.0f} ms, 99.9 % {1e3 * rare:.0f} ms, longest {1e3 * most[-1]:.0f} ms"


@pytest.mark.slow
def test_streams_beside_schemas_that_are_compiled(tmp_path: Path) -> None:
    """They come out as alone. The server's garbage collector no longer looks at what start-up made, and a thread that
    computes lets the engine go on soon.
    """
    with ServerProcess(tmp_path, program=SERVER, patience=4 * DEADLINE) as server:
        url = server.wait_until_ready()
        for stream in (warm := stream_all(url)):
            stream.join()
        for stream in (alone := stream_all(url)):
            stream.join()
        beside, statuses, seconds = stream_all(url), [], []
        number = 0
        while any(stream.is_alive() for stream in beside):
            form = {"type": "json_schema", "json_schema": {"name": "x", "schema": costly(number)}}
            body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1, "response_format": form}
            began = time.perf_counter()
            statuses.append(httpx.post(f"{url}/v1/chat/completions", json=body, timeout=DEADLINE).status_code)
            seconds.append(time.perf_counter() - began)
            number += 1
        print(f"\nalone: {shown(alone)}\nbeside {number} schemas (longest {max(seconds):.1f} s): {shown(beside)}")
        assert set(statuses) <= {200, 400}, statuses
        assert [each.text for each in beside] == [each.text for each in alone] == [each.text for each in warm]
        server.signal(signal.SIGINT)
        frozen, others, turn = server.wait_for_line(r"held by the collector: (\d+) (\d+) turns: (\S+)").groups()
        assert int(frozen) > 2 * int(others)
        assert float(turn) < 0.001
