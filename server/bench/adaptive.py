"""What probes and gates cost: `python -m server.bench.adaptive [FOLDER]`, by default with the embedded model.

Decoding at batch 32 unsteered, with a probe at every block on each request, with a gated entry of its own on each, and
with both. It prints tokens a second and the ratio to unsteered of the same repeat, medians of interleaved repeats.
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

BATCH, PROMPT_TOKENS, NEW_TOKENS, REPEATS = 32, 32, 48, 5


def plan_of(info: ModelInfo, seed: int, *, is_gated: bool, is_read: bool) -> SteeringPlan:
    """A gated entry at the last block, which a probe at the first opens for about half of the tokens, and probes."""
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(info.hidden_size, generator=generator)
    vector, last = SteeringVector({0: 0.01 * direction / direction.norm()}), info.num_layers - 1
    feature = Feature(vector.directions[0])
    entries = []
    if is_gated:
        gate = PlanGate("", vector.revision, ("residual", 0), feature, 0.0, True, None, "token", is_before=last == 0)
        entries.append(PlanEntry("", vector.revision, resolve_vector(vector, info, layers=[last]), vector.parts, gate))
    probes = [
        PlanProbe(str(layer), "", vector.revision, ("residual", layer), feature, "response", False, 0.0)
        for layer in range(info.num_layers if is_read else 0)
    ]
    return SteeringPlan(entries, probes)


def main(folder: Path) -> None:
    """Measure and print."""
    model = load_model(str(folder))
    cases = {
        "unsteered": [UNSTEERED],
        "probes": [plan_of(model.info, seed, is_gated=False, is_read=True) for seed in range(BATCH)],
        "gates": [plan_of(model.info, seed, is_gated=True, is_read=False) for seed in range(BATCH)],
        "gates and probes": [plan_of(model.info, seed, is_gated=True, is_read=True) for seed in range(BATCH)],
    }
    speeds: dict[str, list[float]] = {name: [] for name in cases}
    with BatchingEngine(model, EngineSettings(num_pages=1024)) as engine:
        for repeat in range(REPEATS + 1):
            for number, (name, plans) in enumerate(cases.items()):
                workload = Workload(BATCH, number, PROMPT_TOKENS, NEW_TOKENS)
                timing = measure(engine, workload, repeat, plans)
                if repeat:
                    speeds[name].append(timing.decode)
    for name, own in speeds.items():
        ratios = [one / plain for one, plain in zip(own, speeds["unsteered"], strict=True)]
        print(f"{name:18} {statistics.median(own):8.0f} tokens/s  {statistics.median(ratios):.3f} of unsteered")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else MODEL_DIR)
