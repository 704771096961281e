"""Constrained decoding: only what the grammar allows, from the model's own logits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from server.engine.grammar import Grammar, GrammarFailed
from server.engine.protocol import Engine
from server.engine.request import EngineRequest, FinishReason, Generate, SamplingParams, TokenOutput
from tests.families import build, plain_model
from tests.reference import Steer, greedy, steered_logits
from tests.server.engine.contract.engines import MODEL, answer_of, answers_of
from tests.server.engine.driving import GREEDY, plan_of, prompt_of, random_direction, tokens_of
from tests.server.engine.grammars import END, EVEN, ODD_AND_END, Breaks, Rule, exactly

PROMPT = prompt_of(9)
HOT = SamplingParams(temperature=1.0, seed=7)


def constrained(engine: Engine, grammar: Grammar, sampling: SamplingParams = HOT, most: int = 20) -> list[TokenOutput]:
    return answer_of(engine, EngineRequest("x", PROMPT, Generate(most, sampling, grammar=grammar)))


def test_a_grammar_of_one_answer_gives_that_answer(engine: Engine) -> None:
    wanted = (31, 0, 63, 31, 31, 32, 99, 1)  # both ends of a word of the mask, and a token again and again
    samplings = (
        GREEDY,
        HOT,
        SamplingParams(temperature=2.0, seed=1),
        SamplingParams(top_k=1, seed=1),
        SamplingParams(top_p=0.0, seed=1),
        SamplingParams(min_p=1.0, seed=1),
        SamplingParams(seed=1, logit_bias={31: -100.0, 32: -100.0, 50: 100.0}),
        SamplingParams(seed=1, repetition_penalty=2.0, frequency_penalty=2.0, presence_penalty=2.0),
        SamplingParams(seed=1, min_tokens=20, stop_token_ids=frozenset({END})),
        SamplingParams(seed=1, ignore_eos=True),
    )
    grammar = exactly(*wanted)
    requests = [EngineRequest(repr(each), PROMPT, Generate(20, each, grammar=grammar)) for each in samplings]
    for name, events in answers_of(engine, requests).items():
        assert tokens_of(events) == list(wanted), name
        assert events[-1].finish_reason is FinishReason.STOP


@pytest.mark.parametrize("steers", [(), (Steer(random_direction(3), 1, scale=2.0),)])
def test_the_likeliest_allowed_token_by_a_plain_forward_pass(engine: Engine, steers: tuple[Steer, ...]) -> None:
    model = build(MODEL)
    work = Generate(20, GREEDY, num_logprobs=5, grammar=EVEN)
    events = answer_of(engine, EngineRequest("x", PROMPT, work, plan_of(*steers)))
    tokens = list(PROMPT)
    forbidden_on_top = 0
    for event in events:
        logits = steered_logits(model, tokens, steers, len(PROMPT))[-1]
        masked = logits.clone()
        masked[1::2] = -torch.inf
        masked[END:] = -torch.inf
        assert event.token_id == int(masked.argmax())
        assert event.logprobs is not None
        logprobs = torch.log_softmax(logits, -1)  # those of the untouched logits, forbidden tokens among them
        assert event.logprobs.logprob == pytest.approx(float(logprobs[event.token_id]), abs=1e-4)
        top = logprobs.topk(5)
        assert [token for token, _ in event.logprobs.top] == top.indices.tolist()
        assert [value for _, value in event.logprobs.top] == pytest.approx(top.values.tolist(), abs=1e-4)
        forbidden_on_top += int(top.indices[0]) % 2
        tokens.append(event.token_id)
    assert len(events) == 20
    assert forbidden_on_top > 0


def test_an_end_is_held_back_as_long_as_anything_else_may_come(engine: Engine) -> None:
    sampling = replace(HOT, stop_token_ids=frozenset({END}), logit_bias={END: 100.0})
    assert tokens_of(constrained(engine, ODD_AND_END, sampling)) == [END]
    held = tokens_of(constrained(engine, ODD_AND_END, replace(sampling, min_tokens=5)))
    assert END not in held[:5]
    assert held[5:] == [END]
    ends_early = Rule(lambda so_far: [END] if len(so_far) == 2 else [5, END])
    assert tokens_of(constrained(engine, ends_early, replace(sampling, min_tokens=5))) == [5, 5, END]


def test_length_cuts_an_answer_and_a_stop_token_ends_one(engine: Engine) -> None:
    cut = constrained(engine, exactly(*range(30)), most=4)
    assert (tokens_of(cut), cut[-1].finish_reason) == ([0, 1, 2, 3], FinishReason.LENGTH)
    stopped = constrained(engine, exactly(*range(30)), replace(HOT, stop_token_ids=frozenset({3})))
    assert (tokens_of(stopped), stopped[-1].finish_reason) == ([0, 1, 2, 3], FinishReason.STOP)
    last = constrained(engine, exactly(0, 1, 2, 3), most=4)
    assert (tokens_of(last), last[-1].finish_reason) == ([0, 1, 2, 3], FinishReason.STOP)


def test_a_grammar_that_fails_ends_its_request_and_no_other(engine: Engine) -> None:
    names = ("first", "second", "third")
    free = [EngineRequest(name, PROMPT, Generate(8, GREEDY)) for name in names]
    failing = [
        EngineRequest(
            f"after {num}", PROMPT, Generate(8, HOT, grammar=Breaks(num)), plan_of(Steer(random_direction(num), 1))
        )
        for num in (0, 3)
    ]
    answers = answers_of(engine, [free[0], failing[0], free[1], failing[1], free[2]])
    for num in (0, 3):
        events = answers[f"after {num}"]
        assert (events[-1].finish_reason, str(events[-1].error)) == (FinishReason.ERROR, "it has grown too large")
        assert isinstance(events[-1].error, GrammarFailed)
        assert len(tokens_of(events)) == num
    expected, _ = greedy(plain_model(MODEL), PROMPT, 8)
    assert all(tokens_of(answers[name]) == expected for name in names)
