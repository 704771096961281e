"""Long prompts, common prefixes, chunks, preemption: all as plain transformers models with plain hooks have it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

from server.engine.errors import InvalidWork, OutputNotFinite
from server.engine.protocol import Engine
from server.engine.request import EngineRequest, FinishReason, Force, Generate, TokenOutput
from server.engine.vllm.start import start_vllm
from tests.families import build
from tests.reference import Steer, greedy
from tests.server.engine.contract.engines import MODEL, answer_of, answers_of
from tests.server.engine.driving import GREEDY, plan_of, probe_of, prompt_of, random_direction, tokens_of
from tests.vllm.engines import engine_of_shared_core, options_of

BLOCK = 32
COMMON = prompt_of(2 * BLOCK + 5, seed=1)
NUM_TOKENS = 6
OPERATIONS: tuple[dict[str, Any], ...] = (
    {},
    {"operation": "ablate"},
    {"operation": "clamp", "scale": 2.0},
    {"preserve_norm": True},
)
SITES = ("residual", "attention", "mlp", "post_attention_norm")


TWO = torch.stack([random_direction(1), random_direction(2)])
REFUSED = {
    "not calibrated": EngineRequest("x", COMMON, Force((1, 2), keeps_rows=True)),
    "one direction a layer": EngineRequest(
        "x", COMMON, Generate(1, GREEDY), plan_of(Steer(TWO, 1, operation="ablate", read=TWO))
    ),
    "no probes and gates": EngineRequest(
        "x", COMMON, Generate(1, GREEDY), plan_of(probes=[probe_of(Steer(random_direction(1), 1))])
    ),
}


@pytest.mark.parametrize("told", REFUSED)
def test_what_is_not_there_yet_is_refused_by_name(engine: Engine, told: str) -> None:
    with pytest.raises(InvalidWork, match=told):
        engine.submit(REFUSED[told], lambda output: None)


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = engine_of_shared_core(MODEL)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def tight() -> Iterator[Engine]:
    """One with room for a context and a half: 12 blocks of 32 tokens, of which vLLM keeps one."""
    extra = {"num_gpu_blocks_override": "12"}
    engine = start_vllm(options_of(MODEL, max_batch_tokens=48, max_running=6, extra=extra))
    yield engine
    engine.close()


def steers_of(number: int) -> tuple[Steer, ...]:
    """Steering that differs for every number, through all operations, sites, positions and layers."""
    if number % 8 == 7:
        return ()
    return (
        Steer(
            random_direction(number),
            number % 3,
            SITES[number % 4],
            positions=("response", "all", "prompt")[number % 3],
            **OPERATIONS[number // 4 % 4],
        ),
    )


def check(events: Sequence[TokenOutput], prompt: Sequence[int], steers: Sequence[Steer], name: str) -> None:
    """Tokens and log-probabilities are those of a plain pass a token."""
    tokens, logprobs = greedy(build(MODEL), prompt, NUM_TOKENS, steers)
    assert tokens_of(list(events)) == tokens, name
    for number, event in enumerate(events):
        assert event.logprobs is not None
        assert event.logprobs.logprob == pytest.approx(float(logprobs[number, tokens[number]]), abs=1e-4), name


def test_32_plans_in_one_batch_cold_and_from_the_cache(engine: Engine) -> None:
    work = Generate(NUM_TOKENS, GREEDY, num_logprobs=0)
    prompts = [(*COMMON, *prompt_of(3 + number % 5, seed=number)) for number in range(32)]
    for turn in ("cold", "warm"):
        requests = [
            EngineRequest(str(number), prompt, work, plan_of(*steers_of(number)))
            for number, prompt in enumerate(prompts)
        ]
        answers = answers_of(engine, requests)
        for number, prompt in enumerate(prompts):
            check(answers[str(number)], prompt, steers_of(number), f"{turn} {number}")
    assert all(events[-1].num_cached_tokens == 2 * BLOCK for events in answers.values())


def test_pages_are_shared_where_tokens_and_steering_in_scope_agree(engine: Engine) -> None:
    prompt = prompt_of(3 * BLOCK + 1, seed=77)
    in_response = plan_of(Steer(random_direction(1), 1))
    everywhere, other = (plan_of(Steer(random_direction(seed), 1, positions="all")) for seed in (2, 3))

    def num_cached(tokens: tuple[int, ...], plan: Any = None) -> int:
        request = EngineRequest("x", tokens, Generate(1, GREEDY), plan or plan_of())
        return answer_of(engine, request)[-1].num_cached_tokens

    assert num_cached(prompt) == 0
    assert num_cached(prompt, in_response) == 3 * BLOCK  # its prompt is not steered
    assert num_cached(prompt, everywhere) == 0
    assert num_cached(prompt, everywhere) == 3 * BLOCK
    assert num_cached(prompt, other) == 0
    assert num_cached((*prompt, 5), plan_of(Steer(random_direction(2), 1, positions="prompt"))) == 3 * BLOCK


def test_an_answer_is_read_from_the_cache_in_the_next_turn_only_by_who_was_steered_so(engine: Engine) -> None:
    prompt, steer = prompt_of(BLOCK - 3, seed=5), Steer(random_direction(9), 1)
    answer = tokens_of(answer_of(engine, EngineRequest("x", prompt, Generate(BLOCK + 10, GREEDY), plan_of(steer))))
    turn = (*prompt, *answer, 7, 8)
    unsteered = answer_of(engine, EngineRequest("x", turn, Generate(NUM_TOKENS, GREEDY, num_logprobs=0)))
    assert unsteered[-1].num_cached_tokens == 0
    check(unsteered, turn, (), "a page with steered positions was given to an unsteered request")
    again = (*prompt, *answer, 7, 8)
    steered = answer_of(engine, EngineRequest("x", again, Generate(NUM_TOKENS, GREEDY, num_logprobs=0), plan_of(steer)))
    check(steered, again, (steer,), "steered in the second turn")


def test_preempted_requests_are_steered_as_if_they_had_not_been(tight: Engine) -> None:
    prompts = [prompt_of(50 + number, seed=number) for number in range(6)]
    work = Generate(60, GREEDY)
    requests = [
        EngineRequest(str(number), prompt, work, plan_of(*steers_of(number))) for number, prompt in enumerate(prompts)
    ]
    before = tight.stats().paging
    answers = answers_of(tight, requests)
    after = tight.stats().paging
    assert before is not None
    assert after is not None
    assert after.total_preemptions > before.total_preemptions
    for number, prompt in enumerate(prompts):
        wanted, _ = greedy(build(MODEL), prompt, 60, steers_of(number))
        assert tokens_of(answers[str(number)]) == wanted, number


def test_what_is_not_finite_stays_in_its_own_request(tight: Engine) -> None:
    """Freed pages hold NaN; whoever gets them next must not see it, whatever part of a page it uses."""
    broken = plan_of(Steer(random_direction(1), 0, positions="all", scale=1e38))
    for number in range(8):
        failing = EngineRequest("x", prompt_of(100, seed=number), Generate(20, GREEDY), broken)
        (event,) = answer_of(tight, failing)
        assert (event.finish_reason, type(event.error)) == (FinishReason.ERROR, OutputNotFinite)
        prompt = prompt_of(33 + 7 * number, seed=number)
        check(
            answer_of(tight, EngineRequest("y", prompt, Generate(NUM_TOKENS, GREEDY, num_logprobs=0))), prompt, (), ""
        )
