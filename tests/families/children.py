"""Runs a function on each of many names, each in a process of its own: one that hangs, dies or fills the memory costs
one answer."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import resource
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from tests.families.verdict import Verdict

MEMORY_BYTES = 6 << 30
"""The address space that a child may use."""


@dataclass(frozen=True)
class Outcome:
    """The verdict on `name`, which took `seconds`."""

    name: str
    verdict: Verdict
    seconds: float


@dataclass
class _Child:
    name: str
    process: BaseProcess
    answers: Connection
    started: float


def judge_each(
    names: Iterable[str],
    judge: Callable[[str], Verdict],
    *,
    limit: float,
    at_once: int = 2,
    preload: Sequence[str] = (),
) -> Iterator[Outcome]:
    """The outcomes in the order in which they come. A child that takes more than `limit` seconds is killed.

    `judge` is a function of a module. The modules of `preload` are imported once, for all children.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    waiting = deque(names)
    running: list[_Child] = []
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                name = waiting.popleft()
                answers, answer = context.Pipe(duplex=False)
                process = context.Process(target=_answer, args=(judge, name, answer), daemon=True)
                process.start()
                answer.close()
                running.append(_Child(name, process, answers, time.monotonic()))
            ends = min(child.started for child in running) + limit
            wait([child.answers for child in running], timeout=max(0.0, ends - time.monotonic()))
            for child in list(running):
                verdict = _verdict_of(child, limit)
                if verdict is not None:
                    running.remove(child)
                    yield Outcome(child.name, verdict, time.monotonic() - child.started)
    finally:
        for child in running:
            child.process.kill()
            child.process.join()


def _verdict_of(child: _Child, limit: float) -> Verdict | None:
    """The verdict on the child's name, when there is one: what it answered, or how it ended."""
    if child.answers.poll():
        try:
            verdict = child.answers.recv()
            assert isinstance(verdict, Verdict)
        except EOFError:
            child.process.join()
            verdict = Verdict("traceback", f"the process ended with status {child.process.exitcode}")
    elif time.monotonic() - child.started >= limit:
        child.process.kill()
        verdict = Verdict("traceback", f"no verdict within {limit:g} s")
    else:
        return None
    child.process.join()
    child.answers.close()
    return verdict


def _answer(judge: Callable[[str], Verdict], name: str, answer: Connection) -> None:
    """In the child: judge, and send the verdict. What the libraries print goes nowhere."""
    with contextlib.suppress(ValueError, OSError):  # a system without this limit
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    try:
        verdict = judge(name)
    except MemoryError:
        verdict = Verdict("unbuilt", f"the tiny model needs more than {MEMORY_BYTES >> 30} GiB")
    except Exception as error:
        verdict = Verdict("traceback", f"{type(error).__name__}: {error}")
    answer.send(verdict)
    answer.close()
