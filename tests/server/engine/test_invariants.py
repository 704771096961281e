"""Invariants 3, 4, 6: what must not change the tokens does not, and every exit gives everything back."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from server.engine.engine import BatchingEngine
from server.engine.model import load_model
from server.engine.request import (
    CaptureSpec,
    FinishReason,
    GenerationRequest,
    Priority,
    SamplingParams,
    TokenOutput,
)
from server.errors import ContextLengthExceeded, InvalidRequest, Overloaded, Unavailable
from server.steering.plan import UNSTEERED, SteeringPlan
from tests.families import CONFIGS, build
from tests.reference import Steer, activations, greedy, steered_logits
from tests.server.engine.driving import (
    GREEDY,
    alone,
    assert_nothing_held,
    engine_of,
    loaded,
    mixed_requests,
    plan_of,
    prompt_of,
    random_direction,
    run,
    tokens_of,
)
from tests.shared_files import shared


@pytest.fixture(scope="module")
def expected() -> dict[str, list[int]]:
    model = loaded()
    return alone(model, mixed_requests(model))


@pytest.mark.parametrize("name", [*CONFIGS, "models/stories260K", "models/TinyStories-656K"])
def test_nothing_but_the_request_matters_on_every_model(name: str) -> None:
    """Chunks, batches, shared prefixes, preemption and repetition change no token, sampled ones included."""
    model = loaded(name) if name in CONFIGS else load_model(shared(name), device="cpu")
    requests = mixed_requests(model)
    expected = alone(model, requests)
    for changes in ({"max_batch_tokens": 7}, {"num_pages": 16, "max_batch_tokens": 32}):
        engine = engine_of(model, **changes)
        for _ in range(2):  # the second time every prompt is in the cache
            outputs = run(engine, requests)
            assert {name: tokens_of(events) for name, events in outputs.items()} == expected, changes
        stats = engine.stats()
        assert stats.total_cached_tokens > 0
        assert (stats.total_preemptions > 0) is ("num_pages" in changes)
        engine.close()


@pytest.mark.parametrize("max_batch_tokens", [3, 8, 37, 4096])
@pytest.mark.parametrize("prefix_cache", [True, False])
def test_chunks_batches_and_shared_prefixes_change_nothing(
    expected: dict[str, list[int]], max_batch_tokens: int, prefix_cache: bool
) -> None:
    model = loaded()
    engine = engine_of(model, max_batch_tokens=max_batch_tokens, prefix_cache=prefix_cache)
    for _ in range(2):  # the second time every prompt is in the cache
        outputs = run(engine, mixed_requests(model))
        assert {name: tokens_of(events) for name, events in outputs.items()} == expected
    assert (engine.stats().total_cached_tokens > 0) is prefix_cache
    engine.close()


def test_preemption_changes_nothing(expected: dict[str, list[int]]) -> None:
    model = loaded()
    engine = engine_of(model, num_pages=16, max_batch_tokens=32)
    outputs = run(engine, mixed_requests(model))
    assert {name: tokens_of(events) for name, events in outputs.items()} == expected
    assert engine.stats().total_preemptions > 0
    engine.close()


def test_kv_under_one_plan_is_never_read_under_another() -> None:
    prompt = prompt_of(24)
    steered = plan_of(Steer(random_direction(1), 0, positions="all"))
    stronger = plan_of(Steer(random_direction(1), 0, scale=2.0, positions="all"))
    in_response = plan_of(Steer(random_direction(1), 0))
    engine = engine_of(loaded())

    def num_cached(plan: SteeringPlan) -> int:
        return run(engine, [GenerationRequest("x", prompt, 1, GREEDY, plan)])["x"][-1].num_cached_tokens

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
    answer = tokens_of(run(engine, [GenerationRequest("first", prompt, 16, GREEDY, steered)])["first"])
    later = (*prompt, *answer, 5, 6)
    outputs = run(engine, [GenerationRequest("later", later, 8, GREEDY)])["later"]
    assert outputs[-1].num_cached_tokens == 4  # the page that ends before the boundary
    assert tokens_of(outputs) == greedy(build("llama"), later, 8)[0]
    engine.close()


def test_generated_pages_are_reused_where_steering_agrees() -> None:
    prompt = prompt_of(8)
    everywhere = plan_of(Steer(random_direction(1), 0, positions="all"))
    for plan in (UNSTEERED, everywhere):
        engine = engine_of(loaded())
        answer = tokens_of(run(engine, [GenerationRequest("first", prompt, 16, GREEDY, plan)])["first"])
        later = (*prompt, *answer, 5, 6)
        outputs = run(engine, [GenerationRequest("later", later, 1, GREEDY, plan)])["later"]
        assert outputs[-1].num_cached_tokens == 20
        engine.close()


@pytest.mark.parametrize("seed", range(6))
def test_whatever_happens_everything_is_given_back(seed: int) -> None:
    """Random submits, aborts, stops and failures over a small pool; afterwards free = total."""
    choose = random.Random(seed)
    model = loaded()
    engine = engine_of(model, num_pages=20, max_batch_tokens=24, max_running=6)
    num_passes = itertools.count(1)

    def break_now_and_then(*_: object) -> None:
        if next(num_passes) % 60 == 0:
            raise RuntimeError("a step that fails")

    model.module.model.layers[1].register_forward_hook(break_now_and_then)
    ended: dict[str, FinishReason] = {}
    live: set[str] = set()

    def receive(output: TokenOutput) -> None:
        assert output.request_id not in ended, "an event after the last one"
        if output.finish_reason is not None:
            ended[output.request_id] = output.finish_reason
            live.discard(output.request_id)

    for number in range(150):
        for _ in range(choose.randrange(3)):
            steer = Steer(random_direction(choose.randrange(9)), 1, positions=choose.choice(["all", "response"]))
            request = GenerationRequest(
                f"{number}-{len(live)}-{len(ended)}",
                prompt_of(choose.randrange(1, 30)),
                choose.randrange(1, 30),
                SamplingParams(temperature=1.0, stop_token_ids=frozenset(range(choose.randrange(10)))),
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


def test_a_step_that_raises_fails_its_requests_and_no_others() -> None:
    """Two running requests that share cached pages fail in mid-decode; the one that waited for a place does not."""
    model = loaded()
    engine = engine_of(model, max_running=2)
    run(engine, [GenerationRequest("warm", prompt_of(9), 1, GREEDY)])
    events: list[TokenOutput] = []
    for name in ("first", "second", "waiting"):
        engine.submit(GenerationRequest(name, prompt_of(9), 8, GREEDY), events.append)
    for _ in range(4):
        engine.step()
    broken = model.module.model.layers[1].register_forward_hook(lambda *_: 1 / 0)
    engine.step()
    broken.remove()
    while engine.step():
        pass
    last = {event.request_id: event for event in events if event.finish_reason is not None}
    assert {name: event.finish_reason for name, event in last.items()} == {
        "first": FinishReason.ERROR,
        "second": FinishReason.ERROR,
        "waiting": FinishReason.LENGTH,
    }
    assert last["first"].error == "the engine failed"
    survivor = tokens_of([event for event in events if event.request_id == "waiting"])
    assert survivor == greedy(build("llama"), prompt_of(9), 8)[0]
    assert_nothing_held(engine)
    engine.close()


def test_a_sink_that_raises_does_not_stop_the_others() -> None:
    engine = engine_of(loaded())
    got: list[TokenOutput] = []
    engine.submit(GenerationRequest("bad", prompt_of(4), 3, GREEDY), lambda output: 1 / 0)  # type: ignore[arg-type]
    engine.submit(GenerationRequest("good", prompt_of(4), 3, GREEDY), got.append)
    while engine.step():
        pass
    assert len(got) == 3
    assert_nothing_held(engine)
    engine.close()


def test_refusals_name_the_reason() -> None:
    engine = engine_of(loaded(), max_queue=2, max_running=1)

    def submit(request: GenerationRequest) -> None:
        engine.submit(request, lambda output: None)

    with pytest.raises(InvalidRequest, match="empty"):
        submit(GenerationRequest("x", (), 1))
    with pytest.raises(InvalidRequest, match="vocabulary of 101"):
        submit(GenerationRequest("x", (5, 101), 1))
    with pytest.raises(InvalidRequest, match="vocabulary"):
        submit(GenerationRequest("x", (5,), 1, SamplingParams(logit_bias={-1: 1.0})))
    with pytest.raises(ContextLengthExceeded, match="250 in the prompt and 7 to generate"):
        submit(GenerationRequest("x", prompt_of(250), 7))
    with pytest.raises(InvalidRequest, match="site or layer"):
        submit(GenerationRequest("x", (1,), 0, capture=CaptureSpec((3,))))
    with pytest.raises(InvalidRequest, match="position"):
        submit(GenerationRequest("x", (1,), 0, capture=CaptureSpec((0,), positions=(1,))))
    for index in range(3):
        submit(GenerationRequest(str(index), (1, 2), 3))
    with pytest.raises(Overloaded, match="waiting") as refusal:
        submit(GenerationRequest("one too many", (1, 2), 3))
    assert refusal.value.headers["Retry-After"]
    with pytest.raises(InvalidRequest, match="under way"):
        submit(GenerationRequest("0", (1, 2), 3))
    while engine.step():
        pass
    engine.close()
    with pytest.raises(Unavailable):
        submit(GenerationRequest("late", (1, 2), 3))


def test_capture_equals_a_plain_forward_pass() -> None:
    prompt = prompt_of(13)
    model = build("llama")
    engine: BatchingEngine = engine_of(loaded(), max_batch_tokens=5)
    run(engine, [GenerationRequest("warm", prompt, 1, GREEDY)])  # captured positions must not come from the cache
    for site in ("residual", "attention", "mlp", "post_attention_norm"):
        spec = CaptureSpec((0, 2), sites=(site,), positions=(-1, 0, 6))
        future = engine.capture(prompt, spec)
        while engine.step():
            pass
        for (_, layer), found in future.result(0).items():
            plain = activations(model, prompt, site, layer)[[12, 0, 6]]
            torch.testing.assert_close(found, plain, atol=1e-5, rtol=1e-4)
    assert_nothing_held(engine)
    engine.close()


def test_scores_equal_a_plain_forward_pass() -> None:
    prompt = prompt_of(13)
    choices = [(4,), (9,), (4, 7), (4, 8), (1, 2, 3)]
    steer = Steer(random_direction(2), 1, scale=1.5)
    model = build("llama")
    engine = engine_of(loaded(), max_batch_tokens=6)
    for plan, steers in ((UNSTEERED, ()), (plan_of(steer), (steer,))):
        future = engine.score(prompt, choices, plan=plan)
        while engine.step():
            pass
        for choice, found in zip(choices, future.result(0), strict=True):
            logits = steered_logits(model, (*prompt, *choice), steers, len(prompt))
            logprobs = torch.log_softmax(logits, -1)
            wanted = [float(logprobs[12 + index, token]) for index, token in enumerate(choice)]
            assert found == pytest.approx(wanted, abs=1e-4)
    assert_nothing_held(engine)
    engine.close()


@pytest.mark.parametrize("start", [0, 1, 7, 12])
@pytest.mark.parametrize("max_batch_tokens", [4, 64])
def test_prompt_logprobs_equal_a_plain_forward_pass(start: int, max_batch_tokens: int) -> None:
    prompt = prompt_of(12)
    engine = engine_of(loaded(), max_batch_tokens=max_batch_tokens)
    logprobs = torch.log_softmax(steered_logits(build("llama"), prompt), -1)
    for _ in range(2):
        request = GenerationRequest("x", prompt, 2, GREEDY, num_logprobs=3, logprobs_start=start)
        known = run(engine, [request])["x"][-1].known_logprobs
        assert known is not None
        assert len(known) == len(prompt) - start
        for position, entry in zip(range(start, 12), known, strict=True):
            if position == 0:
                assert entry is None
                continue
            assert entry is not None
            assert entry.token_id == prompt[position]
            assert entry.logprob == pytest.approx(float(logprobs[position - 1, prompt[position]]), abs=1e-4)
            assert [token for token, _ in entry.top] == logprobs[position - 1].topk(3).indices.tolist()
    engine.close()


def test_background_waits_for_live() -> None:
    engine = engine_of(loaded(), max_running=1)
    order: list[str] = []
    for name, priority in (("background", Priority.BACKGROUND), ("live", Priority.LIVE)):
        engine.submit(
            GenerationRequest(name, prompt_of(5), 1, GREEDY, priority=priority),
            lambda output: order.append(output.request_id),
        )
    while engine.step():
        pass
    assert order == ["live", "background"]
    engine.close()
