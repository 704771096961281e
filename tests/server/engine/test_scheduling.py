"""Who runs first: live requests before background ones, whatever the latter hold; nobody loses what was computed."""

from __future__ import annotations

import itertools

import pytest

from server.engine.errors import ContextTooLong, QueueFull
from server.engine.queries import score
from server.engine.request import EngineRequest, Generate, Priority, TokenOutput
from tests.families import plain_model
from tests.reference import greedy
from tests.server.engine.driving import (
    GREEDY,
    assert_nothing_held,
    engine_of,
    loaded,
    num_preemptions,
    prompt_of,
    run,
    tokens_of,
)


def request(name: str, priority: Priority, length: int = 9, num_tokens: int = 20) -> EngineRequest:
    return EngineRequest(name, prompt_of(length), Generate(num_tokens, GREEDY), priority=priority)


@pytest.mark.parametrize("limits", [{"max_running": 1}, {"num_pages": 9}, {"max_batch_tokens": 1}], ids=repr)
def test_a_live_request_does_not_wait_for_background_work_under_way(limits: dict[str, int]) -> None:
    """Background work yields its place, its pages and the step's tokens, and ends with the same tokens."""
    engine = engine_of(loaded(), **limits)
    events: list[TokenOutput] = []
    engine.submit(request("background", Priority.BACKGROUND), events.append)
    while len(events) < 4:
        engine.step()
    engine.submit(request("live", Priority.LIVE), events.append)
    while engine.step():
        pass
    ended = [event.request_id for event in events if event.finish_reason is not None]
    assert ended == ["live", "background"]
    expected, _ = greedy(plain_model("llama"), prompt_of(9), 20)
    for name in ended:
        assert tokens_of([event for event in events if event.request_id == name]) == expected
    assert_nothing_held(engine)
    engine.close()


def test_background_work_does_not_fill_the_queue_of_live_requests() -> None:
    engine = engine_of(loaded(), max_queue=2, max_running=2)
    for _ in range(20):
        score(engine, prompt_of(5), [(1,), (2,)])
    for number in range(4):
        engine.submit(request(str(number), Priority.LIVE, num_tokens=2), lambda output: None)
    with pytest.raises(QueueFull):
        engine.submit(request("one too many", Priority.LIVE), lambda output: None)
    while engine.step():
        pass
    assert_nothing_held(engine)
    engine.close()


def test_a_request_that_must_wait_leaves_the_prefix_cache_alone() -> None:
    """Looking in vain for pages evicts nothing: what was cached before is cached after."""
    engine = engine_of(loaded(), num_pages=16)
    run(engine, [request("first", Priority.LIVE, length=24, num_tokens=1)])
    engine.submit(request("long", Priority.LIVE, length=5, num_tokens=24), lambda output: None)
    for _ in range(3):
        engine.step()
    engine.submit(EngineRequest("blocked", prompt_of(60), Generate(4, GREEDY)), lambda output: None)
    engine.step()
    assert engine.stats().num_waiting == 1
    engine.abort("blocked")
    events: list[TokenOutput] = []
    engine.submit(EngineRequest("again", prompt_of(24), Generate(1, GREEDY)), events.append)
    while engine.step():
        pass
    assert events[-1].num_cached_tokens == 20  # all whole pages before the last token
    assert_nothing_held(engine)
    engine.close()


def test_what_the_pages_cannot_hold_is_refused_and_never_waits() -> None:
    engine = engine_of(loaded(), num_pages=4)
    with pytest.raises(ContextTooLong, match="context is 16 tokens"):
        engine.submit(request("x", Priority.LIVE, length=9, num_tokens=8), lambda output: None)
    assert tokens_of(run(engine, [request("x", Priority.LIVE, length=9, num_tokens=7)])["x"])
    engine.close()


@pytest.mark.parametrize("max_batch_tokens", [64, 7])
def test_requests_that_begin_alike_and_come_together_compute_the_beginning_once(max_batch_tokens: int) -> None:
    """The `n` choices of a request are such; a stranger among them does not wait."""
    engine = engine_of(loaded(), max_batch_tokens=max_batch_tokens)
    prompt = prompt_of(42)
    alike = [EngineRequest(f"alike-{number}", prompt, Generate(6, GREEDY)) for number in range(5)]
    stranger = request("stranger", Priority.LIVE, length=11, num_tokens=6)
    outputs = run(engine, [*alike[:3], stranger, *alike[3:]])
    expected, _ = greedy(plain_model("llama"), prompt, 6)
    assert all(tokens_of(outputs[each.request_id]) == expected for each in alike)
    stats = engine.stats()
    assert stats.total_prompt_tokens - stats.total_cached_tokens == 42 + 4 * 2 + 11  # 40 of 42 are in whole pages
    engine.close()


def test_nobody_waits_for_a_beginning_that_will_not_be_shared() -> None:
    """Without a prefix cache, and after whoever computed it left."""
    engine = engine_of(loaded(), prefix_cache=False)
    alike = [EngineRequest(str(number), prompt_of(42), Generate(2, GREEDY)) for number in range(3)]
    for each in alike:
        engine.submit(each, lambda output: None)
    engine.step()
    assert engine.stats().num_waiting == 1  # the budget of 64 tokens has room for one and a half
    while engine.step():
        pass
    engine.close()

    engine = engine_of(loaded(), max_batch_tokens=8)
    for each in alike:
        engine.submit(each, lambda output: None)
    engine.step()
    engine.abort("0")
    while engine.step():
        pass
    assert_nothing_held(engine)
    engine.close()


@pytest.mark.parametrize(
    "limits",
    [
        {"max_running": 2},
        {"num_pages": 12, "max_running": 2},
        {"max_batch_tokens": 4, "max_running": 8},
        {"max_running": 1},
    ],
    ids=repr,
)
def test_background_work_gets_its_steps_under_a_flood_of_live_requests(limits: dict[str, int]) -> None:
    """Live requests that always leave no place, no page or no token free; both get on, and say what they say alone."""
    engine = engine_of(loaded(), **limits, background_share=0.2)
    ended: list[str] = []
    said: dict[str, list[int]] = {}

    def receive(output: TokenOutput) -> None:
        if output.token_id is not None:
            said.setdefault(output.request_id, []).append(output.token_id)
        if output.finish_reason is not None:
            ended.append(output.request_id)

    def is_background(name: str) -> bool:
        return name.startswith("background")

    prompt = prompt_of(14, 7)
    for number in range(3):
        work = EngineRequest(f"background {number}", prompt, Generate(3, GREEDY), priority=Priority.BACKGROUND)
        engine.submit(work, receive)
    num_live = 0
    while sum(map(is_background, ended)) < 3:
        while engine.stats().num_waiting + engine.stats().num_running < 12 + 3 - sum(map(is_background, ended)):
            engine.submit(request(f"live {num_live}", Priority.LIVE, 6, 12), receive)
            num_live += 1
            engine._read_inbox()
        engine.step()
        assert num_live < 400, ended
    assert num_live > 12
    while engine.step():
        pass
    live, background = greedy(plain_model("llama"), prompt_of(6), 12)[0], greedy(plain_model("llama"), prompt, 3)[0]
    for name, tokens in said.items():
        assert tokens == (background if is_background(name) else live), name
    assert_nothing_held(engine)
    engine.close()


def owned(owner: str, number: int, num_tokens: int = 12) -> EngineRequest:
    return EngineRequest(f"{owner}{number}", prompt_of(9 + number % 3), Generate(num_tokens, GREEDY), owner=owner)


def test_owners_take_turns() -> None:
    engine = engine_of(loaded(), max_running=1)
    ended: list[str] = []

    def receive(output: TokenOutput) -> None:
        if output.finish_reason is not None:
            ended.append(output.request_id)

    for owner, count in (("a", 4), ("b", 2), ("c", 1)):
        for number in range(count):
            engine.submit(owned(owner, number, num_tokens=2), receive)
    while engine.step():
        pass
    assert ended == ["a0", "b0", "c0", "a1", "b1", "a2", "a3"]
    assert_nothing_held(engine)
    engine.close()


def test_who_occupies_every_place_gives_one_to_who_has_none() -> None:
    """At once, whatever is queued before; and what had to yield ends with the same tokens."""
    engine = engine_of(loaded(), max_running=4)
    outputs: dict[str, list[TokenOutput]] = {}
    requests = [owned("a", number, num_tokens=40) for number in range(12)]
    for each in requests:
        engine.submit(each, outputs.setdefault(each.request_id, []).append)
    for _ in range(6):
        engine.step()
    late = owned("b", 0, num_tokens=5)
    engine.submit(late, outputs.setdefault("b0", []).append)
    num_steps = 0
    while not outputs["b0"] or outputs["b0"][-1].finish_reason is None:
        engine.step()
        num_steps += 1
    assert num_steps <= 8
    assert not any(events and events[-1].finish_reason for name, events in outputs.items() if name != "b0")
    while engine.step():
        pass
    for each in (*requests, late):
        assert isinstance(each.work, Generate)
        expected, _ = greedy(plain_model("llama"), each.prompt, each.work.max_tokens)
        assert tokens_of(outputs[each.request_id]) == expected
    assert_nothing_held(engine)
    engine.close()


def test_an_owner_with_one_place_each_keeps_it() -> None:
    engine = engine_of(loaded(), max_running=2)
    for owner in "abc":
        engine.submit(owned(owner, 0), lambda output: None)
    for _ in range(6):
        engine.step()
    assert num_preemptions(engine) == 0
    engine.close()


@pytest.mark.parametrize("num_steps", [0, 2])
def test_nobody_fills_the_queue_of_others(num_steps: int) -> None:
    engine = engine_of(loaded(), max_running=1, max_queue=6)
    numbers = itertools.count()

    def num_accepted(owner: str) -> int:
        for count in range(100):
            try:
                engine.submit(owned(owner, next(numbers)), lambda output: None)
            except QueueFull:
                return count
        raise AssertionError("the queue has no end")

    assert num_accepted("a") >= 6
    for _ in range(num_steps):
        engine.step()
    assert 2 <= num_accepted("b") <= 4
    assert num_accepted("a") == 0
    while engine.step():
        pass
    assert_nothing_held(engine)
    engine.close()
