"""What one request does to itself, to the others of its step, and to the engine: only the one at fault ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from server.engine.engine import BatchingEngine
from server.engine.errors import InvalidWork, NoTokenAllowed, StepFailed, WorkFailed
from server.engine.grammar import Grammar, GrammarFailed
from server.engine.request import EngineRequest, FinishReason, Generate, Priority, SamplingParams, TokenOutput
from tests.families import VOCABULARY, plain_model
from tests.reference import greedy
from tests.server.engine.driving import (
    GREEDY,
    alone,
    assert_nothing_held,
    engine_of,
    loaded,
    mixed_alone,
    mixed_requests,
    prompt_of,
    run,
    tokens_of,
)
from tests.server.engine.grammars import exactly

MARKED = 100
"""The token that a broken model cannot bear."""

EVERY_TOKEN = frozenset(range(VOCABULARY))


def last_of(events: list[TokenOutput]) -> TokenOutput:
    assert events[-1].finish_reason is not None
    return events[-1]


@contextmanager
def unbearable(engine: BatchingEngine, model: Any, is_bad: Callable[[Tensor], bool]) -> Iterator[None]:
    """Within, the model raises in its second layer whenever `is_bad` says so of the step's tokens `[1, tokens]`."""
    seen: list[Tensor] = []
    notes = model.module.model.embed_tokens.register_forward_pre_hook(lambda module, args: seen.append(args[0]))

    def check(*_: object) -> None:
        if is_bad(seen[-1]):
            raise RuntimeError("a fault in the middle of a step")

    breaks = model.module.model.layers[1].register_forward_hook(check)
    try:
        yield
    finally:
        notes.remove()
        breaks.remove()


@pytest.mark.parametrize("temperature", [0.0, 1.0], ids=["greedy", "sampled"])
def test_a_request_whose_every_token_would_end_it_is_refused(temperature: float) -> None:
    engine = engine_of(loaded())
    sampling = SamplingParams(temperature=temperature, stop_token_ids=EVERY_TOKEN, min_tokens=1)
    with pytest.raises(InvalidWork, match="min_tokens: expected 0") as caught:
        engine.submit(EngineRequest("x", prompt_of(5), Generate(4, sampling)), lambda output: None)
    assert caught.value.param == "min_tokens"
    engine.close()


FORBIDDING: dict[str, tuple[SamplingParams, Grammar | None]] = {
    "bias": (SamplingParams(logit_bias=dict.fromkeys(range(VOCABULARY), -torch.inf)), None),
    "bias, with a filter": (SamplingParams(top_p=0.9, logit_bias=dict.fromkeys(range(VOCABULARY), -torch.inf)), None),
    "bias, greedy": (SamplingParams(temperature=0, logit_bias=dict.fromkeys(range(VOCABULARY), -torch.inf)), None),
    "bias on all that the stops leave": (
        SamplingParams(stop_token_ids=frozenset(range(1, VOCABULARY)), min_tokens=1, logit_bias={0: -torch.inf}),
        None,
    ),
    "bias against the grammar": (SamplingParams(logit_bias={7: -torch.inf}), exactly(7, 8)),
    "a bias of infinity": (SamplingParams(logit_bias={7: torch.inf}), None),
    "an endless temperature": (SamplingParams(temperature=torch.inf, logit_bias={7: -torch.inf}), None),
    "a penalty of nothing": (SamplingParams(repetition_penalty=0.0), None),
}


def test_a_row_that_may_draw_no_token_ends_alone_with_the_reason() -> None:
    model = loaded()
    engine = engine_of(model)
    hostile = [
        EngineRequest(f"bad {name}", prompt_of(5), Generate(6, sampling, num_logprobs=number, grammar=grammar))
        for number, (name, (sampling, grammar)) in enumerate(FORBIDDING.items())
    ]
    outputs = run(engine, [*mixed_requests(model), *hostile])
    for request in hostile:
        assert isinstance(last_of(outputs[request.request_id]).error, NoTokenAllowed), request.request_id
    assert {name: tokens_of(outputs[name]) for name in mixed_alone()} == mixed_alone()
    assert engine.stats().total_failed_steps == 0
    engine.close()


class _Panic(BaseException):
    """As a Rust library's panic reaches Python."""


class _Breaking:
    """A grammar, and a reader of parts, whose state raises."""

    def __init__(self, error: BaseException) -> None:
        self._error = error
        self.part = "content"
        self.is_complete = False

    def start(self) -> _Breaking:
        return self

    def fill_mask(self, words: Tensor) -> None:
        raise self._error

    def accept(self, token_id: int) -> None:
        raise self._error


@pytest.mark.parametrize("error", [ValueError("a bug"), _Panic("a panic"), GrammarFailed("too large")], ids=repr)
def test_what_raises_in_a_sequences_own_work_ends_it_alone(error: BaseException) -> None:
    model = loaded()
    engine = engine_of(model)
    breaking: Any = _Breaking(error)
    outputs = run(
        engine,
        [
            *mixed_requests(model),
            EngineRequest("grammar", prompt_of(5), Generate(6, GREEDY, grammar=breaking)),
            EngineRequest("parts", prompt_of(5), Generate(6, GREEDY, parts=breaking)),
        ],
    )
    expected = type(error) if isinstance(error, WorkFailed) else StepFailed
    assert type(last_of(outputs["grammar"]).error) is type(last_of(outputs["parts"]).error) is expected
    assert {name: tokens_of(outputs[name]) for name in mixed_alone()} == mixed_alone()
    engine.close()


def test_sampling_that_raises_ends_the_row_at_fault_and_draws_nothing_twice() -> None:
    """The other rows of the batch are drawn again, by the same random numbers."""
    model = loaded()
    engine = engine_of(model)
    broken: Any = SamplingParams(top_k=5, min_p="not a number")  # type: ignore[arg-type]  # on purpose
    bad = EngineRequest("bad", prompt_of(5), Generate(6, broken))
    free = EngineRequest("free", prompt_of(6), Generate(9, SamplingParams(seed=3)))
    outputs = run(engine, [free, *mixed_requests(model), bad])  # so that `free` is drawn before it raises
    assert isinstance(last_of(outputs["bad"]).error, StepFailed)
    expected = {**mixed_alone(), **alone(model, [free])}
    assert {name: tokens_of(outputs[name]) for name in expected} == expected
    engine.close()


@pytest.mark.parametrize("family", ["llama", "qwen3_next"])
def test_of_a_step_that_raises_only_the_culprits_fail(family: str) -> None:
    """Others of the step are computed again and say the same, drawn tokens included."""
    model = loaded(family)
    engine = engine_of(model, max_running=20)
    culprits = [EngineRequest(f"bad {number}", (5, 6, MARKED, number), Generate(9, GREEDY)) for number in range(3)]
    events: dict[str, list[TokenOutput]] = {}

    def submit(request: EngineRequest) -> None:
        events[request.request_id] = []
        engine.submit(request, lambda output: events[output.request_id].append(output))

    never_marked = SamplingParams(temperature=0.8, logit_bias={MARKED: -torch.inf})
    witnesses = [
        replace(
            request,
            prompt=tuple(token % MARKED for token in request.prompt),
            work=Generate(9, replace(never_marked, seed=number)),
        )
        for number, request in enumerate(mixed_requests(model))
    ]
    with unbearable(engine, model, lambda tokens: bool((tokens == MARKED).any())):
        for request in witnesses:
            submit(request)
        for _ in range(3):
            engine.step()
        for request in culprits:
            submit(request)
        while engine.step():
            pass
    assert {name for name, each in events.items() if last_of(each).error} == {each.request_id for each in culprits}
    assert all(isinstance(last_of(events[each.request_id]).error, StepFailed) for each in culprits)
    expected = alone(model, witnesses)
    assert {name: tokens_of(events[name]) for name in expected} == expected
    assert engine.stats().total_failed_steps == 1 + len(culprits)
    assert_nothing_held(engine)
    engine.close()


def test_a_step_that_is_only_too_large_fails_nobody() -> None:
    """As when the device's memory is too small for all of them at once."""
    model = loaded()
    engine = engine_of(model)
    with unbearable(engine, model, lambda tokens: tokens.numel() > 12):
        outputs = run(engine, [replace(each, prompt=each.prompt[:12]) for each in mixed_requests(model)])
    assert {last_of(events).finish_reason for events in outputs.values()} <= {FinishReason.LENGTH, FinishReason.STOP}
    engine.close()


def test_aborts_and_few_pages_are_heard_while_suspects_are_computed_alone() -> None:
    model = loaded()
    engine = engine_of(model, num_pages=24, max_batch_tokens=8)
    events: list[TokenOutput] = []
    prompts = {"bad": (5, 6, MARKED), **{str(number): prompt_of(30 + number, vocabulary=MARKED) for number in range(4)}}
    with unbearable(engine, model, lambda tokens: bool((tokens == MARKED).any())):
        for name, prompt in prompts.items():
            priority = Priority.BACKGROUND if name == "3" else Priority.LIVE
            engine.submit(EngineRequest(name, prompt, Generate(8, GREEDY), priority=priority), events.append)
        while engine.stats().total_failed_steps == 0:
            engine.step()
        engine.abort("1")
        while engine.step():
            pass
    reasons = {event.request_id: event.finish_reason for event in events if event.finish_reason is not None}
    assert reasons == {
        "bad": FinishReason.ERROR,
        "0": FinishReason.LENGTH,
        "1": FinishReason.ABORT,
        "2": FinishReason.LENGTH,
        "3": FinishReason.LENGTH,
    }
    for name in ("0", "2", "3"):
        said = tokens_of([event for event in events if event.request_id == name])
        assert said == greedy(plain_model("llama"), prompts[name], 8)[0]
    assert_nothing_held(engine)
    engine.close()
