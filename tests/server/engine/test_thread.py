"""The engine's own thread: starts, drains, closes at any moment, and never dies with somebody waiting."""

from __future__ import annotations

import queue
import threading

import pytest

from server.engine.engine import BatchingEngine, EngineSettings
from server.engine.errors import EngineStopped
from server.engine.request import EngineRequest, FinishReason, Generate, SamplingParams, TokenOutput
from tests.server.engine.driving import fresh, loaded, prompt_of

DEADLINE = 60.0
ENDLESS = SamplingParams(temperature=1.0, ignore_eos=True)


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
            engine.submit(EngineRequest(str(number), prompt_of(5), Generate(50, ENDLESS)), receive)
        ended = [last.get(timeout=DEADLINE) for _ in range(3)]
        assert {output.finish_reason for output in ended} == {FinishReason.ERROR}
        assert engine.drain(DEADLINE)
        assert not engine.is_accepting
        assert not engine.health().is_alive
        assert engine.stats().num_running == engine.stats().num_waiting == 0


class Panicking(BatchingEngine):
    """Raises what no `except Exception` catches, as a library's panic does."""

    def step(self) -> bool:
        """See `BatchingEngine.step`."""
        if self.stats().total_generated_tokens > 3:
            raise GeneratorExit
        return super().step()


def test_a_panic_leaves_nobody_waiting() -> None:
    last: queue.Queue[TokenOutput] = queue.Queue()
    with Panicking(loaded(), EngineSettings(num_pages=64, page_size=4)) as engine:
        engine.submit(EngineRequest("x", prompt_of(5), Generate(50, ENDLESS)), last.put)
        while (output := last.get(timeout=DEADLINE)).finish_reason is None:
            pass
        assert output.finish_reason is FinishReason.ERROR
        assert not engine.health().is_alive
        with pytest.raises(EngineStopped):
            engine.submit(EngineRequest("late", prompt_of(5), Generate(1, ENDLESS)), last.put)


def test_closing_does_not_wait_for_a_step_that_does_not_end() -> None:
    """Every request gets its last event, and only one, also when the step ends after all."""
    model = fresh()
    engine = BatchingEngine(model, EngineSettings(num_pages=64, page_size=4)).start()
    is_in_step, may_go_on = threading.Event(), threading.Event()

    def stick(*_: object) -> None:
        is_in_step.set()
        may_go_on.wait(DEADLINE)

    stuck = model.module.model.layers[1].register_forward_hook(stick)
    events: queue.Queue[TokenOutput] = queue.Queue()
    for name in ("one", "two"):
        engine.submit(EngineRequest(name, prompt_of(5), Generate(5, ENDLESS)), events.put)
    assert is_in_step.wait(DEADLINE)
    assert engine.health().seconds_in_step > 0
    assert not engine.drain(0.0)
    engine.close()
    assert engine.drain(0.0)
    last = [events.get(timeout=DEADLINE) for _ in range(2)]
    assert {output.finish_reason for output in last} == {FinishReason.ERROR}
    stuck.remove()
    thread = next(thread for thread in threading.enumerate() if thread.name == "tiller-engine")
    may_go_on.set()
    thread.join(DEADLINE)
    assert not thread.is_alive()
    assert events.empty()
