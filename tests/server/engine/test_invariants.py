"""Invariants 3, 4, 6: what must not change the tokens does not, and every exit gives everything back."""

from __future__ import annotations

import itertools
import random

import pytest

from server.engine.model import load_model
from server.engine.request import (
    EngineRequest,
    FinishReason,
    Generate,
    Priority,
    SamplingParams,
    TokenOutput,
)
from server.steering.plan import UNSTEERED, SteeringPlan
from tests.families import CONFIGS, plain_model
from tests.reference import Steer, greedy
from tests.server.engine.driving import (
    GREEDY,
    alone,
    assert_nothing_held,
    engine_of,
    fresh,
    loaded,
    mixed_alone,
    mixed_requests,
    num_preemptions,
    plan_of,
    prompt_of,
    random_direction,
    run,
    tokens_of,
)
from tests.shared_files import shared


@pytest.mark.parametrize("name", [*CONFIGS, "models/stories260K", "models/TinyStories-656K"])
def test_nothing_but_the_request_matters_on_every_model(name: str) -> None:
    """Chunks, batches, shared prefixes, preemption and repetition change no token, sampled ones included."""
    model = loaded(name) if name in CONFIGS else load_model(shared(name), device="cpu")
    requests = mixed_requests(model)
    expected = mixed_alone(name) if name in CONFIGS else alone(model, requests)
    few_pages = {"num_pages": 16, "max_batch_tokens": 32}
    if model.page_groups[0].num_tokens is not None:  # pages of windows alone, which are returned early
        few_pages = {"num_pages": 6, "max_batch_tokens": 8}
    for changes, num_rounds in (({"max_batch_tokens": 7}, 2), (few_pages, 1)):
        engine = engine_of(model, **changes)
        for _ in range(num_rounds):  # the second time every prompt is in the cache, where there is room for it
            outputs = run(engine, requests)
            assert {name: tokens_of(events) for name, events in outputs.items()} == expected, changes
        stats = engine.stats()
        assert stats.total_cached_tokens > 0 or changes is few_pages
        assert (num_preemptions(engine) > 0) is ("num_pages" in changes)
        engine.close()


@pytest.mark.parametrize("max_batch_tokens", [3, 4096])
@pytest.mark.parametrize("prefix_cache", [True, False])
def test_chunks_batches_and_shared_prefixes_change_nothing(max_batch_tokens: int, prefix_cache: bool) -> None:
    model = loaded()
    engine = engine_of(model, max_batch_tokens=max_batch_tokens, prefix_cache=prefix_cache)
    for _ in range(2):  # the second time every prompt is in the cache
        outputs = run(engine, mixed_requests(model))
        assert {name: tokens_of(events) for name, events in outputs.items()} == mixed_alone()
    assert (engine.stats().total_cached_tokens > 0) is prefix_cache
    engine.close()


def test_kv_under_one_plan_is_never_read_under_another() -> None:
    prompt = prompt_of(24)
    steered = plan_of(Steer(random_direction(1), 0, positions="all"))
    stronger = plan_of(Steer(random_direction(1), 0, scale=2.0, positions="all"))
    in_response = plan_of(Steer(random_direction(1), 0))
    engine = engine_of(loaded())

    def num_cached(plan: SteeringPlan) -> int:
        return run(engine, [EngineRequest("x", prompt, Generate(1, GREEDY), plan)])["x"][-1].num_cached_tokens

    assert num_cached(UNSTEERED) == 0
    assert num_cached(steered) == 0
    assert num_cached(stronger) == 0
    assert num_cached(steered) == 20  # the last page holds the last token, which must be computed
    assert num_cached(in_response) == 20  # a prompt steered only in its response is everybody's
    engine.close()


def test_a_steered_answer_in_a_later_prompt_is_read_anew() -> None:
    prompt = prompt_of(8)
    steered = plan_of(Steer(random_direction(1), 0))
    engine = engine_of(loaded())
    answer = tokens_of(run(engine, [EngineRequest("first", prompt, Generate(16, GREEDY), steered)])["first"])
    later = (*prompt, *answer, 5, 6)
    outputs = run(engine, [EngineRequest("later", later, Generate(8, GREEDY))])["later"]
    assert outputs[-1].num_cached_tokens == 4  # the page that ends before the boundary
    assert tokens_of(outputs) == greedy(plain_model("llama"), later, 8)[0]
    engine.close()


def test_generated_pages_are_reused_where_steering_agrees() -> None:
    prompt = prompt_of(8)
    everywhere = plan_of(Steer(random_direction(1), 0, positions="all"))
    for plan in (UNSTEERED, everywhere):
        engine = engine_of(loaded())
        answer = tokens_of(run(engine, [EngineRequest("first", prompt, Generate(16, GREEDY), plan)])["first"])
        later = (*prompt, *answer, 5, 6)
        outputs = run(engine, [EngineRequest("later", later, Generate(1, GREEDY), plan)])["later"]
        assert outputs[-1].num_cached_tokens == 20
        engine.close()


@pytest.mark.parametrize("seed", range(4))
def test_whatever_happens_everything_is_given_back(seed: int) -> None:
    """Random submits, aborts, stops and failures over a small pool; afterwards free = total."""
    choose = random.Random(seed)
    model = fresh()
    engine = engine_of(model, num_pages=20, max_batch_tokens=24, max_running=6)
    num_passes = itertools.count(1)

    def break_now_and_then(*_: object) -> None:
        if next(num_passes) % 60 < 2:  # the second time a request of that step is alone
            raise RuntimeError("a step that fails")

    model.module.model.layers[1].register_forward_hook(break_now_and_then)
    ended: dict[str, FinishReason] = {}
    live: set[str] = set()

    def receive(output: TokenOutput) -> None:
        assert output.request_id not in ended, "an event after the last one"
        if output.finish_reason is not None:
            ended[output.request_id] = output.finish_reason
            live.discard(output.request_id)

    for number in range(75):
        for _ in range(choose.randrange(3)):
            steer = Steer(random_direction(choose.randrange(9)), 1, positions=choose.choice(["all", "response"]))
            request = EngineRequest(
                f"{number}-{len(live)}-{len(ended)}",
                prompt_of(choose.randrange(1, 30)),
                Generate(
                    choose.randrange(1, 30),
                    SamplingParams(temperature=1.0, stop_token_ids=frozenset(range(choose.randrange(10)))),
                ),
                choose.choice([UNSTEERED, plan_of(steer)]),
                priority=choose.choice(list(Priority)),
            )
            live.add(request.request_id)
            engine.submit(request, receive)
        if live and choose.random() < 0.3:
            engine.abort(choose.choice(sorted(live)))
        engine.step()
    while engine.step():
        pass
    assert not live
    assert set(ended.values()) == set(FinishReason)
    assert_nothing_held(engine)
    engine.close()
