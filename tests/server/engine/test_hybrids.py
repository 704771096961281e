"""Models with recurrent layers: every kind of work is exact, and the prefix cache goes by snapshots of their states."""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Iterator, Sequence

import pytest
import torch

from server.engine.model import LoadedModel, prepare_model
from server.engine.request import Branch, Capture, EngineRequest, FinishReason, Force, Generate, Score, TokenOutput
from server.steering.plan import UNSTEERED
from tests.families import build
from tests.reference import Steer
from tests.server.engine.contract.engines import answers_of
from tests.server.engine.contract.naive import NaiveEngine
from tests.server.engine.driving import (
    GREEDY,
    alone,
    assert_nothing_held,
    engine_of,
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

PAGE = 4
FAMILIES = ("qwen3_next", "lfm2", "jamba")


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> LoadedModel:
    return loaded(request.param)


def work_of_every_kind() -> Iterator[EngineRequest]:
    plans = [UNSTEERED, plan_of(Steer(random_direction(1), 0, "attention", positions="all"))]
    plans += [
        plan_of(Steer(random_direction(2), 2, "residual"), Steer(random_direction(3), 1, "mlp", operation="ablate"))
    ]
    everywhere: tuple[int, ...] = tuple(range(0, 23, 2))
    for number, plan in enumerate(plans):
        prompt = prompt_of(23, number)
        yield EngineRequest(f"generate{number}", prompt, Generate(9, GREEDY, num_logprobs=2), plan)
        yield EngineRequest(f"force{number}", prompt, Force(prompt_of(7, number), num_logprobs=2), plan)
        yield EngineRequest(f"score{number}", prompt, Score(prompt_of(3, number), (4, 8)), plan)
        yield EngineRequest(f"capture{number}", prompt, Capture((0, 1, 2), ("residual", "attention"), everywhere), plan)
    branches = tuple(plan_of(Steer(random_direction(seed), seed % 3)) for seed in range(4))
    yield EngineRequest("branch", prompt_of(23, 0), Branch(branches, (1, 2, 3)))
    yield EngineRequest("branch one token", prompt_of(1), Branch(branches, (1, 2, 3)))


def assert_alike(found: Sequence[TokenOutput], expected: Sequence[TokenOutput]) -> None:
    assert tokens_of(list(found)) == tokens_of(list(expected))
    for one, other in zip(found, expected, strict=True):
        assert one.error is None
        for name in ("logprobs", "known_logprobs", "scores", "branch_logits", "activations"):
            torch.testing.assert_close(
                numbers_of(getattr(one, name)), numbers_of(getattr(other, name)), atol=2e-4, rtol=1e-3, msg=name
            )


def numbers_of(value: object) -> object:
    """A result as what `assert_close` compares: numbers, tensors, and lists and dicts of them."""
    if isinstance(value, tuple):
        return [numbers_of(part) for part in value]
    if isinstance(value, torch.Tensor | float | int | dict):
        return value
    return -1.0 if value is None else float(value.logprob)  # type: ignore[attr-defined]


@functools.cache
def naive_answers(family: str) -> dict[str, list[TokenOutput]]:
    """What the naive engine answers to work of every kind; found once for all tests."""
    with contextlib.closing(NaiveEngine(build(family), loaded(family).info)) as naive:
        return answers_of(naive, list(work_of_every_kind()))


@pytest.mark.parametrize("changes", [{}, {"max_batch_tokens": 5, "num_pages": 24}, {"prefix_cache": False}])
def test_every_kind_of_work_equals_the_naive_engine(model: LoadedModel, changes: dict[str, int]) -> None:
    requests = list(work_of_every_kind())
    expected = naive_answers(model.info.model_id)
    engine = engine_of(model, **changes)
    for _ in range(2):
        for name, events in run(engine, requests).items():
            assert_alike(events, expected[name])
    engine.close()


def test_a_prompt_said_again_starts_from_the_last_page_that_leaves_two_tokens(model: LoadedModel) -> None:
    engine = engine_of(model, max_batch_tokens=9)
    for length in (3, 5, 6, 16, 17, 18, 30):
        request = EngineRequest("x", prompt_of(length, 7), Generate(4, GREEDY))
        first, second = (run(engine, [request])["x"] for _ in range(2))
        assert first[-1].num_cached_tokens == 0
        assert second[-1].num_cached_tokens == (length - 2) // PAGE * PAGE
        assert tokens_of(first) == tokens_of(second)
    engine.close()


def test_the_next_turn_starts_within_the_answer_before_it(model: LoadedModel) -> None:
    engine = engine_of(model)
    prompt = prompt_of(13, 1)
    answer = tokens_of(run(engine, [EngineRequest("x", prompt, Generate(12, GREEDY))])["x"])
    run(engine, [EngineRequest("z", prompt_of(9, 5), Generate(2, GREEDY))])  # its state overwrites the one of "x"
    turn = EngineRequest("y", (*prompt, *answer, *prompt_of(5, 2)), Generate(6, GREEDY))
    events = run(engine, [turn])["y"]
    assert events[-1].num_cached_tokens == 24  # of 13 + 12 tokens, the last of which was never computed
    assert tokens_of(events) == alone(model, [turn])["y"]
    engine.close()


def test_prompts_that_begin_alike_share_their_beginning_even_when_they_come_together(model: LoadedModel) -> None:
    common = prompt_of(22, 3)
    requests = [
        EngineRequest(str(number), (*common, *prompt_of(9 + number, number)), Generate(5, GREEDY))
        for number in range(5)
    ]
    expected = alone(model, requests)
    for max_batch_tokens in (7, 16, 400):
        engine = engine_of(model, max_batch_tokens=max_batch_tokens)
        outputs = run(engine, requests)
        assert {name: tokens_of(events) for name, events in outputs.items()} == expected
        assert [events[-1].num_cached_tokens for events in outputs.values()] == [0, 20, 20, 20, 20]
        engine.close()


def test_the_place_where_a_later_prompt_differs_is_kept_for_the_next(model: LoadedModel) -> None:
    common = prompt_of(22, 3)
    engine = engine_of(model)
    cached = []
    for number in range(3):
        request = EngineRequest("x", (*common, *prompt_of(9, number)), Generate(2, GREEDY))
        cached.append(run(engine, [request])["x"][-1].num_cached_tokens)
    assert cached == [0, 0, 20]
    engine.close()


def test_states_are_never_shared_across_steerings(model: LoadedModel) -> None:
    prompt = prompt_of(18, 4)
    plan = plan_of(Steer(random_direction(1), 0, positions="all"))
    requests = [EngineRequest("plain", prompt, Generate(6, GREEDY))]
    requests += [EngineRequest("steered", prompt, Generate(6, GREEDY), plan)]
    expected = alone(model, requests)
    assert expected["plain"] != expected["steered"]
    engine = engine_of(model)
    for request in (*requests, *requests):
        assert tokens_of(run(engine, [request])[request.request_id]) == expected[request.request_id]
    engine.close()


@pytest.mark.parametrize("num_snapshots", [0, 1, 3])
def test_few_snapshots_change_nothing(num_snapshots: int) -> None:
    model = loaded("qwen3_next")
    requests = mixed_requests(model)
    expected = mixed_alone("qwen3_next")
    engine = engine_of(model, num_snapshots=num_snapshots, num_pages=16, max_batch_tokens=11)
    for _ in range(3):
        outputs = run(engine, requests)
        assert {name: tokens_of(events) for name, events in outputs.items()} == expected
    assert num_preemptions(engine) > 0
    assert (engine.stats().total_cached_tokens > 0) is (num_snapshots > 1)
    engine.close()


def test_aborts_at_any_time_give_the_states_back() -> None:
    model = loaded("lfm2")
    chance = random.Random(0)
    engine = engine_of(model, max_batch_tokens=9, num_pages=32)
    requests = mixed_requests(model)
    expected = mixed_alone("lfm2")

    def abort_one(number: int) -> None:
        engine.abort(str(chance.randrange(20)))

    for _ in range(3):
        outputs = run(engine, requests, abort_one)
        reasons = {events[-1].finish_reason for events in outputs.values()}
        assert FinishReason.ABORT in reasons
        assert FinishReason.ERROR not in reasons
        for name, events in outputs.items():
            assert tokens_of(events) == expected[name][: len(tokens_of(events))]
    assert_nothing_held(engine)
    engine.close()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs_and_repeats_itself(dtype: torch.dtype) -> None:
    model = prepare_model(build("qwen3_next").to(dtype))  # type: ignore[arg-type]
    engine = engine_of(model, prefix_cache=False)
    first, second = (run(engine, mixed_requests(model)) for _ in range(2))
    for name, events in first.items():
        assert events[-1].error is None
        assert tokens_of(events) == tokens_of(second[name])
    engine.close()
