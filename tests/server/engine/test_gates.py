"""Gated entries equal a plain hook that knows the gate, whatever else happens to the request."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from server.engine.engine import BatchingEngine
from server.engine.errors import InvalidWork
from server.engine.request import Branch, EngineRequest, Force, Generate, Score, TokenOutput
from tests.families import VOCABULARY, plain_model
from tests.reference import Gate, Steer, followed, greedy, opened, scores
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
from vectors.vocabulary import LATCHES, OPERATIONS, POSITIONS, SITES

NUM_TOKENS = 6
PROMPT = prompt_of(11)
WORK = Generate(NUM_TOKENS, GREEDY, num_logprobs=VOCABULARY)


@functools.cache
def threshold(site: str, layer: int) -> float:
    """In the widest gap of what the probe at a place reads: of some tokens more, of others less, of none as much."""
    tokens = (*PROMPT, *greedy(plain_model("llama"), PROMPT, NUM_TOKENS)[0])
    found = sorted(scores(plain_model("llama"), tokens, probe(site, layer)))
    middle = found[len(found) // 4 : -len(found) // 4]
    low, high = max(itertools.pairwise(middle), key=lambda pair: pair[1] - pair[0])
    return (low + high) / 2


def probe(site: str, layer: int) -> Steer:
    """The probe of every gate."""
    return Steer(random_direction(40), layer, site)


def gated(number: int, *, positions: str = "all", **changes: object) -> Steer:
    """An entry at a later place, whose gate is open for some tokens."""
    gate = Gate(probe("mlp", 0), threshold("mlp", 0), is_above=number % 2 == 0)
    entry = {"scale": 1.2, "low": 0.5, "high": 0.8, "gate": gate} | changes
    return Steer(random_direction(number), positions=positions, **{"layer": 1, "site": "mlp"} | entry)  # type: ignore[arg-type]


@functools.cache
def expected(steers: tuple[Steer, ...], response: tuple[int, ...]) -> Tensor:
    """The log-probabilities by which the response is chosen."""
    return followed(plain_model("llama"), PROMPT, response, steers)


def check(events: list[TokenOutput], steers: tuple[Steer, ...]) -> None:
    """Tokens, log-probabilities and counts equal the slow reference."""
    tokens = tokens_of(events)
    assert len(tokens) == NUM_TOKENS
    rows = expected(steers, tuple(tokens))
    assert tokens == rows.argmax(-1).tolist()
    for event, row in zip(events, rows, strict=True):
        assert event.logprobs is not None
        order, values = zip(*event.logprobs.top, strict=True)
        torch.testing.assert_close(torch.tensor(values), row[list(order)], atol=1e-4, rtol=0)
    told = events[-1].readings
    assert told is not None
    whole = (*PROMPT, *tokens[:-1])
    for steer, count in zip([steer for steer in steers if steer.gate is not None], told.gates, strict=True):
        assert steer.gate is not None
        at_place = (steer.gate.probe.site, steer.gate.probe.layer) == (steer.site, steer.layer)
        read = scores(plain_model("llama"), whole, steer.gate.probe, steers, len(PROMPT), before=at_place)
        scope = [
            (steer.positions != "response" and place < len(PROMPT))
            or (steer.positions != "prompt" and place >= len(PROMPT) - 1)
            for place in range(len(whole))
        ]
        found = opened(steer.gate, read, scope)
        assert count == (sum(value > 0.5 for value in found), sum(scope))


def answers(engine: BatchingEngine, cases: Mapping[str, tuple[Steer, ...]]) -> dict[str, list[TokenOutput]]:
    return run(engine, [EngineRequest(name, PROMPT, WORK, plan_of(*steers)) for name, steers in cases.items()])


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("positions", POSITIONS)
def test_a_gate_lets_through_what_its_probe_says(positions: str, operation: str) -> None:
    """Hard and soft, above and below, latched or not, read before the entry's place and at it; all in one batch."""
    cases: dict[str, tuple[Steer, ...]] = {}
    for number, (latch, sharpness) in enumerate(itertools.product(LATCHES, (None, 4.0))):
        site = SITES[number]
        steer = gated(number, positions=positions, operation=operation, site=site, layer=2, preserve_norm=number > 1)
        assert steer.gate is not None
        gate = Gate(steer.gate.probe, steer.gate.threshold, steer.gate.is_above, sharpness, latch)
        cases[f"{latch} {sharpness}"] = (Steer(**{**vars(steer), "gate": gate}),)
    at_place = Gate(probe("residual", 1), threshold("residual", 1))
    cases["at its place"] = (
        Steer(random_direction(1), 1, positions="all", scale=0.5),
        Steer(random_direction(2), 1, positions=positions, operation=operation, low=0.5, high=0.8, gate=at_place),
    )
    engine = engine_of(loaded(), max_batch_tokens=13)
    for name, events in answers(engine, cases).items():
        check(events, cases[name])
    engine.close()


def test_entries_meet_in_the_order_listed() -> None:
    """A gated shift belongs to the shifts, and a closed gate keeps its entry's norm out of it."""
    cases = {
        "shifts first": (Steer(random_direction(1), 1, "mlp", operation="ablate"), gated(2), gated(3)),
        "in order": (gated(2, operation="clamp"), Steer(random_direction(1), 1, "mlp", 0.4, operation="clamp")),
        "norms": (gated(2, preserve_norm=True), Steer(random_direction(1), 1, "mlp", 0.7)),
        "two norms": (gated(2, preserve_norm=True), gated(3, operation="ablate", preserve_norm=True)),
        "a gate after a steered place": (Steer(random_direction(1), 0, "mlp", 1.0, "all"), gated(2)),
        "some response": (gated(4, positions="response"), gated(5, positions="prompt")),
    }
    engine = engine_of(loaded())
    for name, events in answers(engine, cases).items():
        check(events, cases[name])
    engine.close()


def test_a_cached_prompt_and_a_preemption_change_nothing() -> None:
    engine = engine_of(loaded(), num_pages=24, max_batch_tokens=24)
    cases = {
        str(number): (
            gated(
                number,
                positions=POSITIONS[number % 3],
                gate=Gate(probe("mlp", 0), threshold("mlp", 0), latch=LATCHES[number % 2]),
            ),
        )
        for number in range(12)
    }
    for _ in range(2):
        for name, events in answers(engine, cases).items():
            check(events, cases[name])
    assert num_preemptions(engine) > 0
    engine.close()


def test_the_cache_tells_gates_apart() -> None:
    """KV computed under one gate is never read under another; a gate of the response shares the prompt's pages."""
    engine = engine_of(loaded(), prefix_cache=True)
    open_always = Steer(random_direction(2), 1, "mlp", 1.2, "all")
    for steers in ((open_always,), (gated(2),), (gated(3),), (gated(2, positions="response"),), (open_always,)):
        (events,) = answers(engine, {"x": steers}).values()
        if steers[0].gate is not None:
            check(events, steers)
        else:
            assert tokens_of(events) == greedy(plain_model("llama"), PROMPT, NUM_TOKENS, steers)[0]
    assert events[-1].num_cached_tokens == 8
    engine.close()


def test_scores_of_known_text_are_gated_too_and_branches_are_refused() -> None:
    engine = engine_of(loaded())
    steers = (gated(2),)
    tokens, rows = greedy(plain_model("llama"), PROMPT, NUM_TOKENS, steers)
    plan = plan_of(*steers)
    (scored,) = run(engine, [EngineRequest("x", PROMPT, Score(tuple(tokens[:2]), (tokens[2],)), plan)]).values()
    assert scored[-1].scores is not None
    wanted = [float(row[token]) for row, token in zip(rows, tokens[:3], strict=False)]
    assert scored[-1].scores[0] == pytest.approx(wanted, abs=1e-4)
    (forced,) = run(engine, [EngineRequest("x", PROMPT, Force(tuple(tokens), len(PROMPT)), plan)]).values()
    assert forced[-1].known_logprobs is not None
    found = [known.logprob for known in forced[-1].known_logprobs if known is not None]
    assert found[:3] == pytest.approx(wanted, abs=1e-4)
    with pytest.raises(InvalidWork, match="gates"):
        engine.submit(EngineRequest("x", PROMPT, Branch((plan,), (1,)), plan), lambda output: None)
    engine.close()


def test_probes_and_gates_of_32_requests_do_not_mix() -> None:
    engine = engine_of(loaded())
    cases = {
        str(number): (
            gated(number, operation=OPERATIONS[number % len(OPERATIONS)], site=SITES[number % 4], layer=1 + number % 2),
        )
        for number in range(32)
    }
    read = {name: Steer(random_direction(60 + int(name)), int(name) % 3, SITES[int(name) % 4]) for name in cases}
    found = run(
        engine,
        [
            EngineRequest(name, PROMPT, WORK, plan_of(*steers, probes=[probe_of(read[name])] * (int(name) % 3)))
            for name, steers in cases.items()
        ],
    )
    for name, steers in cases.items():
        check(found[name], steers)
        wanted = scores(plain_model("llama"), (*PROMPT, *tokens_of(found[name])), read[name], steers, len(PROMPT))
        for event, score in zip(found[name], wanted[len(PROMPT) - 1 :], strict=False):
            assert event.readings is not None
            assert event.readings.scores == pytest.approx([score] * (int(name) % 3), abs=1e-4)
    engine.close()
