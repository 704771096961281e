"""Invariants 2 and 3: steering equals a plain forward hook on the plain model, and does nothing else.

The reference (`tests/reference.py`) writes the semantics out again: full passes, no KV cache, token by token.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import pytest
import torch

from server.engine.engine import BatchingEngine
from server.engine.request import GenerationRequest
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

SITES = ("residual", "attention", "mlp", "post_attention_norm")
NUM_TOKENS = 6


def check(engine: BatchingEngine, family: str, cases: Mapping[str, tuple[Steer, ...]], length: int = 11) -> None:
    """All cases in one batch: each equals its own slow reference in tokens and log-probabilities."""
    model = build(family)
    prompt = prompt_of(length)
    _, unsteered = greedy(model, prompt, NUM_TOKENS)
    outputs = run(
        engine,
        [
            GenerationRequest(name, prompt, NUM_TOKENS, GREEDY, plan_of(*steers), num_logprobs=VOCABULARY)
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


@pytest.mark.parametrize("operation", ["add", "ablate", "clamp"])
@pytest.mark.parametrize("site", SITES)
def test_each_operation_site_and_position_equals_a_plain_hook(site: str, operation: str) -> None:
    cases = {
        f"{positions}-{layer}-{preserve}": (
            Steer(random_direction(layer), layer, site, 1.5, positions, operation, preserve),
        )
        for positions, layer, preserve in itertools.product(("prompt", "response", "all"), (0, 2), (False, True))
    }
    engine = engine_of(loaded())
    check(engine, "llama", cases)
    engine.close()


def test_several_vectors_equal_a_plain_hook() -> None:
    d = [random_direction(seed) for seed in range(8)]
    cases = {
        "two adds at one place": (Steer(d[0], 1), Steer(d[1], 1, scale=-0.5)),
        "adds at two layers and sites": (Steer(d[0], 0, "mlp"), Steer(d[1], 2, "attention", 2.0)),
        "scopes that overlap": (
            Steer(d[0], 1, positions="prompt"),
            Steer(d[1], 1),
            Steer(d[2], 1, positions="all"),
        ),
        "the same twice counts twice": (Steer(d[3], 1), Steer(d[3], 1)),
        "ablate before clamp": (
            Steer(d[0], 1, operation="ablate"),
            Steer(d[1], 1, "residual", 0.7, operation="clamp"),
        ),
        "clamp before ablate": (
            Steer(d[1], 1, "residual", 0.7, operation="clamp"),
            Steer(d[0], 1, operation="ablate"),
        ),
        "adds come first wherever listed": (Steer(d[4], 1, operation="ablate"), Steer(d[5], 1)),
        "one asks to preserve the norm": (
            Steer(d[4], 1, preserve_norm=True),
            Steer(d[5], 1, operation="ablate"),
        ),
        "everything": (
            Steer(d[0], 0, "residual", 1.0, "all"),
            Steer(d[1], 0, "attention", -1.0, "prompt", "ablate"),
            Steer(d[2], 1, "mlp", 0.4, "response", "clamp", True),
            Steer(d[3], 1, "mlp", 2.0, "all"),
            Steer(d[4], 2, "post_attention_norm", 1.2, "response", "add", True),
        ),
    }
    for changes in ({}, {"max_batch_tokens": 7}):
        engine = engine_of(loaded(), **changes)
        check(engine, "llama", cases)
        engine.close()


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
        Steer(random_direction(1), 1, scale=0.0, positions="all"),
        Steer(random_direction(2), 0, "mlp", 0.0, "all", "ablate", True),
    )
    assert not zero.is_steered
    engine = engine_of(model, prefix_cache=False)  # so that both are computed in the same chunks
    answers = [
        [event.logprobs for event in run(engine, [request])["x"]]
        for request in (
            GenerationRequest("x", prompt, 8, GREEDY, UNSTEERED, num_logprobs=VOCABULARY),
            GenerationRequest("x", prompt, 8, GREEDY, zero, num_logprobs=VOCABULARY),
        )
    ]
    assert answers[0] == answers[1]
    engine.close()


def test_clamp_at_scale_zero_removes_the_component() -> None:
    engine = engine_of(loaded())
    check(
        engine,
        "llama",
        {"clamp": (Steer(random_direction(1), 1, scale=0.0, positions="all", operation="clamp"),)},
    )
    engine.close()


def test_a_neighbour_changes_nothing() -> None:
    model = loaded()
    plans = [UNSTEERED] + [
        plan_of(
            Steer(
                random_direction(seed),
                seed % 3,
                SITES[seed % 4],
                1.0 + seed / 10,
                ("response", "all")[seed % 2],
            )
        )
        for seed in range(31)
    ]
    requests = [
        GenerationRequest(str(index), prompt_of(3 + index), 10, GREEDY, plan) for index, plan in enumerate(plans)
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
        [GenerationRequest(str(index), prompt_of(5), 4, GREEDY, same) for index in range(10)],
        after_step=lambda number: seen.append(engine.stats().num_rows_in_use),
    )
    assert max(seen) == 1  # the boundary's row is the response's
    many = [
        plan_of(Steer(random_direction(seed), seed % 3, operation=("add", "clamp")[seed % 2])) for seed in range(30)
    ]
    run(
        engine,
        [GenerationRequest(str(index), prompt_of(5), 4, GREEDY, plan) for index, plan in enumerate(many)],
        after_step=lambda number: seen.append(engine.stats().num_rows_in_use),
    )
    assert max(seen) == 30
    engine.close()


def fingerprints(plan: SteeringPlan, num_prompt: int) -> list[bytes]:
    return [plan.fingerprint_of_span(start, start + 4, num_prompt) for start in range(0, 16, 4)]


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
