"""The engines that keep the contract, and how its tests talk to one: through the door only."""

from __future__ import annotations

import contextlib
import functools
import itertools
import queue
import threading
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Protocol

import pytest
from transformers import PreTrainedModel

from server.engine.model import LoadedModel, prepare_model
from server.engine.protocol import Engine
from server.engine.request import EngineRequest, Generate, SamplingParams, TokenOutput
from server.kernels.library import load_kernels
from tests.families import build
from tests.server.engine.contract.naive import NaiveEngine
from tests.server.engine.driving import engine_of, loaded, prompt_of

DEADLINE = 60.0
MODEL = "wide_llama"
ENDLESS = SamplingParams(temperature=1.0)
"""The tiny models have no end tokens of their own."""


class MakeEngine(Protocol):
    """Makes a running engine of the tiny llama `MODEL`.

    With `max_requests` it takes so many live requests and runs one at a time. `end_token_ids` are the model's.
    """

    def __call__(self, *, max_requests: int | None = None, end_token_ids: frozenset[int] = frozenset()) -> Engine: ...


@functools.cache
def _compiled() -> LoadedModel:
    kernels = load_kernels()
    if kernels is None:
        pytest.skip("there is no C compiler")
    return prepare_model(build(MODEL), kernels=kernels)


def _batching(
    *,
    max_requests: int | None = None,
    end_token_ids: frozenset[int] = frozenset(),
    is_compiled: bool = False,
    **changes: int,
) -> Engine:
    model = _compiled() if is_compiled else loaded(MODEL)
    model = replace(model, info=replace(model.info, eos_token_ids=end_token_ids))
    limits = {} if max_requests is None else {"max_running": 1, "max_queue": max_requests - 1}
    return engine_of(model, **(changes | limits)).start()


@functools.cache
def _naive_model() -> PreTrainedModel:
    """One that no reference runs at the same time."""
    return build(MODEL)


def _naive(*, max_requests: int | None = None, end_token_ids: frozenset[int] = frozenset()) -> Engine:
    info = replace(loaded(MODEL).info, eos_token_ids=end_token_ids)
    return NaiveEngine(_naive_model(), info, **({} if max_requests is None else {"max_requests": max_requests}))


def _vllm(*, max_requests: int | None = None, end_token_ids: frozenset[int] = frozenset()) -> Engine:
    from tests.vllm.engines import engine_of_shared_core

    return engine_of_shared_core(MODEL, max_requests=max_requests, end_token_ids=end_token_ids)


ENGINES: dict[str, MakeEngine] = {
    "batching": _batching,
    "batching, small chunks and few pages": partial(_batching, max_batch_tokens=5, num_pages=64),
    "batching, compiled kernels": partial(_batching, is_compiled=True),
    "naive": _naive,
    "vllm": _vllm,
}


def answers_of(engine: Engine, requests: Iterable[EngineRequest]) -> dict[str, list[TokenOutput]]:
    """Every request's events, all submitted before the first is waited for; the last, and only that, has a reason."""
    outputs: dict[str, list[TokenOutput]] = {}
    ended: queue.Queue[str] = queue.Queue()

    def receive(output: TokenOutput) -> None:
        outputs[output.request_id].append(output)
        if output.finish_reason is not None:
            ended.put(output.request_id)

    for request in requests:
        outputs[request.request_id] = []
        engine.submit(request, receive)
    for _ in outputs:
        ended.get(timeout=DEADLINE)
    for name, events in outputs.items():
        assert [event.finish_reason is not None for event in events] == [False] * (len(events) - 1) + [True], name
    return outputs


def answer_of(engine: Engine, request: EngineRequest) -> list[TokenOutput]:
    """The events of one request, whose id is made unique: an id is taken until the last event has been delivered."""
    name = f"{request.request_id}-{next(_numbers)}"
    return answers_of(engine, [replace(request, request_id=name)])[name]


_numbers = itertools.count()


class Holder:
    """A sink that holds up the engine at its first event, until it is let go."""

    def __init__(self) -> None:
        self.outputs: list[TokenOutput] = []
        self.has_begun = threading.Event()
        self.may_go_on = threading.Event()
        self.has_ended = threading.Event()

    def __call__(self, output: TokenOutput) -> None:
        """Take an event; the first one waits."""
        self.outputs.append(output)
        self.has_begun.set()
        assert self.may_go_on.wait(DEADLINE)
        if output.finish_reason is not None:
            self.has_ended.set()


@contextlib.contextmanager
def held_up(engine: Engine, num_tokens: int = 3) -> Iterator[Holder]:
    """The engine stands still within, in the middle of a request `holder` of so many tokens."""
    holder = Holder()
    engine.submit(EngineRequest("holder", prompt_of(4), Generate(num_tokens, ENDLESS)), holder)
    assert holder.has_begun.wait(DEADLINE)
    try:
        yield holder
    finally:
        holder.may_go_on.set()
    assert holder.has_ended.wait(DEADLINE)
