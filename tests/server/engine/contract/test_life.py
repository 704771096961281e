"""The life of requests and of the engine: order, refusals, aborts, draining, closing, counting, many threads."""

from __future__ import annotations

import queue
import threading

import pytest

from server.engine.errors import (
    ContextTooLong,
    DuplicateRequest,
    EmptyPrompt,
    EngineError,
    EngineStopped,
    InvalidWork,
    QueueFull,
    TokenOutsideVocabulary,
)
from server.engine.protocol import Engine
from server.engine.request import (
    Branch,
    Capture,
    EngineRequest,
    FinishReason,
    Force,
    Generate,
    Priority,
    SamplingParams,
    Score,
    TokenOutput,
    Work,
)
from server.steering.plan import UNSTEERED
from tests.families import LAYERS, VOCABULARY, plain_model
from tests.reference import Steer, greedy
from tests.server.api.serving import eventually
from tests.server.engine.contract.engines import DEADLINE, ENDLESS, MODEL, MakeEngine, answer_of, answers_of, held_up
from tests.server.engine.driving import GREEDY, plan_of, prompt_of, random_direction, tokens_of

EVERYWHERE = plan_of(Steer(random_direction(1), 0, positions="all"))


def ignore(output: TokenOutput) -> None:
    """A sink."""


def endless(name: str, num_tokens: int = 200) -> EngineRequest:
    return EngineRequest(name, prompt_of(5), Generate(num_tokens, ENDLESS))


REFUSED: dict[str, tuple[tuple[int, ...], Work, type[EngineError], str]] = {
    "no prompt": ((), Generate(1), EmptyPrompt, "empty"),
    "a token too many": ((5, VOCABULARY), Generate(1), TokenOutsideVocabulary, f"from 0 to {VOCABULARY - 1}"),
    "a negative token": ((-1,), Generate(1), TokenOutsideVocabulary, "vocabulary"),
    "a bias outside": ((5,), Generate(1, SamplingParams(logit_bias={-1: 1.0})), TokenOutsideVocabulary, "vocabulary"),
    "a stop outside": (
        (5,),
        Generate(1, SamplingParams(stop_token_ids=frozenset({VOCABULARY}))),
        TokenOutsideVocabulary,
        "vocabulary",
    ),
    "a forced token outside": ((5,), Force((VOCABULARY,)), TokenOutsideVocabulary, "vocabulary"),
    "a choice outside": ((5,), Score((), (VOCABULARY,)), TokenOutsideVocabulary, "vocabulary"),
    "a branch's token outside": ((5,), Branch((UNSTEERED,), (VOCABULARY,)), TokenOutsideVocabulary, "vocabulary"),
    "too long to generate": (
        prompt_of(250),
        Generate(7),
        ContextTooLong,
        "context is 256 tokens, but the request needs 257: 250 in the prompt and 7 to generate",
    ),
    "too long to force": (prompt_of(250), Force((1,) * 7), ContextTooLong, "257 in the prompt"),
    "too long to score": (prompt_of(256), Score((1,), (1,)), ContextTooLong, "context"),
    "less than nothing": ((1,), Generate(-1), InvalidWork, "got -1"),
    "log-probabilities of what is not there": ((1,), Force((2,), start=3), InvalidWork, "got 3"),
    "nothing to score": ((1,), Score((1,), ()), InvalidWork, "at least one token"),
    "no branch": ((1,), Branch((), (1,)), InvalidWork, "at least one plan"),
    "no token for branches": ((1,), Branch((UNSTEERED,), ()), InvalidWork, "one token"),
    "a branch that steers what is shared": (
        (1, 2),
        Branch((EVERYWHERE,), (1,)),
        InvalidWork,
        "before the last prompt token",
    ),
    "no layer to capture": ((1,), Capture(()), InvalidWork, "at least one site"),
    "no site to capture": ((1,), Capture((0,), sites=()), InvalidWork, "at least one site"),
    "no position to capture": ((1,), Capture((0,), positions=()), InvalidWork, "at least one site"),
    "a layer outside": ((1,), Capture((LAYERS,)), InvalidWork, "site or layer"),
    "a position outside": ((1,), Capture((0,), positions=(1,)), InvalidWork, "position"),
}


def test_what_cannot_be_run_is_refused_at_once(engine: Engine) -> None:
    for name, (prompt, work, error, message) in REFUSED.items():
        with pytest.raises(error, match=message):
            engine.submit(EngineRequest(name, prompt, work), ignore)
    assert engine.stats().total_requests == 0


def test_what_just_fits_is_run(engine: Engine) -> None:
    answers = answers_of(
        engine,
        [
            EngineRequest("generate", prompt_of(250), Generate(6, GREEDY)),
            EngineRequest("force", prompt_of(250), Force((1,) * 6, start=255)),
            EngineRequest("score", prompt_of(255), Score((1,), (1,))),
        ],
    )
    assert len(tokens_of(answers["generate"])) == 6


def test_a_full_queue_refuses_live_requests_only(make: MakeEngine) -> None:
    engine = make(max_requests=3)
    assert engine.max_requests == 3
    with held_up(engine):
        for name in ("first", "second"):
            engine.submit(endless(name, 2), ignore)
        with pytest.raises(QueueFull, match="are waiting"):
            engine.submit(endless("one too many"), ignore)
        with pytest.raises(DuplicateRequest, match="'first' is already running"):
            engine.submit(endless("first"), ignore)
        for number in range(9):
            request = EngineRequest(f"background {number}", prompt_of(5), Generate(1), priority=Priority.BACKGROUND)
            engine.submit(request, ignore)
    assert engine.drain(DEADLINE)
    assert engine.stats().total_requests == 12


def test_background_work_waits_for_live_requests(make: MakeEngine) -> None:
    engine = make(max_requests=8)
    order: list[str] = []
    with held_up(engine):
        for name, priority in (("b1", Priority.BACKGROUND), ("l1", Priority.LIVE), ("l2", Priority.LIVE)):
            request = EngineRequest(name, prompt_of(5), Generate(1, GREEDY), priority=priority)
            engine.submit(request, lambda output: order.append(output.request_id))
    assert engine.drain(DEADLINE)
    assert order == ["l1", "l2", "b1"]


def test_an_abort_ends_a_request_whether_it_has_begun_or_not(make: MakeEngine) -> None:
    engine = make(max_requests=8)
    waiting: list[TokenOutput] = []
    with held_up(engine, num_tokens=200) as holder:
        engine.submit(endless("waiting"), waiting.append)
        engine.abort("waiting")
        engine.abort("holder")
        engine.abort("nobody")
    assert engine.drain(DEADLINE)
    (event,) = waiting
    assert (event.finish_reason, event.token_id, event.seconds_queued) == (FinishReason.ABORT, None, None)
    assert [output.finish_reason for output in holder.outputs] == [None, FinishReason.ABORT]
    assert holder.outputs[-1].seconds_queued is not None


def test_an_abort_that_comes_too_late_touches_no_later_request_and_no_drain(engine: Engine) -> None:
    answer_of(engine, EngineRequest("x", prompt_of(9), Generate(2, GREEDY)))
    engine.abort("x")
    answers = answers_of(engine, [EngineRequest("x", prompt_of(9), Generate(8, GREEDY))])
    assert tokens_of(answers["x"]) == greedy(plain_model(MODEL), prompt_of(9), 8)[0]
    engine.abort("x")
    assert engine.drain(DEADLINE)


def test_draining_refuses_what_is_new_and_finishes_what_is_there(engine: Engine) -> None:
    events: list[TokenOutput] = []
    with held_up(engine) as holder:
        engine.submit(EngineRequest("waiting", prompt_of(9), Generate(8, GREEDY)), events.append)
        was_accepting = engine.is_accepting
        assert not engine.drain(0.0)
        assert (was_accepting, engine.is_accepting) == (True, False)
        with pytest.raises(EngineStopped):
            engine.submit(endless("late"), ignore)
    assert engine.drain(DEADLINE)
    assert tokens_of(events) == greedy(plain_model(MODEL), prompt_of(9), 8)[0]
    assert holder.outputs[-1].finish_reason is FinishReason.LENGTH


def test_closing_ends_every_request_once_whatever_its_state(make: MakeEngine) -> None:
    """Running, queued, or handed in at the last moment: each gets one last event."""
    engine = make(max_requests=9)
    last: queue.Queue[str] = queue.Queue()

    def receive(output: TokenOutput) -> None:
        if output.finish_reason is not None:
            assert output.finish_reason is FinishReason.ABORT
            last.put(output.request_id)

    names = [str(number) for number in range(8)]
    with held_up(engine, num_tokens=200) as holder:
        for name in names:
            engine.submit(endless(name), receive)
        closing = threading.Thread(target=engine.close)
        closing.start()
        eventually(lambda: not engine.is_accepting)
    closing.join(DEADLINE)
    assert sorted(last.get_nowait() for _ in names) == names
    assert last.empty()
    assert holder.outputs[-1].finish_reason is FinishReason.ABORT
    with pytest.raises(EngineStopped):
        engine.submit(endless("late"), ignore)
    assert engine.drain(0.0)
    engine.close()


def test_a_sink_that_raises_does_not_stop_the_others(engine: Engine) -> None:
    def raising(output: TokenOutput) -> None:
        raise RuntimeError("a bug of whoever listens")

    with held_up(engine):
        engine.submit(EngineRequest("bad", prompt_of(4), Generate(3, GREEDY)), raising)
        good: list[TokenOutput] = []
        engine.submit(EngineRequest("good", prompt_of(4), Generate(3, GREEDY)), good.append)
    assert engine.drain(DEADLINE)
    assert len(good) == 3


def test_many_threads_submit_and_abort(engine: Engine) -> None:
    ended: queue.Queue[tuple[str, FinishReason]] = queue.Queue()

    def receive(output: TokenOutput) -> None:
        if output.finish_reason is not None:
            ended.put((output.request_id, output.finish_reason))

    def client(number: int) -> None:
        for turn in range(8):
            name = f"{number}-{turn}"
            engine.submit(endless(name, 200 if turn % 2 else 3), receive)
            if turn % 2:
                engine.abort(name)

    clients = [threading.Thread(target=client, args=(number,)) for number in range(5)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join(DEADLINE)
    assert engine.drain(DEADLINE)
    reasons = dict(ended.get_nowait() for _ in range(40))
    assert len(reasons) == 40
    assert ended.empty()
    for name, reason in reasons.items():
        assert reason is (FinishReason.ABORT if int(name.partition("-")[2]) % 2 else FinishReason.LENGTH)


def test_statistics_count_what_runs_and_what_was_done(make: MakeEngine) -> None:
    engine = make(max_requests=8)
    steered = plan_of(Steer(random_direction(1), 1))
    idle = engine.stats()
    assert (idle.num_running, idle.num_waiting, idle.num_steered_running, idle.total_requests) == (0, 0, 0, 0)
    with held_up(engine):
        engine.submit(EngineRequest("steered", prompt_of(7), Generate(5, ENDLESS), steered), ignore)
        engine.submit(EngineRequest("scored", prompt_of(6), Score((1,), (2,))), ignore)
        eventually(lambda: engine.stats().num_running == 1)
    assert engine.drain(DEADLINE)
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_steered_running) == (0, 0, 0)
    assert stats.total_requests == 3
    assert stats.total_prompt_tokens == 4 + 7 + 6
    assert stats.total_generated_tokens == 3 + 5
    assert stats.total_steps > 0
    assert 0 <= stats.total_cached_tokens < stats.total_prompt_tokens
    with_paging = stats.paging
    assert with_paging is None or all(pool.usage == 0 for pool in with_paging.pools)
    assert not stats.num_rows_in_use


def test_what_is_steered_and_runs_is_counted(engine: Engine) -> None:
    seen: list[tuple[int, int]] = []

    def look(output: TokenOutput) -> None:
        stats = engine.stats()
        seen.append((stats.num_running, stats.num_steered_running))

    plan = plan_of(Steer(random_direction(1), 1))
    engine.submit(EngineRequest("x", prompt_of(7), Generate(3, ENDLESS), plan), look)
    assert engine.drain(DEADLINE)
    assert seen == [(1, 1), (1, 1), (0, 0)]
