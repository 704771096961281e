"""Probes equal a plain hook that reads, at every site, before and after steering, and change nothing."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from server.engine.errors import InvalidWork
from server.engine.protocol import Engine
from server.engine.request import EngineRequest, Force, Generate
from tests.families import VOCABULARY, build
from tests.reference import Steer, scores
from tests.server.engine.contract.engines import MODEL, answers_of
from tests.server.engine.driving import GREEDY, plan_of, probe_of, prompt_of, random_direction, tokens_of
from vectors.vocabulary import ACTIVATIONS, POSITIONS, SITES

PROMPT = prompt_of(11)
NUM_TOKENS = 5
STEERS = (
    Steer(random_direction(1), 1, scale=0.6, positions="all"),
    Steer(random_direction(2), 1, operation="clamp", scale=0.4),
    Steer(random_direction(3), 0, "mlp", operation="ablate", positions="prompt"),
)


def probes_of(steer: Steer) -> list[Steer]:
    """Probes at every site and block, of every kind, and of what the steering writes."""
    read: dict[str, Any] = {"read": random_direction(9, 0.3), "bias": 0.1}
    every = [
        Steer(random_direction(number), layer, site, activation=activation, **(read if number % 2 else {}))
        for number, (site, layer, activation) in enumerate(
            zip(SITES * 3, (0, 1, 2) * 4, itertools.cycle(ACTIVATIONS), strict=False)
        )
    ]
    return [steer, *every]


@pytest.mark.parametrize("is_before", [False, True])
@pytest.mark.parametrize("positions", POSITIONS)
def test_each_score_equals_a_plain_hook(engine: Engine, positions: str, is_before: bool) -> None:
    """Of steered requests and of one that is not, side by side; a token's score is of the position that chose it."""
    model = build(MODEL)
    plain = Generate(NUM_TOKENS, GREEDY, num_logprobs=VOCABULARY)
    wanted = [
        (number, steers, [Steer(**{**vars(one), "positions": positions}) for one in probes_of(STEERS[1])])
        for number, steers in enumerate([(), STEERS[:1], STEERS])
    ]
    requests = [
        EngineRequest(
            str(number), PROMPT, plain, plan_of(*steers, probes=[probe_of(one, is_before=is_before) for one in probes])
        )
        for number, steers, probes in wanted
    ]
    answers = answers_of(engine, requests)
    for number, steers, probes in wanted:
        events = answers[str(number)]
        tokens = (*PROMPT, *tokens_of(events))
        for place, probe in enumerate(probes):
            expected = scores(model, tokens, probe, steers, len(PROMPT), before=is_before)
            told = [event.readings for event in events]
            assert all(each is not None for each in told)
            found = [each.scores[place] for each in told if each is not None]
            if positions == "prompt":
                assert found == [None] * NUM_TOKENS
            else:
                assert found == pytest.approx(expected[len(PROMPT) - 1 : -1], abs=1e-4)
            assert told[0] is not None
            prompt = None if told[0].prompt is None else told[0].prompt[place]
            if positions == "response":
                assert prompt is None
            else:
                assert prompt == pytest.approx(expected[: len(PROMPT)], abs=1e-4)
            assert all(each is not None and each.prompt is None for each in told[1:])
    clamped = answers["2"][0].readings
    if positions == "all" and not is_before:
        assert clamped is not None
        assert clamped.scores[0] == pytest.approx(0.4, abs=1e-5)  # after `clamp` at scale s it reads s


def test_reading_changes_nothing(engine: Engine) -> None:
    work = Generate(NUM_TOKENS, GREEDY, num_logprobs=VOCABULARY)
    every = [probe_of(Steer(**{**vars(one), "positions": "all"})) for one in probes_of(STEERS[1])]
    for steers in ((), STEERS):
        plain, read = answers_of(
            engine,
            [
                EngineRequest(f"plain-{len(steers)}", PROMPT, work, plan_of(*steers)),
                EngineRequest(f"read-{len(steers)}", PROMPT, work, plan_of(*steers, probes=every)),
            ],
        ).values()
        assert tokens_of(plain) == tokens_of(read)
        for one, other in zip(plain, read, strict=True):
            assert one.logprobs is not None
            assert other.logprobs is not None
            assert one.logprobs.logprob == pytest.approx(other.logprobs.logprob, abs=1e-5)


def test_a_prompt_is_read_where_nothing_is_generated(engine: Engine) -> None:
    plan = plan_of(probes=[probe_of(Steer(random_direction(1), 1, positions="all"))])
    (events,) = answers_of(engine, [EngineRequest("x", PROMPT, Generate(0), plan)]).values()
    expected = scores(build(MODEL), PROMPT, Steer(random_direction(1), 1))
    assert events[-1].readings is not None
    assert events[-1].readings.scores == ()
    assert events[-1].readings.prompt is not None
    assert events[-1].readings.prompt[0] == pytest.approx(expected, abs=1e-4)


def test_only_generation_is_read(engine: Engine) -> None:
    plan = plan_of(probes=[probe_of(Steer(random_direction(1), 1))])
    with pytest.raises(InvalidWork, match="probes"):
        engine.submit(EngineRequest("x", PROMPT, Force(), plan), lambda output: None)
