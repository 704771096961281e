"""Probes of the engine, whatever else happens: cached prompts, chunks, preemption, 32 different ones in a batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from server.engine.model import prepare_model
from server.engine.request import EngineRequest, Generate, TokenOutput
from tests.families import VOCABULARY, build
from tests.reference import Steer, scores
from tests.server.engine.driving import (
    GREEDY,
    engine_of,
    loaded,
    num_preemptions,
    plan_of,
    probe_of,
    prompt_of,
    random_direction,
    run,
    tokens_of,
)
from vectors.vocabulary import POSITIONS, SITES


def check(prompt: tuple[int, ...], events: list[TokenOutput], probe: Steer, steers: tuple[Steer, ...] = ()) -> None:
    """What was told of the only probe equals one slow pass over prompt and answer."""
    tokens = (*prompt, *tokens_of(events))
    expected = scores(build("llama"), tokens, probe, steers, len(prompt))
    told = [event.readings for event in events]
    found = [each.scores[0] for each in told if each is not None]
    assert len(found) == len(tokens_of(events))
    if probe.positions == "prompt":
        assert set(found) == {None}
    else:
        assert found == pytest.approx(expected[len(prompt) - 1 : -1], abs=1e-4)
    first = told[0]
    assert first is not None
    if probe.positions == "response":
        assert first.prompt is None
    else:
        assert first.prompt is not None
        assert first.prompt[0] == pytest.approx(expected[: len(prompt)], abs=1e-4)


@pytest.mark.parametrize("positions", POSITIONS)
def test_a_cached_prompt_is_read_again(positions: str) -> None:
    prompt = prompt_of(22)
    probe = Steer(random_direction(5), 1, "mlp", positions=positions)
    request = EngineRequest("x", prompt, Generate(4, GREEDY), plan_of(probes=[probe_of(probe)]))
    engine = engine_of(loaded(), max_batch_tokens=7)
    for _ in range(2):
        (events,) = run(engine, [request]).values()
        check(prompt, events, probe)
    num_cached = events[-1].num_cached_tokens
    assert num_cached == (20 if positions == "response" else 0)
    (plain,) = run(engine, [EngineRequest("x", prompt, Generate(4, GREEDY))]).values()
    assert plain[-1].num_cached_tokens == 20  # the pages of a prompt that was read are everybody's
    engine.close()


def test_32_different_ones_in_chunks_and_after_preemption() -> None:
    engine = engine_of(loaded(), num_pages=24, max_batch_tokens=24)
    probes = [
        Steer(random_direction(seed), seed % 3, SITES[seed % 4], positions=POSITIONS[seed % 3]) for seed in range(32)
    ]
    steers = [
        (Steer(random_direction(seed + 1), seed % 3, scale=seed / 20, positions="all"),) if seed % 2 else ()
        for seed in range(32)
    ]
    requests = [
        EngineRequest(str(seed), prompt_of(5 + seed % 9), Generate(6, GREEDY), plan_of(*own, probes=[probe_of(probe)]))
        for seed, (probe, own) in enumerate(zip(probes, steers, strict=True))
    ]
    answers = run(engine, requests)
    assert num_preemptions(engine) > 0
    for seed, (probe, own) in enumerate(zip(probes, steers, strict=True)):
        check(requests[seed].prompt, answers[str(seed)], probe, own)
    engine.close()


def test_reading_is_bit_identical() -> None:
    """Alone, so that both requests are computed by the same calls."""
    engine = engine_of(loaded(), prefix_cache=False)
    steers = (Steer(random_direction(1), 1), Steer(random_direction(2), 1, operation="clamp"))
    probes = [
        probe_of(Steer(random_direction(seed), seed % 3, site, positions="all")) for seed, site in enumerate(SITES * 3)
    ]
    work = Generate(6, GREEDY, num_logprobs=VOCABULARY)
    for own in ((), steers):
        (plain,) = run(engine, [EngineRequest("x", prompt_of(9), work, plan_of(*own))]).values()
        (read,) = run(engine, [EngineRequest("x", prompt_of(9), work, plan_of(*own, probes=probes))]).values()
        assert [event.logprobs for event in plain] == [event.logprobs for event in read]
    engine.close()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_score_is_of_what_the_next_block_sees(dtype: torch.dtype) -> None:
    """In half precision a clamp is rounded, and so is what is read after it."""
    module: Any = build("llama")
    model = prepare_model(module.to(dtype), model_id="half")
    engine = engine_of(model)
    clamp = Steer(random_direction(1), 1, operation="clamp", scale=0.4)
    (events,) = run(
        engine,
        [EngineRequest("x", prompt_of(9), Generate(4, GREEDY), plan_of(clamp, probes=[probe_of(clamp)]))],
    ).values()
    found = [event.readings.scores[0] for event in events if event.readings is not None]
    assert found == pytest.approx([0.4] * 4, abs=0.01)
    engine.close()
