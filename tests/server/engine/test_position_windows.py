"""Windows of positions equal a slow loop over tokens, whatever else happens to the request."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from server.engine.request import Branch, Capture, EngineRequest, Force, Generate, Score, TokenOutput
from server.steering.plan import UNSTEERED
from tests.families import VOCABULARY, build
from tests.reference import Gate, Steer, activations_under, greedy, opened, scores, steered_logits
from tests.server.engine.driving import (
    GREEDY,
    engine_of,
    loaded,
    num_preemptions,
    plan_of,
    probe_of,
    prompt_of,
    random_direction,
    run,
    tokens_of,
)
from vectors.vocabulary import OPERATIONS, SITES

PROMPT = prompt_of(13)
NUM_TOKENS = 6
WORK = Generate(NUM_TOKENS, GREEDY, num_logprobs=VOCABULARY)
WINDOWS: list[tuple[str, int, int | None]] = [
    ("prompt", 0, 4),
    ("prompt", 0, 99),
    ("prompt", -3, None),
    ("prompt", 5, None),
    ("prompt", 3, 10),
    ("response", 0, 1),
    ("response", 0, 3),
    ("response", 2, None),
    ("response", 1, 4),
]


def steer_of(number: int, window: Any, operation: str = "add", site: str = "residual") -> Steer:
    return Steer(random_direction(number), number % 3, site, 1.3, window, operation, number % 4 == 0, 0.5, 0.8)


def window_of(steer: Steer) -> tuple[str, int, int | None]:
    assert not isinstance(steer.positions, str)
    return steer.positions


def every_case() -> dict[str, tuple[Steer, ...]]:
    """Each operation in each window, over all sites, and windows that meet."""
    cases: dict[str, tuple[Steer, ...]] = {
        f"{operation} {window}": (steer_of(number, window, operation, SITES[number % 4]),)
        for number, (operation, window) in enumerate(itertools.product(OPERATIONS, WINDOWS))
    }
    pairs = list(itertools.pairwise(WINDOWS))
    for number, (one, other) in enumerate(pairs):
        cases[f"{one} and {other}"] = (steer_of(number, one), steer_of(number + 3, other, "clamp"))
    cases["all of them"] = tuple(steer_of(number, window) for number, window in enumerate(WINDOWS[:8]))
    return cases


@functools.cache
def expected(steers: tuple[Steer, ...]) -> tuple[list[int], Tensor]:
    return greedy(build("llama"), PROMPT, NUM_TOKENS, steers)


def check(events: list[TokenOutput], steers: tuple[Steer, ...]) -> None:
    tokens, rows = expected(steers)
    assert tokens_of(events) == tokens
    for event, row in zip(events, rows, strict=True):
        assert event.logprobs is not None
        order, values = zip(*event.logprobs.top, strict=True)
        torch.testing.assert_close(torch.tensor(values), row[list(order)], atol=1e-4, rtol=0)


def test_each_operation_in_each_window_cached_in_chunks_and_preempted() -> None:
    """All side by side, twice: the second time the prompts' pages come from the cache as far as they agree."""
    cases = every_case()
    engine = engine_of(loaded(), num_pages=40, max_batch_tokens=23)
    requests = [EngineRequest(name, PROMPT, WORK, plan_of(*steers)) for name, steers in cases.items()]
    _, unsteered = expected(())
    for _ in range(2):
        answers = run(engine, requests)
        for name, steers in cases.items():
            assert (expected(steers)[1] - unsteered).abs().max() > 0.01, f"{name} is too weak to mean anything"
            check(answers[name], steers)
    assert num_preemptions(engine) > 0
    engine.close()


@pytest.mark.parametrize(
    ("first", "second", "num_shared"),
    [
        (("prompt", 0, 4), ("prompt", 0, 4), 12),
        (("prompt", 0, 4), None, 0),  # whatever follows a steered token depends on it
        (None, ("prompt", 0, 4), 0),
        (None, ("prompt", -1, None), 12),
        (None, ("prompt", 12, None), 12),
        (None, ("prompt", 8, None), 8),
        (None, ("prompt", -3, None), 8),  # the page that holds its first token is its own
        (("prompt", 8, None), ("prompt", -5, None), 12),  # two forms of the same
        ("prompt", ("prompt", 0, 8), 8),
        (("prompt", 0, 5), ("prompt", 0, 6), 4),
        (("prompt", 4, 8), ("prompt", 4, 9), 8),
        (None, ("response", 0, 3), 12),
        ("all", ("prompt", 0, 99), 12),
        ("all", ("response", 0, 1), 0),
    ],
)
def test_pages_are_shared_exactly_as_far_as_tokens_and_steering_agree(first: Any, second: Any, num_shared: int) -> None:
    engine = engine_of(loaded())
    for index, window in enumerate((first, second)):
        steers = () if window is None else (steer_of(1, window),)
        (events,) = run(engine, [EngineRequest("x", PROMPT, WORK, plan_of(*steers))]).values()
        check(events, steers)
        assert index == 0 or events[-1].num_cached_tokens == num_shared
    engine.close()


def test_known_text_is_steered_in_its_windows() -> None:
    """Scored and forced text, and captured activations."""
    engine = engine_of(loaded(), max_batch_tokens=7)
    steers = (
        steer_of(1, ("response", 1, 3)),
        steer_of(2, ("prompt", -2, None)),
        steer_of(3, ("prompt", 0, 3), "clamp"),
    )
    text = prompt_of(5, seed=3)
    plan = plan_of(*steers)
    logits = steered_logits(build("llama"), (*PROMPT, *text), steers, len(PROMPT))
    rows = torch.log_softmax(logits, -1)[len(PROMPT) - 1 :]
    wanted = [float(row[token]) for row, token in zip(rows, text, strict=False)]
    capture = Capture((0, 1, 2), ("residual", "mlp"), tuple(range(len(PROMPT))))
    answers = run(
        engine,
        [
            EngineRequest("forced", PROMPT, Force(text, len(PROMPT)), plan),
            EngineRequest("scored", PROMPT, Score(text[:-1], (text[-1],)), plan),
            EngineRequest("captured", PROMPT, capture, plan),
        ],
    )
    (forced,), (scored,), (captured,) = answers.values()
    assert forced.known_logprobs is not None
    assert [known.logprob for known in forced.known_logprobs if known] == pytest.approx(wanted, abs=1e-4)
    assert scored.scores is not None
    assert scored.scores[0] == pytest.approx(wanted, abs=1e-4)
    assert captured.activations is not None
    for (site, layer), found in captured.activations.items():
        whole = activations_under(build("llama"), PROMPT, site, layer, steers)
        torch.testing.assert_close(found, whole, atol=1e-4, rtol=1e-4)
    engine.close()


def test_branches_go_by_the_windows_that_hold_at_the_last_token_of_each_prompt() -> None:
    """Which of them do depends on the length of the prompt, also for plans that are held or arranged already."""
    engine = engine_of(loaded(), max_batch_tokens=9)
    common = steer_of(1, ("prompt", 0, 3))
    ends: list[tuple[Steer, ...]] = [
        (),
        (steer_of(2, ("response", 0, 1)),),
        (steer_of(3, ("response", 1, None)),),
        (steer_of(4, ("prompt", -1, None)),),
        (steer_of(5, ("response", 0, 4), "clamp"),),
    ]
    for steers in ((), (common,)):
        own = [(*steers, *end) for end in ends]
        plans = tuple(plan_of(*each) for each in own)
        requests = [
            EngineRequest(str(length), prompt_of(length), Branch(plans, (3, 50, 7)), plan_of(*steers))
            for length in (1, 2, 3, 4, 9)
        ]
        for name, (event,) in run(engine, requests).items():
            prompt = prompt_of(int(name))
            wanted = [steered_logits(build("llama"), prompt, each)[-1][[3, 50, 7]] for each in own]
            assert event.branch_logits is not None
            torch.testing.assert_close(event.branch_logits, torch.stack(wanted), atol=1e-4, rtol=1e-4)
    engine.close()


def test_probes_read_their_windows_and_keep_the_rest_of_the_cache() -> None:
    engine = engine_of(loaded(), max_batch_tokens=23)
    probes = [
        Steer(random_direction(40 + n), n % 3, SITES[n % 4], positions=window) for n, window in enumerate(WINDOWS)
    ]
    firsts = {"prompt": 4, "response": 12}
    for _ in range(2):
        requests = [
            EngineRequest(str(n), PROMPT, WORK, plan_of(probes=[probe_of(probe)])) for n, probe in enumerate(probes)
        ]
        answers = run(engine, requests)
        for events, probe in zip(answers.values(), probes, strict=True):
            of, start, end = window_of(probe)
            whole = scores(build("llama"), (*PROMPT, *tokens_of(events)), probe, (), len(PROMPT))
            told = [event.readings for event in events]
            found = [each.scores[0] for each in told if each is not None]
            first = told[0]
            assert first is not None
            part = whole[: len(PROMPT)] if of == "prompt" else whole[len(PROMPT) - 1 : -1]
            chosen = set(range(len(part))[slice(start, end)])
            wanted = [score if number in chosen else None for number, score in enumerate(part)]
            if of == "prompt":
                assert found == [None] * NUM_TOKENS
                assert first.prompt is not None
                found = list(first.prompt[0] or ())
            else:
                assert first.prompt is None
            assert [each is None for each in found] == [each is None for each in wanted]
            assert [each for each in found if each is not None] == pytest.approx(
                [each for each in wanted if each is not None], abs=1e-4
            )
    cached = {probes[int(name)].positions: events[-1].num_cached_tokens for name, events in answers.items()}
    assert cached["prompt", 0, 4] == 0
    assert cached["prompt", 5, None] == firsts["prompt"]
    assert cached["response", 2, None] == firsts["response"]
    engine.close()


@pytest.mark.parametrize("latch", ["token", "rest"])
def test_gates_judge_the_tokens_of_the_window(latch: str) -> None:
    engine = engine_of(loaded(), num_pages=64, max_batch_tokens=11)
    probe = Steer(random_direction(40), 0, "mlp")
    read = sorted(scores(build("llama"), (*PROMPT, *expected(())[0]), probe))
    gate = Gate(probe, (read[9] + read[10]) / 2, latch=latch)
    cases = {
        str(window): (Steer(random_direction(number), 1, scale=0.8, positions=window, gate=gate),)
        for number, window in enumerate(WINDOWS)
    }
    for _ in range(2):
        answers = run(engine, [EngineRequest(name, PROMPT, WORK, plan_of(*own)) for name, own in cases.items()])
        for name, steers in cases.items():
            check(answers[name], steers)
            of, start, end = window_of(steers[0])
            assert steers[0].gate is not None
            whole = (*PROMPT, *tokens_of(answers[name])[:-1])
            places = range(len(PROMPT)) if of == "prompt" else range(len(PROMPT) - 1, len(whole))
            chosen = set(places[slice(start, end)])
            opens = opened(
                steers[0].gate,
                scores(build("llama"), whole, probe, steers, len(PROMPT)),
                [place in chosen for place in range(len(whole))],
            )
            told = answers[name][-1].readings
            assert told is not None
            assert told.gates == ((sum(value > 0.5 for value in opens), len(chosen)),)
    engine.close()


def test_a_window_that_holds_nothing_leaves_the_request_unsteered() -> None:
    engine = engine_of(loaded())
    nothing = plan_of(steer_of(1, ("prompt", 13, None)), steer_of(2, ("response", NUM_TOKENS, None)))
    plain, windowed = run(
        engine, [EngineRequest("a", PROMPT, WORK, UNSTEERED), EngineRequest("b", PROMPT, WORK, nothing)]
    ).values()
    assert tokens_of(plain) == tokens_of(windowed)
    engine.close()
