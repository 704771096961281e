"""Watchdog: says whether the server still works, from what its engine and its threads do.

A step that does not end, steps that keep failing, and a thread that has died are trouble. While steps fail it tries the
engine with a request of its own, so that an engine that has recovered is found out although nobody else asks.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from server.engine.errors import EngineError
from server.engine.protocol import Engine
from server.engine.request import EngineRequest, Generate, SamplingParams, TokenOutput

_log = logging.getLogger(__name__)

_FAILED_IN_A_ROW = 3
_LEAST_STEPS = 10
_FAILING_SHARE = 0.5
_FAILING_SECONDS = 10.0
"""Seconds of failing steps after which the engine counts as broken."""

_SECONDS_BETWEEN_LOOKS = 0.5
_SECONDS_TO_BE_SEEN = 3.0
"""Seconds for which a broken server answers 503 before `on_broken` is called, so that its supervisor can see it."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why the server should get no work; `is_lasting`: it will not recover by itself."""

    reason: str
    is_lasting: bool


class Watchdog:
    """Looks after `engine`, and the threads of `others`: a name, and whether it has died.

    `step_timeout`: seconds that a step may take. `clock` gives seconds that never go back. `trouble` can be asked at
    any time; `start` it to try a failing engine and to have a broken server ended.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        step_timeout: float,
        others: Mapping[str, Callable[[], bool]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._step_timeout = step_timeout
        self._others = dict(others or {})
        self._clock = clock
        self._failing_since: float | None = None
        self._broken_since: float | None = None
        self._is_trying = False
        self._ends = threading.Event()
        self._thread: threading.Thread | None = None

    def trouble(self) -> Trouble | None:
        """What is wrong now, if anything."""
        health = self._engine.health()
        if not health.is_alive:
            return Trouble("the engine has stopped after an error", is_lasting=True)
        for name, has_died in self._others.items():
            if has_died():
                return Trouble(f"the thread of the {name} has died", is_lasting=True)
        if health.seconds_in_step > self._step_timeout / 2:
            told = f"a step has taken {health.seconds_in_step:.0f} s, expected at most {self._step_timeout:g} s"
            return Trouble(told, is_lasting=health.seconds_in_step > self._step_timeout)
        if not _is_failing(health.latest_steps):
            self._failing_since = None
            return None
        now = self._clock()
        self._failing_since = self._failing_since if self._failing_since is not None else now
        num_failed = sum(health.latest_steps)
        told = f"{num_failed} of the latest {len(health.latest_steps)} steps failed"
        return Trouble(told, is_lasting=now - self._failing_since >= _FAILING_SECONDS)

    def start(self, on_broken: Callable[[str], None]) -> Watchdog:
        """Watch from a thread. `on_broken` is called there, once, with the reason of trouble that lasts."""
        self._thread = threading.Thread(target=self._watch, args=(on_broken,), name="watchdog", daemon=True)
        self._thread.start()
        return self

    def close(self) -> None:
        """Stop watching."""
        self._ends.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _watch(self, on_broken: Callable[[str], None]) -> None:
        was_in_trouble = is_told = False
        while not self._ends.wait(_SECONDS_BETWEEN_LOOKS):
            trouble = self.trouble()
            if trouble is None:
                if was_in_trouble:
                    _log.warning("the server works again")
                was_in_trouble = is_told = False
                self._broken_since = None
                continue
            if not was_in_trouble:
                _log.error("the server is in trouble: %s", trouble.reason)
                was_in_trouble = True
            self._try_engine()
            if not trouble.is_lasting:
                self._broken_since = None
            elif self._broken_since is None:
                self._broken_since = self._clock()
            elif not is_told and self._clock() - self._broken_since >= _SECONDS_TO_BE_SEEN:
                is_told = True
                on_broken(trouble.reason)

    def _try_engine(self) -> None:
        """Ask the engine for a token, if it is not trying already: a step that succeeds ends the trouble."""
        if self._is_trying:
            return

        def receive(output: TokenOutput) -> None:
            self._is_trying = output.finish_reason is None

        request = EngineRequest(f"watchdog-{uuid.uuid4().hex}", (0,), Generate(1, SamplingParams(temperature=0.0)))
        self._is_trying = True
        try:
            self._engine.submit(request, receive)
        except EngineError:
            self._is_trying = False


def _is_failing(latest_steps: tuple[bool, ...]) -> bool:
    """True when the latest steps all failed, or too many of them did."""
    in_a_row = latest_steps[-_FAILED_IN_A_ROW:]
    if len(in_a_row) == _FAILED_IN_A_ROW and all(in_a_row):
        return True
    return len(latest_steps) >= _LEAST_STEPS and sum(latest_steps) > _FAILING_SHARE * len(latest_steps)
