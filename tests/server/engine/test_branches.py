"""One prompt's last token under many plans at once: equal to each plan alone, on plain transformers."""

from __future__ import annotations

import functools

import pytest
import torch

from server.engine.pacing import BackgroundPace
from server.engine.request import Branch, EngineRequest, Generate, Priority
from server.steering.plan import SteeringPlan
from tests.families import CONFIGS, plain_model
from tests.reference import Steer, steered_logits
from tests.server.engine.driving import (
    GREEDY,
    assert_nothing_held,
    engine_of,
    loaded,
    num_preemptions,
    plan_of,
    prompt_of,
    random_direction,
    run,
    tokens_of,
)

TOKENS = (3, 50, 7)
STEERS: list[tuple[Steer, ...]] = [
    (),
    (Steer(random_direction(1), 0),),
    (Steer(random_direction(2), 1, scale=-1.5), Steer(random_direction(3), 0, "mlp")),
    (Steer(random_direction(4), 2, operation="ablate"),),
    (Steer(random_direction(1), 0, scale=2.0),),
    (Steer(random_direction(5), 1, "attention", operation="clamp"),),
    (Steer(random_direction(6), 2, preserve_norm=True),),
]


def branching(name: str, prompt: tuple[int, ...], plans: list[SteeringPlan]) -> EngineRequest:
    return EngineRequest(name, prompt, Branch(tuple(plans), TOKENS), priority=Priority.BACKGROUND)


@functools.cache
def expected(family: str, prompt: tuple[int, ...]) -> torch.Tensor:
    rows = [steered_logits(plain_model(family), prompt, steers)[-1][list(TOKENS)] for steers in STEERS]
    return torch.stack(rows)


@pytest.mark.parametrize("family", CONFIGS)
def test_every_branch_equals_its_plan_alone(family: str) -> None:
    engine = engine_of(loaded(family), max_batch_tokens=5)
    plans = [plan_of(*steers) for steers in STEERS]
    prompts = [prompt_of(length) for length in (1, 2, 5, 9, 26)]
    requests = [branching(str(length), prompt, plans) for length, prompt in enumerate(prompts)]
    requests += [branching("again", prompts[-1], plans), EngineRequest("live", prompts[-1], Generate(6, GREEDY))]
    outputs = run(engine, requests)
    for name, prompt in [*((str(index), prompt) for index, prompt in enumerate(prompts)), ("again", prompts[-1])]:
        (event,) = outputs[name]
        assert event.branch_logits is not None
        torch.testing.assert_close(event.branch_logits, expected(family, prompt), atol=1e-4, rtol=1e-4)
    engine.close()


def test_branches_survive_preemption_and_leave_the_others_alone() -> None:
    engine = engine_of(loaded(), num_pages=9, max_batch_tokens=8)
    plans = [plan_of(*steers) for steers in STEERS] * 4
    requests = [branching(str(index), prompt_of(17, index), plans) for index in range(3)]
    engine_alone = engine_of(loaded())
    live = [EngineRequest(f"live{index}", prompt_of(11, index), Generate(9, GREEDY)) for index in range(3)]
    alone = {request.request_id: tokens_of(run(engine_alone, [request])[request.request_id]) for request in live}
    late = iter(live)
    outputs: dict[str, list[int]] = {}

    def submit_one(number: int) -> None:
        if number % 3 == 1 and (request := next(late, None)) is not None:
            engine.submit(
                request, lambda output: outputs.setdefault(output.request_id, []).append(output.token_id or 0)
            )

    events = run(engine, requests, submit_one)
    assert num_preemptions(engine) > 0
    assert outputs == alone
    for index, request in enumerate(requests):
        (event,) = events[request.request_id]
        assert event.branch_logits is not None
        wanted = expected("llama", prompt_of(17, index)).repeat(4, 1)
        torch.testing.assert_close(event.branch_logits, wanted, atol=1e-4, rtol=1e-4)
    assert_nothing_held(engine)
    engine.close()
    engine_alone.close()


def test_background_work_takes_its_share_of_the_time_and_no_more() -> None:
    pace = BackgroundPace(share=0.2, least_share=0.001)
    live = background = 0.0
    num_with = 0
    for _ in range(4000):
        has_background = pace.allowance().max_tokens > 0
        pace.note(0.004 if has_background else 0.001, has_background=has_background)
        live += 0.001
        background += 0.003 if has_background else 0.0
        num_with += has_background
    assert num_with > 100
    assert 0.15 < background / live < 0.25


def test_background_work_that_waits_has_a_share_of_the_steps_however_slow_it_is() -> None:
    pace = BackgroundPace(share=0.01, least_share=0.05)
    served = []
    for _ in range(2000):
        served.append(pace.allowance().max_tokens > 0)
        pace.note(1.0 if served[-1] else 0.001, has_background=served[-1])
    assert sum(served) == pytest.approx(0.05 * len(served), rel=0.02)
