"""The watchdog tells trouble from work: by the clock, by the steps that failed, and by the threads that died."""

from __future__ import annotations

import queue
import threading
from dataclasses import replace

import pytest

from server import watchdog as watchdog_module
from server.engine.engine import BatchingEngine
from server.engine.protocol import EngineHealth
from server.engine.request import EngineRequest, FinishReason, Generate, TokenOutput
from server.watchdog import Watchdog
from tests.server.engine.driving import GREEDY, engine_of, fresh, loaded, prompt_of

DEADLINE = 60.0

WELL = EngineHealth(is_alive=True, seconds_in_step=0.0, latest_steps=(False,) * 100)


class Watched(BatchingEngine):
    """An engine whose health a test decides."""

    told = WELL

    def health(self) -> EngineHealth:
        """What the test says."""
        return self.told


@pytest.fixture
def engine() -> Watched:
    made = engine_of(loaded())
    made.__class__ = Watched
    assert isinstance(made, Watched)
    return made


@pytest.mark.parametrize(
    ("health", "reason", "is_lasting"),
    [
        (WELL, None, False),
        (replace(WELL, seconds_in_step=4.9), None, False),
        (replace(WELL, seconds_in_step=5.1), "a step has taken 5 s, expected at most 10 s", False),
        (replace(WELL, seconds_in_step=10.1), "a step has taken 10 s", True),
        (replace(WELL, is_alive=False), "the engine has stopped", True),
        (replace(WELL, latest_steps=()), None, False),
        (replace(WELL, latest_steps=(True, True)), None, False),
        (replace(WELL, latest_steps=(True, True, True)), "3 of the latest 3 steps failed", False),
        (replace(WELL, latest_steps=(*(False,) * 97, True, True, True)), "3 of the latest 100 steps failed", False),
        (replace(WELL, latest_steps=(True, False) * 50), None, False),
        (replace(WELL, latest_steps=(True, True, False) * 30), "60 of the latest 90 steps failed", False),
    ],
    ids=repr,
)
def test_what_counts_as_trouble(engine: Watched, health: EngineHealth, reason: str | None, is_lasting: bool) -> None:
    engine.told = health
    trouble = Watchdog(engine, step_timeout=10.0).trouble()
    assert (trouble is not None) == (reason is not None)
    if trouble is not None and reason is not None:
        assert trouble.reason.startswith(reason)
        assert trouble.is_lasting is is_lasting
    engine.close()


def test_steps_that_keep_failing_become_lasting_trouble_and_success_ends_it(engine: Watched) -> None:
    now = 100.0
    watchdog = Watchdog(engine, step_timeout=10.0, clock=lambda: now)
    engine.told = replace(WELL, latest_steps=(True,) * 5)
    lasting = []
    for seconds in (100.0, 105.0, 109.9, 110.0):
        now = seconds
        trouble = watchdog.trouble()
        assert trouble is not None
        lasting.append(trouble.is_lasting)
    assert lasting == [False, False, False, True]
    engine.told = WELL
    assert watchdog.trouble() is None
    engine.told = replace(WELL, latest_steps=(True,) * 5)
    trouble = watchdog.trouble()
    assert trouble is not None
    assert not trouble.is_lasting
    engine.close()


def test_a_thread_that_has_died_is_trouble_by_its_name(engine: Watched) -> None:
    watchdog = Watchdog(engine, step_timeout=10.0, others={"training jobs": lambda: True})
    trouble = watchdog.trouble()
    assert trouble is not None
    assert trouble.is_lasting
    assert "training jobs" in trouble.reason
    engine.close()


def test_a_broken_server_is_told_of_once_and_only_after_others_could_see_it(
    engine: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog_module, "_SECONDS_BETWEEN_LOOKS", 0.001)
    now, told, looks = 100.0, list[str](), threading.Semaphore(0)

    def has_died() -> bool:
        looks.release()
        return True

    def look() -> None:
        """Return after the watchdog has looked and acted at least once from here on."""
        while looks.acquire(blocking=False):
            pass
        for _ in range(2):
            assert looks.acquire(timeout=DEADLINE)

    watchdog = Watchdog(engine, step_timeout=10.0, others={"training jobs": has_died}, clock=lambda: now)
    watchdog.start(told.append)
    for seconds in (100.0, 102.9, 103.0, 200.0):
        now = seconds
        look()
        assert len(told) == (seconds >= 103.0)
    watchdog.close()
    assert told == ["the thread of the training jobs has died"]
    engine.close()


def test_a_failing_engine_is_tried_until_it_answers_and_a_broken_one_is_told_of() -> None:
    """A real engine whose model breaks, is mended, and breaks for good."""
    model = fresh()
    engine = engine_of(model).start()
    told: queue.Queue[str] = queue.Queue()
    watchdog = Watchdog(engine, step_timeout=DEADLINE).start(told.put)
    ended: queue.Queue[TokenOutput] = queue.Queue()

    def ask() -> FinishReason | None:
        request = EngineRequest(f"{ended.qsize()}", prompt_of(4), Generate(1, GREEDY))
        engine.submit(request, ended.put)
        return ended.get(timeout=DEADLINE).finish_reason

    broken = model.module.model.layers[1].register_forward_hook(lambda *_: 1 / 0)
    assert [ask() for _ in range(4)] == [FinishReason.ERROR] * 4
    assert watchdog.trouble() is not None
    broken.remove()
    num_steps = engine.stats().total_steps
    waits = threading.Event()
    while watchdog.trouble() is not None:  # nobody asks but the watchdog
        waits.wait(0.01)
    assert engine.stats().total_steps > num_steps
    assert ask() is FinishReason.LENGTH
    assert told.empty()
    model.module.model.layers[1].register_forward_hook(lambda *_: 1 / 0)
    assert ask() is ask() is ask() is FinishReason.ERROR
    assert "steps failed" in told.get(timeout=DEADLINE)
    watchdog.close()
    engine.close()
