"""Steering equals a plain forward hook on the plain model, in every operation, site, position and part."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from server.engine.protocol import Engine
from server.engine.request import EngineRequest, Generate
from tests.families import VOCABULARY, plain_model
from tests.reference import Steer, followed, greedy
from tests.server.engine.contract.engines import MODEL, answers_of
from tests.server.engine.driving import GREEDY, plan_of, prompt_of, random_direction, tokens_of
from tests.server.engine.parts import STEERINGS, Parts, part_after
from vectors.vocabulary import ACTIVATIONS, OPERATIONS, POSITIONS, SITES

PROMPT = prompt_of(11)
NUM_TOKENS = 6

Cases = Mapping[str, tuple[Steer, ...]]


@functools.cache
def everywhere(site: str) -> Cases:
    """One vector at `site`: every operation, in all positions, on two layers, with and without keeping the norm."""
    return {
        f"{operation}-{positions}-{layer}-{preserve}": (
            Steer(random_direction(layer), layer, site, 1.5, positions, operation, preserve, low=0.5, high=0.8),
        )
        for operation, positions, layer, preserve in itertools.product(OPERATIONS, POSITIONS, (0, 2), (False, True))
    }


@functools.cache
def reading(site: str, *, has_several: bool) -> Cases:
    """Vectors that read along a direction of their own, or three at a layer, with half of the activations each."""
    one: dict[str, Any] = {"direction": random_direction(7), "read": random_direction(8, 0.3)}
    three: dict[str, Any] = {
        "direction": torch.stack([random_direction(seed) for seed in range(3)]),
        "read": torch.stack([random_direction(seed, 0.3) for seed in range(5, 8)]),
    }
    return {
        f"{operation}-{activation}-{layer}": (
            Steer(
                layer=layer, site=site, scale=1.3, positions="all", operation=operation, low=-0.5, high=0.2,
                activation=activation, bias=0.2, **(three if layer else one),
            ),
        )
        for operation in OPERATIONS
        if operation != "add"
        for number, activation in enumerate(ACTIVATIONS)
        for layer in [(number + len(site)) % 2]
        if bool(layer) is has_several
    }  # fmt: skip


@functools.cache
def several() -> Cases:
    """Vectors that meet."""
    d = [random_direction(seed) for seed in range(8)]
    return {
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
        "a clamp to zero removes the component": (Steer(d[6], 1, scale=0.0, positions="all", operation="clamp"),),
        "everything": (
            Steer(d[0], 0, "residual", 1.0, "all"),
            Steer(d[1], 0, "attention", -1.0, "prompt", "ablate"),
            Steer(d[2], 1, "mlp", 0.4, "response", "clamp", True),
            Steer(d[3], 1, "mlp", 2.0, "all"),
            Steer(d[4], 2, "post_attention_norm", 1.2, "response", "add", True),
        ),
    }


@functools.cache
def _unsteered() -> Tensor:
    return greedy(plain_model(MODEL), PROMPT, NUM_TOKENS)[1]


@functools.cache
def _expected(response: tuple[int, ...], steers: tuple[Steer, ...]) -> Tensor:
    return followed(plain_model(MODEL), PROMPT, response, steers)


def check(engine: Engine, cases: Cases) -> None:
    """All cases side by side: each equals its own slow reference in tokens and log-probabilities."""
    work = Generate(NUM_TOKENS, GREEDY, num_logprobs=VOCABULARY)
    answers = answers_of(engine, [EngineRequest(name, PROMPT, work, plan_of(*cases[name])) for name in cases])
    for name, steers in cases.items():
        tokens = tokens_of(answers[name])
        assert len(tokens) == NUM_TOKENS, name
        rows = _expected(tuple(tokens), steers)
        assert (rows - _unsteered()).abs().max() > 0.05, "a direction is too weak for the test to mean anything"
        assert tokens == rows.argmax(-1).tolist(), name
        found = torch.empty_like(rows)
        for event, row in zip(answers[name], found, strict=True):
            assert event.logprobs is not None
            order, values = zip(*event.logprobs.top, strict=True)
            row[list(order)] = torch.tensor(values)
        torch.testing.assert_close(found, rows, atol=1e-4, rtol=0, msg=name)


@pytest.mark.parametrize("site", SITES)
def test_each_operation_site_and_position_equals_a_plain_hook(engine: Engine, site: str) -> None:
    check(engine, everywhere(site))


@pytest.mark.parametrize("site", SITES)
def test_read_directions_and_activations_equal_a_plain_hook(engine: Engine, site: str) -> None:
    check(engine, reading(site, has_several=False))


@pytest.mark.parametrize("site", SITES)
def test_several_directions_at_a_layer_equal_a_plain_hook(engine: Engine, site: str) -> None:
    check(engine, reading(site, has_several=True))


def test_several_vectors_equal_a_plain_hook(engine: Engine) -> None:
    check(engine, several())


@functools.cache
def _expected_by_parts(response: tuple[int, ...], name: str) -> Tensor:
    return followed(plain_model(MODEL), PROMPT, response, STEERINGS[name], part_after)


def test_parts_equal_a_plain_hook_that_knows_them(engine: Engine) -> None:
    work = Generate(24, GREEDY, num_logprobs=0, parts=Parts())
    answers = answers_of(
        engine, [EngineRequest(name, PROMPT, work, plan_of(*steers)) for name, steers in STEERINGS.items()]
    )
    for name, events in answers.items():
        tokens = tokens_of(events)
        assert len(tokens) == 24, name
        logprobs = _expected_by_parts(tuple(tokens), name)
        assert tokens == logprobs.argmax(-1).tolist(), name
        for event, row in zip(events, logprobs, strict=True):
            assert event.token_id is not None
            assert event.logprobs is not None
            assert event.logprobs.logprob == pytest.approx(float(row[event.token_id]), abs=1e-4)
