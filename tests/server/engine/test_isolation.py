"""Invariant 3 where it hurts: a request whose numbers break takes nobody with it."""

from __future__ import annotations

import pytest
import torch

from server.engine.request import CaptureSpec, FinishReason, GenerationRequest, SamplingParams
from server.errors import Unavailable
from tests.families import build
from tests.reference import Steer, greedy
from tests.server.engine.driving import (
    GREEDY,
    assert_nothing_held,
    engine_of,
    loaded,
    plan_of,
    prompt_of,
    random_direction,
    run,
    tokens_of,
)

BROKEN = plan_of(Steer(random_direction(1), 1, scale=1e38))
"""Infinite in float32, so that the logits are NaN from the first token of the response on."""


@pytest.mark.parametrize(
    "sampling", [GREEDY, SamplingParams(), SamplingParams(top_p=0.9), SamplingParams(top_k=5, seed=1)], ids=repr
)
def test_an_output_that_is_not_finite_fails_its_own_request_only(sampling: SamplingParams) -> None:
    engine = engine_of(loaded(), max_batch_tokens=16)
    outputs = run(
        engine,
        [
            GenerationRequest("good", prompt_of(9), 12, GREEDY),
            GenerationRequest("bad", prompt_of(7), 12, sampling, BROKEN, num_logprobs=3),
            GenerationRequest("later", prompt_of(9), 12, GREEDY),
        ],
    )
    assert [event.finish_reason for event in outputs["bad"]] == [FinishReason.ERROR]
    expected, _ = greedy(build("llama"), prompt_of(9), 12)
    assert tokens_of(outputs["good"]) == tokens_of(outputs["later"]) == expected
    engine.close()


def test_scores_of_an_output_that_is_not_finite_are_an_error() -> None:
    engine = engine_of(loaded())
    scores = engine.score(prompt_of(6), [(1,), (2, 3)], plan=BROKEN)
    spec = CaptureSpec((0,))
    captured = engine.capture(prompt_of(6), spec)
    while engine.step():
        pass
    with pytest.raises(Unavailable, match="not finite"):
        scores.result(0)
    assert captured.result(0)["residual", 0].isfinite().all()
    assert_nothing_held(engine)
    engine.close()


@pytest.mark.parametrize("temperature", [1e-6, 1e-308])
def test_a_temperature_near_zero_is_greedy(temperature: float) -> None:
    engine = engine_of(loaded())
    sampling = SamplingParams(temperature=temperature, top_p=0.9)
    tokens = tokens_of(run(engine, [GenerationRequest("x", prompt_of(9), 8, sampling)])["x"])
    assert tokens == greedy(build("llama"), prompt_of(9), 8)[0]
    engine.close()


@pytest.mark.parametrize("operation", ["ablate", "clamp"])
@pytest.mark.parametrize("length", [1e-25, 1e18])
def test_a_direction_of_any_length_has_its_unit_direction(length: float, operation: str) -> None:
    """The squares of such lengths are 0 or infinite in float32."""
    direction = random_direction(4)
    steers = [
        Steer(direction, 1, scale=1.0 if operation == "ablate" else 3.0, operation=operation),
        Steer(direction * length, 1, scale=1.0 if operation == "ablate" else 3.0 / length, operation=operation),
    ]
    assert torch.isfinite(direction * length).all()
    engine = engine_of(loaded())
    answers = [
        run(engine, [GenerationRequest("x", prompt_of(9), 8, GREEDY, plan_of(steer), num_logprobs=0)])["x"]
        for steer in steers
    ]
    assert tokens_of(answers[0]) == tokens_of(answers[1])
    for one, other in zip(*answers, strict=True):
        assert one.logprobs is not None
        assert other.logprobs is not None
        assert one.logprobs.logprob == pytest.approx(other.logprobs.logprob, abs=1e-4)
    engine.close()
