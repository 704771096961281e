"""What steering costs: `python -m server.bench.adaptive [FOLDER] [BATCH]`, by default the embedded model at batch 32.

Decoding unsteered, and with each kind of steering on every request: its own in each, unless the name says 1. It prints
tokens a second of processor time, and the ratio to unsteered of the same round: medians and quartiles of interleaved
rounds. Processor time, because it does not count what other programs take; set OMP_NUM_THREADS=1, so that it does not
count waiting for other threads either.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

import torch

from server.bench.offline import Workload, measure
from server.demo import MODEL_DIR
from server.engine.engine import BatchingEngine, EngineSettings
from server.engine.model import load_model
from server.engine.protocol import ModelInfo
from server.steering.plan import UNSTEERED, PlanEntry, PlanGate, PlanProbe, SteeringPlan
from vectors.applied import resolve_vector
from vectors.operations import Feature
from vectors.vector import SteeringVector
from vectors.vocabulary import Operation

BATCH, PROMPT_TOKENS, NEW_TOKENS, ROUNDS = 32, 32, 48, 9


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


def main(folder: Path, batch: int) -> None:
    """Measure and print."""
    model = load_model(str(folder))
    cases = cases_of(model.info, batch)
    speeds: dict[str, list[float]] = {name: [] for name in cases}
    settings = EngineSettings(num_pages=256 + batch * 8, max_running=batch)
    with BatchingEngine(model, settings) as engine:
        for number in range(ROUNDS + 1):
            for name, plans in cases.items():
                speed = measure(engine, Workload(batch, 0, PROMPT_TOKENS, NEW_TOKENS), number, plans).decode_cpu
                if number:  # the first round warms up
                    speeds[name].append(speed)
    for name, own in speeds.items():
        ratios = [one / plain for one, plain in zip(own, speeds["unsteered"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"{name:36} {statistics.median(own):8.0f} tokens/s  {middle:.3f} of unsteered ({low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else MODEL_DIR, int(sys.argv[2]) if len(sys.argv) > 2 else BATCH)
