"""Speed of an engine without HTTP: prefill and decoding by batch size, unsteered and with other vectors on requests.

Repeats of all workloads are interleaved, so that a machine that slows down slows all of them down. Every figure is a
median with the smallest and largest; steered figures come with the ratio to the unsteered ones of the same repeat.
"""

from __future__ import annotations

import itertools
import random
import resource
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from server.engine.protocol import Engine
from server.engine.request import EngineRequest, Generate, SamplingParams, TokenOutput
from server.steering.plan import UNSTEERED, SteeringPlan
from server.steering.resolution import plan_of_vectors
from vectors.vector import SteeringVector

_NORM = 0.01
"""Of each direction: small enough that no model overflows; speed does not depend on it."""

_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Workload:
    """`batch` requests at once, each with a prompt of its own, and `num_vectors` different vectors among them."""

    batch: int
    num_vectors: int
    prompt_tokens: int
    new_tokens: int


@dataclass(frozen=True, slots=True)
class Timing:
    """Tokens a second, over the whole batch: of prompts until every request has its first token, and of all later
    tokens."""

    prefill: float
    decode: float


@dataclass(frozen=True, slots=True)
class Spread:
    """Repeated measurements of one figure."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of one or more values."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True, slots=True)
class Figure:
    """A workload's figures. `…_ratio`: to the unsteered workload of the same batch, repeat by repeat; None for that."""

    workload: Workload
    prefill: Spread
    decode: Spread
    prefill_ratio: Spread | None
    decode_ratio: Spread | None

    def to_json(self) -> dict[str, Any]:
        """Everything by name."""
        return asdict(self)


def workloads_of(
    batches: Sequence[int], num_vectors: Sequence[int], prompt_tokens: int, new_tokens: int
) -> list[Workload]:
    """Every batch unsteered, then with each number of vectors that is not above it."""
    return [
        Workload(batch, count, prompt_tokens, new_tokens)
        for batch in batches
        for count in (0, *num_vectors)
        if count <= batch
    ]


def run_bench(
    engine: Engine, workloads: Sequence[Workload], repeats: int, advance: Callable[[], None] = lambda: None
) -> list[Figure]:
    """Measure `workloads`, after one round that warms up; `advance` is called after each measurement.

    Each batch is among the workloads unsteered. Raises what `Engine.submit` raises.
    """
    timings: dict[Workload, list[Timing]] = {workload: [] for workload in workloads}
    for repeat in range(repeats + 1):
        for workload in workloads:
            timing = measure(engine, workload, repeat)
            if repeat:
                timings[workload].append(timing)
            advance()
    return [_figure(workload, timings) for workload in workloads]


def peak_memory_mib() -> float:
    """The most memory that this process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def measure(engine: Engine, workload: Workload, seed: int, plans: Sequence[SteeringPlan] | None = None) -> Timing:
    """Run the workload once, on random prompts that no other seed shares. The engine has nothing else to do.

    `plans`: those of the requests, in turn; None: with as many vectors as the workload says.
    """
    plans = _plans(engine, workload.num_vectors) if plans is None else plans
    generator = random.Random(f"{seed} {workload.num_vectors} {workload.batch}")
    work = Generate(workload.new_tokens, SamplingParams(temperature=0.0, ignore_eos=True))
    clock = _Clock(workload.batch)
    started = time.perf_counter()
    for number in range(workload.batch):
        prompt = tuple(generator.randrange(engine.info.vocab_size) for _ in range(workload.prompt_tokens))
        plan = plans[number % len(plans)]
        engine.submit(EngineRequest(f"bench-{next(_numbers)}", prompt, work, plan), clock.receive)
    clock.has_ended.wait()
    if clock.error is not None:
        raise clock.error
    num_later = clock.num_tokens - clock.num_first
    return Timing(
        prefill=workload.batch * workload.prompt_tokens / (clock.all_began - started),
        decode=num_later / (clock.ended - clock.all_began) if num_later else 0.0,
    )


def _plans(engine: Engine, num_vectors: int) -> list[SteeringPlan]:
    """`num_vectors` plans, each with a random direction of its own in every block; one unsteered plan for 0."""
    if num_vectors == 0:
        return [UNSTEERED]
    info, plans = engine.info, []
    for number in range(num_vectors):
        generator = torch.Generator().manual_seed(number)
        directions = torch.randn(info.num_layers, info.hidden_size, generator=generator)
        scaled = _NORM * directions / directions.norm(dim=1, keepdim=True)
        vector = SteeringVector(dict(enumerate(scaled)), positions="all")
        plans.append(plan_of_vectors([(vector, 1.0)], info))
    return plans


class _Clock:
    """Notes when every request of a batch has begun to answer, and how many tokens came until and after that."""

    def __init__(self, batch: int) -> None:
        self._batch = batch
        self._begun: set[str] = set()
        self._num_ended = 0
        self.num_tokens = 0
        self.num_first = 0
        self.all_began = self.ended = 0.0
        self.error: Exception | None = None
        self.has_ended = threading.Event()

    def receive(self, output: TokenOutput) -> None:
        """An event of any request; called by the engine's thread."""
        if output.token_id is not None:
            self.num_tokens += 1
            self._begun.add(output.request_id)
            if len(self._begun) == self._batch and not self.all_began:
                self.all_began, self.num_first = time.perf_counter(), self.num_tokens
        if output.finish_reason is not None:
            self.error = output.error or self.error
            self._num_ended += 1
            if self._num_ended == self._batch:
                self.ended = time.perf_counter()
                self.has_ended.set()


def _figure(workload: Workload, timings: dict[Workload, list[Timing]]) -> Figure:
    own = timings[workload]
    prefill_ratio = decode_ratio = None
    if workload.num_vectors:
        plain = timings[Workload(workload.batch, 0, workload.prompt_tokens, workload.new_tokens)]
        prefill_ratio = Spread.of([one.prefill / other.prefill for one, other in zip(own, plain, strict=True)])
        decode_ratio = Spread.of([one.decode / other.decode for one, other in zip(own, plain, strict=True)])
    return Figure(
        workload,
        Spread.of([timing.prefill for timing in own]),
        Spread.of([timing.decode for timing in own]),
        prefill_ratio,
        decode_ratio,
    )
