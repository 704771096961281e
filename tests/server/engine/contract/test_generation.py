"""Generation: the tokens and log-probabilities of plain transformers, whatever engine computes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from transformers import RepetitionPenaltyLogitsProcessor

from server.engine.errors import OutputNotFinite
from server.engine.protocol import Engine
from server.engine.request import EngineRequest, FinishReason, Generate, SamplingParams
from tests.families import build, plain_model
from tests.reference import Steer, greedy, steered_logits
from tests.server.engine.contract.engines import MODEL, MakeEngine, answer_of, answers_of
from tests.server.engine.driving import GREEDY, plan_of, prompt_of, random_direction, tokens_of

BROKEN = plan_of(Steer(random_direction(1), 1, scale=1e38))
"""Infinite in float32, so that the logits are NaN from the first token of the response on."""


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_greedy_equals_generate(engine: Engine) -> None:
    model = build(MODEL)
    requests = [EngineRequest(str(length), prompt_of(length), Generate(12, GREEDY)) for length in (1, 3, 9, 17, 30)]
    answers = answers_of(engine, requests)
    for request in requests:
        prompt = torch.tensor([request.prompt])
        expected = model.generate(  # type: ignore[operator]
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=12, do_sample=False
        )
        assert tokens_of(answers[request.request_id]) == expected[0, len(request.prompt) :].tolist()
        assert answers[request.request_id][-1].finish_reason is FinishReason.LENGTH


def test_penalties_and_biases_equal_a_plain_loop_and_leave_log_probabilities_alone(engine: Engine) -> None:
    prompt = prompt_of(9)
    samplings = (
        SamplingParams(temperature=0.0, repetition_penalty=1.7),
        SamplingParams(temperature=0.0, presence_penalty=1.5, frequency_penalty=0.7),
        SamplingParams(temperature=0.0, logit_bias={7: 3.0, 8: -100.0, 9: 2.5}),
        SamplingParams(temperature=1e-6, top_p=0.9),
        SamplingParams(temperature=1e-308, top_k=5, seed=1),
    )
    requests = [EngineRequest(repr(each), prompt, Generate(14, each, num_logprobs=3)) for each in samplings]
    answers = answers_of(engine, requests)
    model = build(MODEL)
    for sampling in samplings:
        events = answers[repr(sampling)]
        response = tokens_of(events)
        assert len(response) == 14
        rows = steered_logits(model, (*prompt, *response))[len(prompt) - 1 : -1]
        for number, (event, untouched) in enumerate(zip(events, rows, strict=True)):
            token = response[number]
            assert token == int(_adjusted(untouched, prompt, response[:number], sampling).argmax()), sampling
            logprobs = torch.log_softmax(untouched, -1)
            assert event.logprobs is not None
            assert event.logprobs.token_id == token
            assert event.logprobs.logprob == pytest.approx(float(logprobs[token]), abs=1e-4)
            top = logprobs.topk(3)
            assert [token for token, _ in event.logprobs.top] == top.indices.tolist()
            assert [value for _, value in event.logprobs.top] == pytest.approx(top.values.tolist(), abs=1e-4)


def _adjusted(logits: Tensor, prompt: Sequence[int], response: Sequence[int], sampling: SamplingParams) -> Tensor:
    """What the penalties and biases make of the model's own logits `[vocabulary]`."""
    penalise = RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)
    adjusted: torch.Tensor = penalise(torch.tensor([[*prompt, *response]]), logits.clone()[None])[0]
    for token, count in Counter(response).items():
        adjusted[token] -= sampling.presence_penalty + count * sampling.frequency_penalty
    for token, bias in sampling.logit_bias.items():
        adjusted[token] += bias
    return adjusted


def test_seeds_repeat_whoever_else_is_there(engine: Engine) -> None:
    def request(name: str, seed: int | None, **filters: float) -> EngineRequest:
        sampling = SamplingParams(temperature=1.5, seed=seed, **filters)  # type: ignore[arg-type]
        return EngineRequest(name, prompt_of(6), Generate(12, sampling))

    alone = [tokens_of(answer_of(engine, request("x", seed))) for seed in (1, 2)]
    filtered = tokens_of(answer_of(engine, request("x", 1, top_p=0.6, min_p=0.01)))
    together = answers_of(
        engine,
        [
            request("2", 2),
            request("b", None),
            request("1", 1),
            request("d", None),
            request("f", 1, top_p=0.6, min_p=0.01),
        ],
    )
    assert [tokens_of(together[name]) for name in ("1", "2", "f")] == [*alone, filtered]
    assert alone[0] != alone[1]
    assert filtered != alone[0]
    assert tokens_of(together["b"]) != tokens_of(together["d"])


def test_end_tokens_end_a_response_unless_they_are_ignored_and_never_before_min_tokens(make: MakeEngine) -> None:
    end, stop = 3, 4
    engine = make(end_token_ids=frozenset({end}))
    assert engine.info.eos_token_ids == {end}

    def answer(**sampling: object) -> tuple[list[int], FinishReason | None, bool]:
        params = SamplingParams(temperature=0.0, **sampling)  # type: ignore[arg-type]
        events = answer_of(engine, EngineRequest("x", prompt_of(4), Generate(20, params)))
        assert not any(event.is_end for event in events[:-1])
        return tokens_of(events), events[-1].finish_reason, events[-1].is_end

    pushed = {end: 100.0, stop: 50.0}
    assert answer(logit_bias=pushed) == ([end], FinishReason.STOP, True)
    assert answer(logit_bias=pushed, ignore_eos=True) == ([end] * 20, FinishReason.LENGTH, False)
    both = frozenset({end, stop})
    assert answer(logit_bias={stop: 50.0}, stop_token_ids=both) == ([stop], FinishReason.STOP, True)
    tokens, reason, is_end = answer(logit_bias=pushed, stop_token_ids=both, min_tokens=5)
    assert (len(tokens), tokens[-1], reason, is_end) == (6, end, FinishReason.STOP, True)
    assert not set(tokens[:-1]) & both


def test_no_token_may_be_asked_for(engine: Engine) -> None:
    (event,) = answer_of(engine, EngineRequest("x", prompt_of(4), Generate(0)))
    assert (event.token_id, event.finish_reason, event.known_logprobs) == (None, FinishReason.LENGTH, None)


def test_an_output_that_is_not_finite_fails_its_own_request_only(engine: Engine) -> None:
    samplings = (GREEDY, SamplingParams(), SamplingParams(top_p=0.9), SamplingParams(top_k=5, seed=1))
    broken = [EngineRequest(repr(each), prompt_of(7), Generate(12, each, num_logprobs=3), BROKEN) for each in samplings]
    good, later = (EngineRequest(name, prompt_of(9), Generate(12, GREEDY)) for name in ("good", "later"))
    answers = answers_of(engine, [good, *broken, later])
    for request in broken:
        (event,) = answers[request.request_id]
        assert (event.finish_reason, event.token_id) == (FinishReason.ERROR, None)
        assert isinstance(event.error, OutputNotFinite)
        assert event.error.is_steered
        assert "a smaller scale may help" in str(event.error)
    expected, _ = greedy(plain_model(MODEL), prompt_of(9), 12)
    assert tokens_of(answers["good"]) == tokens_of(answers["later"]) == expected
