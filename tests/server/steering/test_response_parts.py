"""Steering that leaves parts of the response alone: equal to a plain hook that is told the part of each position."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

import pytest

from server.engine.model import LoadedModel
from server.engine.request import GenerationRequest
from tests.families import build
from tests.reference import Steer, greedy
from tests.server.engine.driving import GREEDY, engine_of, loaded, plan_of, prompt_of, random_direction, run, tokens_of
from vectors.vocabulary import PARTS, Part

NUM_TOKENS = 24


def part_after(response: Sequence[int]) -> Part:
    """A part that changes with what was said: by the sum of all tokens."""
    return PARTS[sum(response) % len(PARTS)]


class _State:
    def __init__(self) -> None:
        self._response: list[int] = []

    @property
    def part(self) -> Part:
        return part_after(self._response)

    def accept(self, token_id: int) -> None:
        self._response.append(token_id)


class Parts:
    """A reader of parts for the engine that says what `part_after` says."""

    def start(self) -> _State:
        return _State()


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return loaded()


STEERINGS = {
    "answer only": [Steer(random_direction(1), 1, parts=("content",))],
    "calls only, everywhere in the prompt": [Steer(random_direction(2), 1, positions="all", parts=("tool_calls",))],
    "two vectors, two parts": [
        Steer(random_direction(3), 0, parts=("content", "structured")),
        Steer(random_direction(4), 2, "mlp", parts=("reasoning",), operation="ablate"),
    ],
    "prompt": [Steer(random_direction(5), 1, positions="prompt", parts=("tool_calls",))],
    "norm": [Steer(random_direction(6), 1, parts=("structured", "tool_calls"), preserve_norm=True)],
}


@pytest.mark.parametrize("name", STEERINGS)
def test_equals_a_plain_hook_that_knows_the_parts(model: LoadedModel, name: str) -> None:
    steers, prompt = STEERINGS[name], prompt_of(9)
    expected, logprobs = greedy(build("llama"), prompt, NUM_TOKENS, steers, part_after)
    request = GenerationRequest("a", prompt, NUM_TOKENS, GREEDY, plan_of(*steers), num_logprobs=0, parts=Parts())
    for changes in ({}, {"max_batch_tokens": 3}, {"prefix_cache": False}):
        with closing(engine_of(model, **changes)) as engine:
            events = run(engine, [request])["a"]
        assert tokens_of(events) == expected
        for event, row in zip(events, logprobs, strict=True):
            assert event.token_id is not None
            assert event.logprobs is not None
            assert event.logprobs.logprob == pytest.approx(float(row[event.token_id]), abs=1e-4)


def test_parts_survive_preemption_and_do_not_reach_neighbours(model: LoadedModel) -> None:
    requests = [
        GenerationRequest(
            f"{index}",
            prompt_of(6 + index),
            NUM_TOKENS,
            GREEDY,
            plan_of(*steers),
            parts=Parts() if index % 2 == 0 else None,
        )
        for index, steers in enumerate([*STEERINGS.values(), []])
    ]
    alone = {}
    for request in requests:
        with closing(engine_of(model)) as engine:
            alone[request.request_id] = tokens_of(run(engine, [request])[request.request_id])
    with closing(engine_of(model, num_pages=24)) as engine:
        together = run(engine, requests)
        assert engine.stats().total_preemptions > 0
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
            first = GenerationRequest("first", prompt, 12, GREEDY, plan, parts=Constant(part))  # type: ignore[arg-type]
            answer = tokens_of(run(engine, [first])["first"])
            later = GenerationRequest("later", (*prompt, *answer), 1, GREEDY)
            cached = run(engine, [later])["later"][-1].num_cached_tokens
        assert (cached > len(prompt)) is has_shared
