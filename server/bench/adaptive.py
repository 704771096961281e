"""What steering costs: `python -m server.bench.adaptive [FOLDER] [BATCH]`, by default the embedded model at batch 32.

Decoding unsteered, and with each kind of steering on every request: its own in each, unless the name says 1. Each case
has an engine of its own, and they take turns of a few steps. It prints the milliseconds of processor time of a step and
the speed in relation to unsteered in the same round: medians and quartiles. Processor time of one thread does not count
what other programs take; set OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from pathlib import Path

import torch

from server.demo import MODEL_DIR
from server.engine.engine import BatchingEngine, EngineSettings
from server.engine.model import load_model
from server.engine.protocol import ModelInfo
from server.engine.request import EngineRequest, Generate, SamplingParams
from server.steering.plan import UNSTEERED, PlanEntry, PlanGate, PlanProbe, SteeringPlan
from vectors.applied import resolve_vector
from vectors.operations import Feature
from vectors.vector import SteeringVector
from vectors.vocabulary import Operation

BATCH, PROMPT_TOKENS, NUM_ROUNDS, STEPS, MOST_TOKENS = 32, 32, 24, 2, 512


def vector_of(info: ModelInfo, seed: int) -> SteeringVector:
    """A random direction for every block, small enough that no model overflows."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(info.num_layers, info.hidden_size, generator=generator)
    return SteeringVector(dict(enumerate(0.01 * directions / directions.norm(dim=1, keepdim=True))))


def entries_of(
    info: ModelInfo, seed: int, operation: Operation, layers: range, *, preserve_norm: bool = False
) -> list[PlanEntry]:
    """An entry of `operation` at `layers`."""
    vector = vector_of(info, seed)
    applied = resolve_vector(vector, info, operation=operation, layers=layers, preserve_norm=preserve_norm)
    return [PlanEntry("", vector.revision, applied, vector.parts)]


def probes_of(info: ModelInfo, seed: int) -> list[PlanProbe]:
    """A probe at every block."""
    vector = vector_of(info, seed)
    return [
        PlanProbe(str(layer), "", vector.revision, ("residual", layer), Feature(direction), "response", False, 0.0)
        for layer, direction in vector.directions.items()
    ]


def gated_of(info: ModelInfo, seed: int) -> list[PlanEntry]:
    """An entry at the last block, which a probe at the first opens for about half of the tokens."""
    vector, last = vector_of(info, seed), info.num_layers - 1
    feature = Feature(vector.directions[0])
    gate = PlanGate("", vector.revision, ("residual", 0), feature, 0.0, True, None, "token", is_before=last == 0)
    return [PlanEntry("", vector.revision, resolve_vector(vector, info, layers=[last]), vector.parts, gate)]


def cases_of(info: ModelInfo, batch: int) -> dict[str, list[SteeringPlan]]:
    """The plans of the requests by the name of the case."""
    seeds, layers, last = range(batch), range(info.num_layers), range(info.num_layers - 1, info.num_layers)
    mixed = [
        entries_of(info, seed, "ablate" if seed % 2 else "add", layers, preserve_norm=seed % 4 < 2) for seed in seeds
    ]
    return {
        "unsteered": [UNSTEERED],
        "unsteered again": [UNSTEERED],
        "probes at every block": [SteeringPlan([], probes_of(info, seed)) for seed in seeds],
        "gates": [SteeringPlan(gated_of(info, seed)) for seed in seeds],
        "gates and probes at every block": [
            SteeringPlan(gated_of(info, seed), probes_of(info, seed)) for seed in seeds
        ],
        "ablate, preserve_norm and add mixed": [SteeringPlan(entries) for entries in mixed],
        "ablate at one block": [SteeringPlan(entries_of(info, seed, "ablate", last)) for seed in seeds],
        "add at every block, 1 vector": [SteeringPlan(entries_of(info, 0, "add", layers))],
        "add at every block": [SteeringPlan(entries_of(info, seed, "add", layers)) for seed in seeds],
    }


def started(engine: BatchingEngine, name: str, plans: list[SteeringPlan], batch: int) -> None:
    """Submit the requests of a case, and step until all of them decode."""
    generator = random.Random(0)
    work = Generate(NUM_ROUNDS * STEPS + 64, SamplingParams(temperature=0.0, ignore_eos=True))
    for number in range(batch):
        prompt = tuple(generator.randrange(engine.info.vocab_size) for _ in range(PROMPT_TOKENS))
        request = EngineRequest(f"{name} {number}", prompt, work, plans[number % len(plans)])
        engine.submit(request, lambda output: None)
    for _ in range(4 + batch * PROMPT_TOKENS // MOST_TOKENS):
        engine.step()


def main(folder: Path, batch: int) -> None:
    """Measure and print."""
    model = load_model(str(folder))
    cases = cases_of(model.info, batch)
    settings = EngineSettings(
        num_pages=batch * (PROMPT_TOKENS + NUM_ROUNDS * STEPS + 64) // 8,
        max_running=batch,
        max_batch_tokens=MOST_TOKENS,
    )
    engines = {name: BatchingEngine(model, settings) for name in cases}
    for name, engine in engines.items():
        started(engine, name, cases[name], batch)
    times: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(NUM_ROUNDS):
        for name, engine in list(engines.items())[:: -1 if number % 2 else 1]:
            began = time.thread_time()
            for _ in range(STEPS):
                engine.step()
            times[name].append((time.thread_time() - began) / STEPS * 1000)
    for name, own in times.items():
        ratios = [plain / one for one, plain in zip(own, times["unsteered"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"{name:36} {statistics.median(own):7.2f} ms  {middle:.3f} of unsteered ({low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else MODEL_DIR, int(sys.argv[2]) if len(sys.argv) > 2 else BATCH)
