"""Driving a BatchingEngine step by step on the test's own thread, so that tests need no waiting."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import cast

import torch

from server.engine.engine import BatchingEngine, EngineSettings
from server.engine.model import LoadedModel, prepare_model
from server.engine.request import EngineRequest, Generate, SamplingParams, TokenOutput
from server.steering.plan import UNSTEERED, PlanEntry, PlanGate, PlanProbe, SteeringPlan
from tests.families import HIDDEN, LAYERS, build
from tests.reference import Gate, Steer
from vectors.applied import AppliedVector
from vectors.operations import Feature
from vectors.positions import checked_positions
from vectors.vector import SteeringVector
from vectors.vocabulary import Latch

GREEDY = SamplingParams(temperature=0.0)


def fresh(family: str = "llama") -> LoadedModel:
    """A tiny model of `family`, ready for an engine, for a test that changes it or leaves a thread in it."""
    return prepare_model(build(family), model_id=family)


@functools.cache
def loaded(family: str = "llama") -> LoadedModel:
    """The same for one engine after the other: verifying that it is exact takes longer than most tests."""
    return fresh(family)


def engine_of(model: LoadedModel, **changes: object) -> BatchingEngine:
    """An engine that is driven by `step`, with small pages so that every border is met."""
    settings: dict[str, object] = {
        "num_pages": 256,
        "page_size": 4,
        "max_running": 40,
        "max_batch_tokens": 64,
    }
    return BatchingEngine(model, EngineSettings(**(settings | changes)))  # type: ignore[arg-type]


def run(
    engine: BatchingEngine,
    requests: Iterable[EngineRequest],
    after_step: Callable[[int], None] = lambda number: None,
) -> dict[str, list[TokenOutput]]:
    """Submit all, step until nothing is left, and check that nothing leaked."""
    outputs: dict[str, list[TokenOutput]] = {}
    for request in requests:
        outputs[request.request_id] = []
        engine.submit(request, lambda output: outputs[output.request_id].append(output))
    number = 0
    while engine.step():
        after_step(number)
        number += 1
    assert_nothing_held(engine)
    for request_id, events in outputs.items():
        assert [event.finish_reason is not None for event in events] == [False] * (len(events) - 1) + [True], request_id
    return outputs


def assert_nothing_held(engine: BatchingEngine) -> None:
    """Every page, row and state is back."""
    stats = engine.stats()
    assert stats.paging is not None
    assert all(pool.num_free_pages == pool.num_pages for pool in stats.paging.pools)
    assert stats.num_rows_in_use == 0
    assert not stats.num_states_in_use
    assert (stats.num_running, stats.num_waiting) == (0, 0)


def num_preemptions(engine: BatchingEngine) -> int:
    """How often a request gave up its pages."""
    paging = engine.stats().paging
    assert paging is not None
    return paging.total_preemptions


def tokens_of(events: list[TokenOutput]) -> list[int]:
    """The generated tokens."""
    return [event.token_id for event in events if event.token_id is not None]


def prompt_of(length: int, seed: int = 0, vocabulary: int = 101) -> tuple[int, ...]:
    """A random prompt."""
    generator = torch.Generator().manual_seed(1000 * length + seed)
    return tuple(torch.randint(0, vocabulary, (length,), generator=generator).tolist())


def random_direction(seed: int, scale: float = 3.0) -> torch.Tensor:
    """A random direction long enough to change what a tiny model says."""
    return torch.randn(HIDDEN, generator=torch.Generator().manual_seed(seed)) * scale


def mixed_requests(model: LoadedModel) -> list[EngineRequest]:
    """Greedy and sampled, steered and not, short and long, with prefixes in common."""
    vocabulary, hidden = model.info.vocab_size, model.info.hidden_size

    def direction(seed: int) -> torch.Tensor:
        return torch.randn(hidden, generator=torch.Generator().manual_seed(seed)) * 3.0

    common = prompt_of(22, vocabulary=vocabulary)
    plans = [
        UNSTEERED,
        plan_of(Steer(direction(1), 1)),
        plan_of(Steer(direction(1), 1, positions="all")),
        plan_of(Steer(direction(2), 0, "mlp", positions="prompt", operation="ablate")),
    ]
    requests = []
    for index in range(12):
        prompt = common[: 6 + 2 * index] if index % 2 else prompt_of(3 + 2 * index, vocabulary=vocabulary)
        sampling = GREEDY if index % 3 else SamplingParams(temperature=0.8, top_p=0.9, seed=index)
        requests.append(EngineRequest(str(index), prompt, Generate(4 + index // 2, sampling), plans[index % 4]))
    return requests


def alone(model: LoadedModel, requests: Iterable[EngineRequest]) -> dict[str, list[int]]:
    """Each request's tokens in an engine of its own: no chunks, no shared pages, no neighbours."""
    answers = {}
    for request in requests:
        engine = engine_of(model, prefix_cache=False, max_batch_tokens=4096)
        answers[request.request_id] = tokens_of(run(engine, [request])[request.request_id])
        engine.close()
    return answers


@functools.cache
def mixed_alone(family: str = "llama") -> dict[str, list[int]]:
    """What each of the mixed requests says alone in the tiny model of `family`; found once for all tests."""
    model = loaded(family)
    return alone(model, mixed_requests(model))


def vector_of(steer: Steer) -> SteeringVector:
    """The directions of the reference's entry."""
    has_read = steer.read is not None
    return SteeringVector(
        {steer.layer: steer.direction},
        {steer.layer: steer.read} if has_read else {},  # type: ignore[dict-item]
        {steer.layer: torch.full(steer.direction.shape[:-1], steer.bias)} if has_read else {},
        site=steer.site,  # type: ignore[arg-type]
        activation=steer.activation,  # type: ignore[arg-type]
    )


def positions_of(steer: Steer) -> str | dict[str, str | int]:
    """Those of the reference's entry as requests write them."""
    if isinstance(steer.positions, str):
        return steer.positions
    of, start, end = steer.positions
    if start < 0:
        return {"of": of, "last": -start}
    if end is None:
        return {"of": of, "from": start}
    return {"of": of, "from": start, "to": end} if start else {"of": of, "first": end}


def probe_of(steer: Steer, *, is_before: bool = False, name: str = "probe") -> PlanProbe:
    """The engine's probe that reads as the reference's entry does; `scale` is its threshold."""
    vector, layer = vector_of(steer), steer.layer
    feature = Feature(vector.directions[layer], vector.reads.get(layer), vector.biases.get(layer), vector.activation)
    place, positions = (vector.site, layer), checked_positions(positions_of(steer))
    return PlanProbe(name, "test", vector.revision, place, feature, positions, is_before, steer.scale)


def gate_of(gate: Gate, applied: AppliedVector) -> PlanGate:
    """The engine's gate of an entry that is applied so."""
    probe = probe_of(gate.probe)
    return PlanGate(
        "gate", probe.revision, probe.place, probe.feature, gate.threshold, gate.is_above, gate.sharpness,
        cast(Latch, gate.latch), is_before=probe.place in applied.places,
    )  # fmt: skip


def plan_of(*steers: Steer, probes: Iterable[PlanProbe] = ()) -> SteeringPlan:
    """The engine's plan for the same steering that the reference applies."""
    entries = []
    for steer in steers:
        assert 0 <= steer.layer < LAYERS
        vector = vector_of(steer)
        applied = AppliedVector(
            site=vector.site,
            layers=vector.layers,
            scale=steer.scale,
            positions=checked_positions(positions_of(steer)),
            operation=steer.operation,  # type: ignore[arg-type]
            preserve_norm=steer.preserve_norm,
            directions=vector.directions,
            reads=vector.reads,
            biases=vector.biases,
            activation=vector.activation,
            min=steer.low,
            max=steer.high,
        )
        gate = None if steer.gate is None else gate_of(steer.gate, applied)
        entries.append(PlanEntry("test", vector.revision, applied, steer.parts, gate))  # type: ignore[arg-type]
    return SteeringPlan(entries, probes)
