"""`kill -9` of a whole server in the middle of uploads: after each restart everything acknowledged is there, whole."""

from __future__ import annotations

import json
import random
import signal
import threading
import time
from pathlib import Path

import httpx
import pytest
import torch

from server.demo import MODEL_DIR
from tests.server.cli.running import ServerProcess
from vectors.formats import decode, encode_safetensors
from vectors.vector import SteeringVector

NUM_KILLS = 12
PATH = "/v1/steering/vectors"


def check(client: httpx.Client, acknowledged: dict[str, list[str]], shape: tuple[int, int]) -> None:
    """Every acknowledged revision is in its name's history and its content has that hash."""
    num_layers, hidden_size = shape
    for name, revisions in acknowledged.items():
        vector = client.get(f"{PATH}/{name}").json()
        history = {entry["revision"] for entry in vector["history"]}
        assert set(revisions) <= history
        assert len(history - set(revisions)) <= NUM_KILLS  # a call that was cut short may have been kept, whole
        for revision in history:
            content = client.get(f"{PATH}/{name}/content", params={"revision": revision}).content
            assert decode(content, num_layers=num_layers, hidden_size=hidden_size).revision == revision


@pytest.mark.slow
def test_acknowledged_uploads_survive_kills_of_the_server(tmp_path: Path) -> None:
    choose = random.Random(0)
    acknowledged: dict[str, list[str]] = {}
    num_acknowledged = 0
    shape = (0, 0)
    for _ in range(NUM_KILLS):
        with ServerProcess(tmp_path, MODEL_DIR) as server:
            client = httpx.Client(base_url=server.wait_until_ready(), timeout=60)
            with client:
                shape = shape if shape[0] else model_shape()
                check(client, acknowledged, shape)
                killer = threading.Thread(target=kill, args=(server, choose.uniform(0.05, 1.0)))
                killer.start()
                try:
                    while True:
                        name = choose.choice("abc")
                        vector = SteeringVector({layer: torch.randn(shape[1]) for layer in range(shape[0])})
                        reply = client.put(f"{PATH}/{name}", content=encode_safetensors(vector))
                        assert reply.status_code in (200, 201)
                        acknowledged.setdefault(name, []).append(vector.revision)
                        num_acknowledged += 1
                except httpx.TransportError:
                    pass  # the server is gone, which is the point
                killer.join()
    print(f"\n{NUM_KILLS} kills of the server, {num_acknowledged} acknowledged uploads, none lost or torn")
    assert num_acknowledged > NUM_KILLS


def model_shape() -> tuple[int, int]:
    """Blocks and width of the demo model, from its configuration."""
    config = json.loads((MODEL_DIR / "config.json").read_bytes())
    return config["num_hidden_layers"], config["hidden_size"]


def kill(server: ServerProcess, seconds: float) -> None:
    """Spend a random moment, then kill."""
    end = time.perf_counter() + seconds
    moment = threading.Event()
    while (left := end - time.perf_counter()) > 0:
        moment.wait(left)
    server.signal(signal.SIGKILL)
