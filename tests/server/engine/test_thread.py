"""The engine's own thread: starts, drains, closes at any moment, and never dies with somebody waiting."""

from __future__ import annotations

import queue
import threading

import pytest

from server.engine.engine import BatchingEngine, EngineSettings
from server.engine.request import FinishReason, GenerationRequest, SamplingParams, TokenOutput
from server.errors import Unavailable
from tests.families import build
from tests.reference import greedy
from tests.server.engine.driving import GREEDY, assert_nothing_held, engine_of, loaded, prompt_of, run, tokens_of

DEADLINE = 60.0
ENDLESS = SamplingParams(temperature=1.0, ignore_eos=True)


def test_closing_ends_every_request_once_whatever_its_state() -> None:
    """Running, queued, or handed in at the last moment: each gets one last event, and all is given back."""
    engine = engine_of(loaded(), max_running=2).start()
    last: queue.Queue[str] = queue.Queue()
    started = threading.Event()

    def receive(output: TokenOutput) -> None:
        started.set()
        if output.finish_reason is not None:
            assert output.finish_reason is FinishReason.ABORT
            last.put(output.request_id)

    names = [str(number) for number in range(8)]
    for name in names:
        engine.submit(GenerationRequest(name, prompt_of(5), 200, ENDLESS), receive)
    assert started.wait(DEADLINE)
    engine.close()
    assert sorted(last.get_nowait() for _ in names) == names
    assert last.empty()
    assert_nothing_held(engine)
    with pytest.raises(Unavailable):
        engine.submit(GenerationRequest("late", prompt_of(5), 2, GREEDY), receive)


def test_aborts_from_many_threads_while_others_submit() -> None:
    engine = engine_of(loaded(), max_running=4).start()
    ended: queue.Queue[str] = queue.Queue()

    def receive(output: TokenOutput) -> None:
        if output.finish_reason is not None:
            ended.put(output.request_id)

    def client(number: int) -> None:
        for turn in range(20):
            name = f"{number}-{turn}"
            engine.submit(GenerationRequest(name, prompt_of(5), 200 if turn % 2 else 3, ENDLESS), receive)
            if turn % 2:
                engine.abort(name)

    clients = [threading.Thread(target=client, args=(number,)) for number in range(6)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join(DEADLINE)
    assert engine.drain(DEADLINE)
    names = [ended.get_nowait() for _ in range(120)]
    assert len(set(names)) == 120
    assert ended.empty()
    engine.close()
    assert_nothing_held(engine)


def test_an_abort_that_comes_too_late_touches_no_later_request_and_no_drain() -> None:
    engine = engine_of(loaded())
    run(engine, [GenerationRequest("x", prompt_of(9), 2, GREEDY)])
    engine.abort("x")
    tokens = tokens_of(run(engine, [GenerationRequest("x", prompt_of(9), 8, GREEDY)])["x"])
    assert tokens == greedy(build("llama"), prompt_of(9), 8)[0]
    engine.abort("x")
    assert engine.drain(0.0)
    engine.close()


class Breaking(BatchingEngine):
    """Raises between two steps, as a bug of the scheduler would."""

    def step(self) -> bool:
        """See `BatchingEngine.step`."""
        if self.stats().total_generated_tokens > 3:
            raise RuntimeError("a bug")
        return super().step()


def test_a_bug_between_steps_leaves_nobody_waiting() -> None:
    engine = Breaking(loaded(), EngineSettings(num_pages=64, page_size=4))
    last: queue.Queue[TokenOutput] = queue.Queue()

    def receive(output: TokenOutput) -> None:
        if output.finish_reason is not None:
            last.put(output)

    with engine:
        for number in range(3):
            engine.submit(GenerationRequest(str(number), prompt_of(5), 50, ENDLESS), receive)
        ended = [last.get(timeout=DEADLINE) for _ in range(3)]
        assert {output.finish_reason for output in ended} == {FinishReason.ERROR}
        assert engine.drain(DEADLINE)
        assert not engine.is_accepting
