"""Hundreds of clients that read slowly, stop reading or vanish: nothing leaks, and others get what they get alone."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import signal
import statistics
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.api.http.misbehaving import Held, misbehave
from tests.server.api.http.well_behaved import WELL_BEHAVED, ask
from tests.server.api.serving import eventually
from tests.server.cli.levels import Levels, is_idle, metrics
from tests.server.cli.running import DEADLINE, ServerProcess

DECISION = {"input": "Do you like music?", "questions": [{"type": "predicate", "instructions": "This is a question."}]}


class Clients:
    """Well-behaved clients of a server, who know what each stream says when it is alone, and others beside them."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._alone: list[dict[int, str]] = []
        self.gaps: list[float] = []
        self.num_streams = 0
        self.behaviours: collections.Counter[str] = collections.Counter()

    async def ask_alone(self) -> None:
        """Learn what each stream says when there is no other."""
        async with httpx.AsyncClient(base_url=self._url, timeout=DEADLINE) as client:
            self._alone = [(await ask(client, path, body)).said for path, body in WELL_BEHAVED]
        assert all("".join(said.values()) for said in self._alone)

    async def pace(self, num_rounds: int = 4, num_each: int = 1) -> float:
        """The median seconds between two pieces, when every stream is asked for by so many clients and no others."""
        self.gaps = []
        over = asyncio.Event()
        over.set()
        await asyncio.gather(*(self._behave(num_rounds, over) for _ in range(num_each)))
        return statistics.median(self.gaps)

    @contextlib.asynccontextmanager
    async def wave(self, num_clients: int, seed: int, spread: float) -> AsyncIterator[None]:
        """Others come within `spread` seconds; the context is when they have done their worst and some keep sockets."""
        held, over = Held(), asyncio.Event()
        port = int(self._url.rpartition(":")[2])
        self.gaps = []
        tasks = [asyncio.ensure_future(misbehave(port, number, seed, spread, held)) for number in range(num_clients)]
        behaving = asyncio.ensure_future(self._behave(1, over))
        while held.num_clients + sum(task.done() for task in tasks) < num_clients:
            await asyncio.wait([task for task in tasks if not task.done()], timeout=0.1)
        over.set()
        await behaving
        yield
        held.release()
        self.behaviours.update(await asyncio.gather(*tasks))

    async def _behave(self, least: int, over: asyncio.Event) -> None:
        async with httpx.AsyncClient(base_url=self._url, timeout=DEADLINE) as client:
            await asyncio.gather(*(self._repeat(client, number, least, over) for number in range(len(WELL_BEHAVED))))

    async def _repeat(self, client: httpx.AsyncClient, number: int, least: int, over: asyncio.Event) -> None:
        """The same stream again and again, at least so often and until it is over."""
        num_asked = 0
        while num_asked < least or not over.is_set():
            stream = await ask(client, *WELL_BEHAVED[number])
            assert stream.said == self._alone[number], WELL_BEHAVED[number]
            self.gaps += stream.gaps
            self.num_streams += 1
            num_asked += 1


def is_back(process_id: int, url: str, before: Levels) -> bool:
    """True when no more files are open and no more threads run than before; asking lets spare threads end."""
    body = {"prompt": "a", "max_tokens": 1}
    httpx.post(f"{url}/v1/completions", json=body, headers={"connection": "close"}, timeout=DEADLINE)
    now = Levels.of(process_id)
    return now.num_files <= before.num_files and now.num_threads <= before.num_threads


async def become(is_so: Any, *arguments: Any) -> None:
    """As `eventually`, beside the clients."""
    await asyncio.to_thread(eventually, lambda: is_so(*arguments), within=DEADLINE)


def decide(url: str) -> float:
    """The probability of a decision."""
    answer = httpx.post(f"{url}/v1/decisions", json=DECISION, timeout=DEADLINE).json()
    return float(answer["answers"][0]["probability"])


async def outlive(server: ServerProcess, url: str, num_waves: int, num_clients: int, spread: float) -> list[Levels]:
    """Waves of misbehaving clients; what the process held after each, when everything was as before again."""
    clients = Clients(url)
    await clients.ask_alone()
    decision = decide(url)
    before_pace = await clients.pace()
    await become(is_idle, url)
    before = Levels.of(server.process_id)
    crowd_pace = await clients.pace(num_each=8)
    after = []
    print(f"\nbefore: {before}, {before_pace * 1e3:.1f} ms between pieces")
    print(f"  {crowd_pace * 1e3:.1f} ms between pieces when each stream is asked for by eight")
    for number in range(num_waves):
        started_at = time.perf_counter()
        async with clients.wave(num_clients, number, spread):
            await become(is_idle, url)  # those who do not read hold nothing of the engine's
            held = Levels.of(server.process_id)
        pace = statistics.median(clients.gaps)
        await become(is_back, server.process_id, url, before)
        await become(is_idle, url)
        after.append(Levels.of(server.process_id))
        seconds = time.perf_counter() - started_at
        print(
            f"wave {number}: {seconds:.0f} s, {pace * 1e3:.1f} ms between pieces, {pace / before_pace:.2f} of before, "
            f"{max(clients.gaps) * 1e3:.0f} at most"
        )
        print(f"  {held} while sockets are kept\n  {after[-1]} afterwards")
    after_pace = await clients.pace()
    print(f"after: {after_pace * 1e3:.1f} ms between pieces; {clients.num_streams} streams were as alone")
    print(dict(clients.behaviours))
    assert sum(clients.behaviours.values()) == num_waves * num_clients
    assert decide(url) == pytest.approx(decision, abs=1e-4)
    assert metrics(url)['tiller:http_responses_total{status="5xx"}'] == 0
    async with clients.wave(24, num_waves, 0.1):  # it drains although some do not read
        started_at = time.perf_counter()
        server.signal(signal.SIGTERM)
        assert await asyncio.to_thread(server.wait) == 0
        print(f"drained in {time.perf_counter() - started_at:.1f} s beside clients that do not read")
    return after


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="no /proc")
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_500_misbehaving_clients_leave_nothing_behind(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, "--dtype", "float32", "--body-timeout", "3") as server:
        url = server.wait_until_ready()
        after = asyncio.run(outlive(server, url, num_waves=3, num_clients=500, spread=5.0))
    assert after[2].mebibytes - after[1].mebibytes <= 64
    assert "Traceback" not in server.output, server.output.partition("Traceback")[2][:5000]
