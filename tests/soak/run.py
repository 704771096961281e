"""Runs the soak: lives of a server on one folder, each but the last ended by `kill -9`, and what must hold between."""

from __future__ import annotations

import asyncio
import math
import queue
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests.server.api.serving import eventually
from tests.server.cli.levels import Levels, is_idle, metrics
from tests.server.cli.running import DEADLINE, ServerProcess, call_tiller
from tests.soak.ledger import Ledger, SoakFailed
from tests.soak.life import Client, Life, Tally, live
from tests.soak.readings import Judgement, Reading, judge
from tests.soak.talkers import Alone, Leaver, RandomAsker, SteeredChatter, Vandal, Witness
from tests.soak.training import FileKeeper, Trainer, settle_training
from tests.soak.vectors import VectorKeeper, make_contents, read_vectors

SERVE = (
    *("--dtype", "float32", "--body-timeout", "3", "--background-share", "0.5"),
    *("--max-stored-responses", "50", "--max-queue", "64"),
)
"""Flags of the server: exact answers; bodies that never come end soon, and jobs; what fills up does so soon."""

SWAPPED = ("swapped-a", "swapped-b", "swapped-c")
PATIENCE = 4 * DEADLINE
"""Seconds after which a client or a job that must end is taken for stuck."""

SPARE = 8
"""Descriptors and threads that an idle server may have more than when its life began: those of pools, which stay."""

Progress = Callable[[float, str], None]
"""Called with the seconds served so far, and what goes on."""


@dataclass(frozen=True)
class Plan:
    """How long the server serves in all, how often it is killed, and where its folder is. Times in seconds."""

    seconds: float
    seconds_between_kills: float
    folder: Path
    seed: int = 0

    @property
    def num_lives(self) -> int:
        """At least two, so that it is killed at least once."""
        return max(2, math.ceil(self.seconds / self.seconds_between_kills))

    @property
    def seconds_of_life(self) -> float:
        """All lives serve for as long."""
        return self.seconds / self.num_lives


@dataclass
class Soak:
    """A soak and what is known of it, also when it fails."""

    plan: Plan
    progress: Progress
    ledger: Ledger = field(default_factory=Ledger)
    tally: Tally = field(default_factory=Tally)
    readings: list[Reading] = field(default_factory=list)
    judgements: list[Judgement] = field(default_factory=list)
    starts: list[float] = field(default_factory=list)
    """Seconds from each start of a process until it was ready."""
    failures: list[str] = field(default_factory=list)
    output: str = ""
    """What the servers said."""
    started_at: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        contents, seed = make_contents(), self.plan.seed
        self._alone = Alone(contents)
        self._trainer = Trainer(self.ledger, seed)
        self.clients: list[Client] = [
            *(Witness(self._alone, seed + number) for number in range(2)),
            *(RandomAsker(seed + number) for number in range(3)),
            *(SteeredChatter(self._alone, SWAPPED, seed + number) for number in range(2)),
            *(VectorKeeper(self.ledger, name, contents, seed + number) for number, name in enumerate(SWAPPED)),
            Leaver(seed),
            *(Vandal(seed + number) for number in range(3)),
            FileKeeper(self.ledger, seed),
            self._trainer,
        ]

    def run(self) -> bool:
        """All lives; True when nothing failed. What failed is in `failures`."""
        try:
            for number in range(self.plan.num_lives):
                with ServerProcess(self.plan.folder, *SERVE, patience=PATIENCE, preloaded=False) as server:
                    try:
                        asyncio.run(self._live(server, number))
                    finally:
                        server.signal(signal.SIGKILL)
                        server.wait()
                        self.output += f"--- life {number}\n{server.output}"
        except* (SoakFailed, AssertionError, httpx.HTTPError, TimeoutError, queue.Empty) as group:
            self.failures += [f"life {number}: {str(error) or repr(error)}" for error in _leaves(group)]
        self.judgements = judge(self.readings)
        self.failures += [f"not flat: {judgement}" for judgement in self.judgements if not judgement.is_flat]
        if "Traceback" in self.output:
            self.failures.append("the server said: " + self.output[self.output.index("Traceback") :][:3000])
        if not self.failures:
            said = call_tiller("doctor", self.plan.folder)
            self.failures += [] if said.returncode == 0 else [f"tiller doctor: {said.stdout}{said.stderr}"]
        return not self.failures

    async def _live(self, server: ServerProcess, number: int) -> None:
        started_at = time.monotonic()
        self.progress(number * self.plan.seconds_of_life, f"life {number}: the server starts")
        url = await asyncio.to_thread(server.wait_until_ready)
        self.starts.append(time.monotonic() - started_at)
        limits = httpx.Limits(max_keepalive_connections=8, keepalive_expiry=5)
        async with httpx.AsyncClient(base_url=url, timeout=PATIENCE, limits=limits) as client:
            life = Life(number, url, client, self.tally)
            self.progress(number * self.plan.seconds_of_life, f"life {number}: the ledger is compared")
            await self._compare(life)
            if number == 0:
                await self._alone.learn(life)
            before = Levels.of(server.process_id)
            async with asyncio.TaskGroup() as group:
                for client_of in self.clients:
                    group.create_task(live(client_of, life))
                await self._pass_time(server, life)
                life.is_over.set()
                if number < self.plan.num_lives - 1:
                    life.is_killed = True
                    server.signal(signal.SIGKILL)
                    self.ledger.note_kill()
            if not life.is_killed:
                await self._end(server, life, before)

    async def _pass_time(self, server: ServerProcess, life: Life) -> None:
        """The clients do their work, and each second is looked what the server holds."""
        began = time.monotonic()
        while (served := time.monotonic() - began) < self.plan.seconds_of_life:
            now = time.monotonic() - self.started_at
            counts = (life.number, self.tally.num_requests, self.tally.done["jobs succeeded"])
            self.readings.append(await asyncio.to_thread(Reading.of, server.process_id, life.url, now, *counts))
            told = f"life {life.number}: {self.tally.num_requests} requests, {self.readings[-1].memory:.0f} MiB"
            self.progress(life.number * self.plan.seconds_of_life + served, told)
            await asyncio.sleep(min(1.0, self.plan.seconds_of_life / 30))

    async def _end(self, server: ServerProcess, life: Life, before: Levels) -> None:
        """Every job ends, nothing is held, everything is there, and the server stops when it is told to."""
        self.progress(self.plan.seconds, "the end: jobs end, the server becomes idle")
        async with asyncio.timeout(PATIENCE):
            while jobs := self.ledger.open_jobs:
                for identifier, job in jobs.items():
                    await self._trainer.look(life, identifier, job)
                await asyncio.sleep(0.2)
        await _become(lambda: is_idle(life.url), lambda: f"the idle server holds something: {_held(life.url)}")
        await self._compare(life)
        await life.client.aclose()
        await _become(
            lambda: _is_back(server, life.url, before),
            lambda: f"the idle server: expected about {before}, got {Levels.of(server.process_id)}",
        )
        errors = metrics(life.url)['tiller:http_responses_total{status="5xx"}']
        known = sum(count for status, count in self.tally.statuses.items() if status >= 500)
        if errors > known:
            raise SoakFailed(f"the server counts {errors:.0f} answers of 5xx, and the clients {known}")
        if (code := await asyncio.to_thread(server.stop)) != 0:
            raise SoakFailed(f"the server was told to stop, and ended with status {code}")

    async def _compare(self, life: Life) -> None:
        """Hold what is there against the ledger, beside nobody who changes it."""
        await settle_training(life, self.ledger)
        shipped = {"cheerful", "honest"}
        found = await read_vectors(life)
        self.ledger.settle_vectors({name: seen for name, seen in found.items() if name not in shipped})
        if not shipped <= found.keys():
            raise SoakFailed(f"the shipped vectors are lost: {found.keys()}")


async def _become(is_so: Callable[[], bool], message: Callable[[], str]) -> None:
    try:
        await asyncio.to_thread(eventually, is_so, within=PATIENCE)
    except AssertionError:
        raise SoakFailed(message()) from None


def _held(url: str) -> dict[str, float]:
    told = metrics(url)
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "tiller:steering_rows_in_use", "tiller:kv_pages")
    return {name: told[name] for name in (*names, "tiller:kv_pages_free")}


def _is_back(server: ServerProcess, url: str, before: Levels) -> bool:
    """True when about as many files are open and threads run as before; asking lets spare threads end."""
    body = {"prompt": "a", "max_tokens": 1}
    httpx.post(f"{url}/v1/completions", json=body, headers={"connection": "close"}, timeout=DEADLINE)
    now = Levels.of(server.process_id)
    return now.num_files <= before.num_files + SPARE and now.num_threads <= before.num_threads + SPARE


def _leaves(group: BaseExceptionGroup[Exception]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found
