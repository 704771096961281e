"""Steering that leaves parts of the response alone: equal to a plain hook that is told the part of each position."""

from __future__ import annotations

from contextlib import closing

import pytest

from server.engine.model import LoadedModel
from server.engine.request import EngineRequest, Generate
from tests.reference import Steer
from tests.server.engine.driving import (
    GREEDY,
    engine_of,
    loaded,
    num_preemptions,
    plan_of,
    prompt_of,
    random_direction,
    run,
    tokens_of,
)
from tests.server.engine.parts import STEERINGS, Parts
from vectors.vocabulary import Part

NUM_TOKENS = 24


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return loaded()


def test_parts_survive_preemption_and_do_not_reach_neighbours(model: LoadedModel) -> None:
    requests = [
        EngineRequest(
            f"{index}",
            prompt_of(6 + index),
            Generate(NUM_TOKENS, GREEDY, parts=Parts() if index % 2 == 0 else None),
            plan_of(*steers),
        )
        for index, steers in enumerate([*STEERINGS.values(), []])
    ]
    alone = {}
    for request in requests:
        with closing(engine_of(model)) as engine:
            alone[request.request_id] = tokens_of(run(engine, [request])[request.request_id])
    with closing(engine_of(model, num_pages=24)) as engine:
        together = run(engine, requests)
        assert num_preemptions(engine) > 0
    assert {name: tokens_of(events) for name, events in together.items()} == alone


def test_pages_of_an_answer_are_shared_with_a_later_prompt_only_where_nothing_steered_it(model: LoadedModel) -> None:
    """A call that was left alone is, for the cache, what the same text in a prompt is; a steered answer is not."""

    class Constant:
        def __init__(self, part: Part) -> None:
            self.part = part

        def start(self) -> Constant:
            return self

        def accept(self, token_id: int) -> None:
            pass

    prompt, plan = prompt_of(8), plan_of(Steer(random_direction(1), 1, parts=("content",)))
    for part, has_shared in (("tool_calls", True), ("content", False)):
        with closing(engine_of(model)) as engine:
            first = EngineRequest("first", prompt, Generate(12, GREEDY, parts=Constant(part)), plan)  # type: ignore[arg-type]
            answer = tokens_of(run(engine, [first])["first"])
            later = EngineRequest("later", (*prompt, *answer), Generate(1, GREEDY))
            cached = run(engine, [later])["later"][-1].num_cached_tokens
        assert (cached > len(prompt)) is has_shared
