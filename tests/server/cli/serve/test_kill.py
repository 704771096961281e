"""`kill -9` of a whole server in the middle of uploads: after each restart everything acknowledged is there, whole."""

from __future__ import annotations

import json
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import torch

from server.demo import MODEL_DIR
from tests.server.cli.running import ServerProcess
from vectors.formats import decode
from vectors.formats.safetensors import encode_safetensors
from vectors.vector import SteeringVector

NUM_KILLS = 25
NUM_CLIENTS = 8
NUM_CUT = NUM_KILLS * NUM_CLIENTS
"""How many uploads are cut short: each kill finds one of every client under way."""
PATH = "/v1/steering/vectors"


def check(client: httpx.Client, acknowledged: dict[str, set[str]], shape: tuple[int, int]) -> None:
    """Every acknowledged revision is in its name's history and its content has that hash."""
    num_layers, hidden_size = shape
    num_unsure = 0
    for name, revisions in acknowledged.items():
        vector = client.get(f"{PATH}/{name}").json()
        history = {entry["revision"] for entry in vector["history"]}
        assert revisions <= history
        num_unsure += len(history - revisions)  # a call that was cut short may have been kept, whole
        for revision in history:
            content = client.get(f"{PATH}/{name}/content", params={"revision": revision}).content
            assert decode(content, num_layers=num_layers, hidden_size=hidden_size).revision == revision
    assert num_unsure <= NUM_CUT


def upload_until_killed(
    url: str, seed: int, shape: tuple[int, int], all_connected: threading.Barrier
) -> list[tuple[str, str]]:
    """Upload again and again, until the server goes away under it; the names and revisions that it acknowledged."""
    choose = random.Random(seed)
    acknowledged: list[tuple[str, str]] = []
    with httpx.Client(base_url=url, timeout=60) as client:
        client.get("/health")
        all_connected.wait()
        while True:
            name = choose.choice("abc")
            vector = SteeringVector({layer: torch.randn(shape[1]) for layer in range(shape[0])})
            try:
                reply = client.put(f"{PATH}/{name}", content=encode_safetensors(vector))
            except httpx.TransportError:
                return acknowledged
            assert reply.status_code in (200, 201)
            acknowledged.append((name, vector.revision))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_acknowledged_uploads_survive_kills_of_the_server(tmp_path: Path) -> None:
    choose = random.Random(0)
    acknowledged: dict[str, set[str]] = {}
    shape = model_shape()
    with ThreadPoolExecutor(NUM_CLIENTS) as clients:
        for life in range(NUM_KILLS):
            with ServerProcess(tmp_path, MODEL_DIR) as server:
                url = server.wait_until_ready()
                with httpx.Client(base_url=url, timeout=60) as client:
                    check(client, acknowledged, shape)
                seeds = range(life * NUM_CLIENTS, (life + 1) * NUM_CLIENTS)
                all_connected = threading.Barrier(NUM_CLIENTS + 1)
                uploads = [clients.submit(upload_until_killed, url, seed, shape, all_connected) for seed in seeds]
                all_connected.wait()
                kill(server, choose.uniform(0.05, 0.5))
                for upload in uploads:
                    for name, revision in upload.result():
                        acknowledged.setdefault(name, set()).add(revision)
    num_acknowledged = sum(map(len, acknowledged.values()))
    print(f"\n{NUM_CUT} uploads cut short by {NUM_KILLS} kills, {num_acknowledged} acknowledged, none lost or torn")
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
