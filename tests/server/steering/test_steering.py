"""Invariants 2 and 3: steering equals a plain forward hook on the plain model, and does nothing else.

The reference (`tests/reference.py`) writes the semantics out again: full passes, no KV cache, token by token.
"""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from server.engine.engine import BatchingEngine
from server.engine.request import EngineRequest, Generate
from server.steering.plan import UNSTEERED, SteeringPlan
from tests.families import CONFIGS, VOCABULARY, build
from tests.reference import Steer, greedy
from tests.server.engine.driving import (
    GREEDY,
    engine_of,
    loaded,
    plan_of,
    prompt_of,
    random_direction,
    run,
    tokens_of,
)
from vectors.operations import RULES
from vectors.vocabulary import OPERATIONS, SITES

NUM_TOKENS = 6


def check(engine: BatchingEngine, family: str, cases: Mapping[str, tuple[Steer, ...]], length: int = 11) -> None:
    """All cases in one batch: each equals its own slow reference in tokens and log-probabilities."""
    model = build(family)
    prompt = prompt_of(length)
    _, unsteered = greedy(model, prompt, NUM_TOKENS)
    outputs = run(
        engine,
        [
            EngineRequest(name, prompt, Generate(NUM_TOKENS, GREEDY, num_logprobs=VOCABULARY), plan_of(*steers))
            for name, steers in cases.items()
        ],
    )
    num_changed = 0
    for name, steers in cases.items():
        expected, rows = greedy(model, prompt, NUM_TOKENS, steers)
        assert tokens_of(outputs[name]) == expected, name
        num_changed += bool((rows - unsteered).abs().max() > 0.05)
        for event, row in zip(outputs[name], rows, strict=True):
            assert event.logprobs is not None
            order, values = zip(*event.logprobs.top, strict=True)
            torch.testing.assert_close(torch.tensor(values), row[list(order)], atol=1e-4, rtol=0, msg=name)
    assert num_changed == len(cases), "a direction is too weak for the test to mean anything"


@pytest.mark.parametrize("family", CONFIGS)
def test_every_family_and_site_equals_a_plain_hook(family: str) -> None:
    model = loaded(family)
    cases = {
        site: (
            Steer(random_direction(3), 1, site, 1.3, "all"),
            Steer(random_direction(4), 2, site, operation="ablate"),
        )
        for site in model.info.sites
    }
    assert "residual" in cases
    assert "attention" in cases
    assert "mlp" in cases
    engine = engine_of(model)
    check(engine, family, cases, length=9)
    engine.close()


def test_scale_zero_is_exactly_unsteered() -> None:
    model = loaded()
    prompt = prompt_of(10)
    zero = plan_of(
        *(
            Steer(random_direction(number), number % 3, SITES[number % len(SITES)], 0.0, "all", operation, True)
            for number, operation in enumerate(OPERATIONS)
            if RULES[operation].does_nothing_at_zero
        )
    )
    assert not zero.is_steered
    engine = engine_of(model, prefix_cache=False)  # so that both are computed in the same chunks
    answers = [
        [event.logprobs for event in run(engine, [request])["x"]]
        for request in (
            EngineRequest("x", prompt, Generate(8, GREEDY, num_logprobs=VOCABULARY), UNSTEERED),
            EngineRequest("x", prompt, Generate(8, GREEDY, num_logprobs=VOCABULARY), zero),
        )
    ]
    assert answers[0] == answers[1]
    engine.close()


def test_what_acts_at_scale_zero_equals_a_plain_hook() -> None:
    cases: dict[str, tuple[Steer, ...]] = {
        operation: (Steer(random_direction(1), 1, scale=0.0, positions="all", operation=operation),)
        for operation in OPERATIONS
        if not RULES[operation].does_nothing_at_zero
    }
    engine = engine_of(loaded())
    check(engine, "llama", cases)
    engine.close()


def test_a_neighbour_changes_nothing() -> None:
    model = loaded()
    plans = [UNSTEERED] + [
        plan_of(
            Steer(
                random_direction(seed),
                seed % 3,
                SITES[seed % len(SITES)],
                1.0 + seed / 10,
                ("response", "all")[seed % 2],
            )
        )
        for seed in range(31)
    ]
    requests = [
        EngineRequest(str(index), prompt_of(3 + index), Generate(10, GREEDY), plan) for index, plan in enumerate(plans)
    ]
    engine = engine_of(model)
    together = run(engine, requests)
    alone = {request.request_id: run(engine, [request])[request.request_id] for request in requests}
    for request_id, events in together.items():
        assert tokens_of(events) == tokens_of(alone[request_id])
    engine.close()


def test_equal_plans_share_rows_and_the_bank_grows() -> None:
    engine = engine_of(loaded(), max_running=40)
    same = plan_of(Steer(random_direction(1), 1))
    seen: list[int] = []
    run(
        engine,
        [EngineRequest(str(index), prompt_of(5), Generate(4, GREEDY), same) for index in range(10)],
        after_step=lambda number: seen.append(engine.stats().num_rows_in_use or 0),
    )
    assert max(seen) == 1  # the boundary's row is the response's
    many = [
        plan_of(Steer(random_direction(seed), seed % 3, operation=OPERATIONS[seed % len(OPERATIONS)]))
        for seed in range(30)
    ]
    run(
        engine,
        [EngineRequest(str(index), prompt_of(5), Generate(4, GREEDY), plan) for index, plan in enumerate(many)],
        after_step=lambda number: seen.append(engine.stats().num_rows_in_use or 0),
    )
    assert max(seen) == 30
    engine.close()


def fingerprints(plan: SteeringPlan, num_prompt: int) -> list[bytes]:
    return [plan.zones(num_prompt).fingerprint_of_span(start, start + 4) for start in range(0, 16, 4)]


def test_fingerprints_differ_exactly_where_steering_does() -> None:
    response = plan_of(Steer(random_direction(1), 1))
    everywhere = plan_of(Steer(random_direction(1), 1, positions="all"))
    other = plan_of(Steer(random_direction(1), 1, scale=2.0, positions="all"))
    assert fingerprints(response, 10)[:2] == [
        b"",
        b"",
    ]  # a prompt steered only in its response is everybody's
    assert fingerprints(response, 10)[2] != fingerprints(response, 11)[2]  # where it begins matters
    assert fingerprints(everywhere, 10) == fingerprints(everywhere, 7)  # all the same everywhere
    assert all(a != b for a, b in zip(fingerprints(everywhere, 10), fingerprints(other, 10), strict=True))
