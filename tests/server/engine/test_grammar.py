"""Constrained decoding in the engine: only what the grammar allows, from the model's own logits.

Grammars of a few lines stand for what no library could know; llguidance's are checked by reading each answer again,
token by token, with a matcher that never saw the engine.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from llguidance import LLMatcher
from llguidance.hf import from_tokenizer
from torch import Tensor

from server.answers.compiler import GrammarCompiler
from server.answers.grammar_source import json_answer
from server.engine.grammar import Grammar, GrammarFailed
from server.engine.request import FinishReason, GenerationRequest, SamplingParams, TokenOutput
from tests.families import VOCABULARY, build
from tests.reference import Steer, steered_logits
from tests.server.api.serving import byte_tokenizer, tiny_model
from tests.server.engine.driving import (
    GREEDY,
    alone,
    assert_nothing_held,
    engine_of,
    loaded,
    mixed_requests,
    plan_of,
    prompt_of,
    random_direction,
    run,
    tokens_of,
)

END = 100
HOT = SamplingParams(temperature=1.0, seed=7)


class Rule:
    """A grammar from a function: the tokens that may come after those that came; none: the answer is complete."""

    def __init__(self, may_follow: Callable[[tuple[int, ...]], Sequence[int]]) -> None:
        self.may_follow = may_follow
        self.num_started = 0

    def start(self) -> _RuleState:
        self.num_started += 1
        return _RuleState(self)


@dataclass
class _RuleState:
    rule: Rule
    so_far: tuple[int, ...] = ()

    @property
    def is_complete(self) -> bool:
        return not self.rule.may_follow(self.so_far)

    def fill_mask(self, words: Tensor) -> None:
        for token in self.rule.may_follow(self.so_far):
            bit = 1 << token % 32
            words[token // 32] |= bit - 2**32 if bit == 2**31 else bit  # words are signed

    def accept(self, token_id: int) -> None:
        if token_id not in self.rule.may_follow(self.so_far):
            raise GrammarFailed(f"{token_id} may not follow {self.so_far}")
        self.so_far = (*self.so_far, token_id)


def exactly(*tokens: int) -> Rule:
    return Rule(lambda so_far: tokens[len(so_far) : len(so_far) + 1])


EVEN = Rule(lambda so_far: range(0, VOCABULARY - 1, 2))
ODD_AND_END = Rule(lambda so_far: [*range(1, VOCABULARY, 2), END])


def constrained(name: str, grammar: Grammar, sampling: SamplingParams = HOT, **changes: object) -> GenerationRequest:
    request = GenerationRequest(name, prompt_of(9), 20, sampling, grammar=grammar)
    return replace(request, **changes)  # type: ignore[arg-type]


def answer_to(request: GenerationRequest) -> list[TokenOutput]:
    engine = engine_of(loaded())
    events = run(engine, [request])[request.request_id]
    engine.close()
    return events


@pytest.mark.parametrize(
    "sampling",
    [
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
    ],
)
def test_a_grammar_of_one_answer_gives_that_answer(sampling: SamplingParams) -> None:
    wanted = (31, 0, 63, 31, 31, 32, 99, 1)  # both ends of a word of the mask, and a token again and again
    events = answer_to(constrained("x", exactly(*wanted), sampling))
    assert tokens_of(events) == list(wanted)
    assert events[-1].finish_reason is FinishReason.STOP


@pytest.mark.parametrize("steers", [(), (Steer(random_direction(3), 1, scale=2.0),)])
def test_the_likeliest_allowed_token_by_a_plain_forward_pass(steers: tuple[Steer, ...]) -> None:
    model = build("llama")
    request = constrained("x", EVEN, GREEDY, plan=plan_of(*steers), num_logprobs=5)
    events = answer_to(request)
    tokens = list(request.prompt)
    forbidden_on_top = 0
    for event in events:
        logits = steered_logits(model, tokens, steers, len(request.prompt))[-1]
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


def test_sampling_keeps_the_proportions_of_what_is_allowed() -> None:
    """First tokens of many seeds against the softmax over the allowed tokens."""
    allowed = [2, 30, 31, 32, 77, END]
    engine = engine_of(loaded(), num_pages=2048, max_running=400, max_batch_tokens=4096)
    requests = [
        constrained(str(seed), Rule(lambda so_far: () if so_far else allowed), replace(HOT, seed=seed), max_tokens=1)
        for seed in range(400)
    ]
    drawn = [tokens_of(events)[0] for events in run(engine, requests).values()]
    engine.close()
    logits = steered_logits(build("llama"), prompt_of(9))[-1]
    expected = torch.softmax(logits[allowed], -1)
    for token, probability in zip(allowed, expected.tolist(), strict=True):
        assert drawn.count(token) / 400 == pytest.approx(probability, abs=0.08)
    assert set(drawn) <= set(allowed)


def constrained_requests() -> list[GenerationRequest]:
    steered = plan_of(Steer(random_direction(1), 1))
    ends = replace(HOT, stop_token_ids=frozenset({END}))
    return [
        constrained("even", EVEN),
        constrained("even again", EVEN, replace(HOT, seed=8), plan=steered),
        constrained("odd", ODD_AND_END, replace(ends, min_tokens=6), plan=steered),
        constrained("exact", exactly(*range(40, 55))),
        constrained("penalised", EVEN, replace(HOT, presence_penalty=2.0, repetition_penalty=1.5)),
    ]


@pytest.fixture(scope="module")
def expected() -> dict[str, list[int]]:
    """What each request gives alone."""
    model = loaded()
    return alone(model, [*constrained_requests(), *mixed_requests(model)])


@pytest.mark.parametrize(
    "changes", [{"max_batch_tokens": 7}, {"num_pages": 16, "max_batch_tokens": 32}, {"max_running": 3}]
)
def test_neighbours_chunks_and_preemption_change_nothing(
    expected: dict[str, list[int]], changes: dict[str, int]
) -> None:
    """Constrained requests among others: each gives what it gives alone, and so do the others."""
    model = loaded()
    requests = [*constrained_requests(), *mixed_requests(model)]
    engine = engine_of(model, **changes)
    for _ in range(2):  # seeds repeat
        outputs = run(engine, requests)
        assert {name: tokens_of(events) for name, events in outputs.items()} == expected
    assert (engine.stats().total_preemptions > 0) is ("num_pages" in changes)
    engine.close()
    assert all(token % 2 == 0 for name in ("even", "even again", "penalised") for token in expected[name])
    assert expected["even"] != expected["even again"]
    assert expected["exact"] == list(range(40, 55))


def test_an_end_is_held_back_as_long_as_anything_else_may_come() -> None:
    sampling = replace(HOT, stop_token_ids=frozenset({END}), logit_bias={END: 100.0})
    assert tokens_of(answer_to(constrained("free", ODD_AND_END, sampling))) == [END]
    held = tokens_of(answer_to(constrained("held", ODD_AND_END, replace(sampling, min_tokens=5))))
    assert END not in held[:5]
    assert held[5:] == [END]
    ends_early = Rule(lambda so_far: [END] if len(so_far) == 2 else [5, END])
    assert tokens_of(answer_to(constrained("early", ends_early, replace(sampling, min_tokens=5)))) == [5, 5, END]


def test_length_cuts_an_answer_and_a_stop_token_ends_one() -> None:
    cut = answer_to(constrained("cut", exactly(*range(30)), max_tokens=4))
    assert (tokens_of(cut), cut[-1].finish_reason) == ([0, 1, 2, 3], FinishReason.LENGTH)
    stops = replace(HOT, stop_token_ids=frozenset({3}))
    stopped = answer_to(constrained("stopped", exactly(*range(30)), stops))
    assert (tokens_of(stopped), stopped[-1].finish_reason) == ([0, 1, 2, 3], FinishReason.STOP)
    last = answer_to(constrained("last", exactly(0, 1, 2, 3), max_tokens=4))
    assert (tokens_of(last), last[-1].finish_reason) == ([0, 1, 2, 3], FinishReason.STOP)


@dataclass
class _BreaksState(_RuleState):
    after: int = 0

    def fill_mask(self, words: Tensor) -> None:
        if len(self.so_far) == self.after:
            raise GrammarFailed("it has grown too large")
        super().fill_mask(words)


@dataclass
class _Breaks:
    """Allows everything, and gives up on the mask after so many tokens."""

    after: int

    def start(self) -> _BreaksState:
        return _BreaksState(Rule(lambda so_far: range(VOCABULARY)), after=self.after)


def test_a_grammar_that_fails_ends_its_request_and_no_other(expected: dict[str, list[int]]) -> None:
    model = loaded()
    requests = mixed_requests(model)
    engine = engine_of(model)
    outputs = run(engine, [constrained("bad", _Breaks(0)), *requests, constrained("worse", _Breaks(3))])
    for name in ("bad", "worse"):
        assert outputs[name][-1].finish_reason is FinishReason.ERROR
        assert outputs[name][-1].error == "it has grown too large"
    assert (tokens_of(outputs["bad"]), len(tokens_of(outputs["worse"]))) == ([], 3)
    for request in requests:
        assert tokens_of(outputs[request.request_id]) == expected[request.request_id]
    engine.close()


def test_an_abort_in_the_middle_gives_everything_back() -> None:
    engine = engine_of(loaded())
    events: list[TokenOutput] = []
    engine.submit(constrained("x", EVEN, max_tokens=200), events.append)
    for _ in range(5):
        engine.step()
    engine.abort("x")
    while engine.step():
        pass
    assert events[-1].finish_reason is FinishReason.ABORT
    assert_nothing_held(engine)
    engine.close()


def test_only_what_runs_has_a_state() -> None:
    """States may be large, and thousands of requests may wait."""
    rule = Rule(lambda so_far: range(VOCABULARY))
    engine = engine_of(loaded(), max_running=2)
    for number in range(6):
        request = constrained(str(number), rule, max_tokens=3, prompt=prompt_of(9, seed=number))
        engine.submit(request, lambda output: None)
    assert rule.num_started == 0
    engine.step()
    assert rule.num_started == 2
    while engine.step():
        pass
    assert rule.num_started == 6
    engine.close()


_POINT = {
    "type": "object",
    "properties": {
        "x": {"type": "integer", "minimum": -99, "maximum": 99},
        "name": {"type": "string", "maxLength": 5},
        "tags": {"type": "array", "items": {"enum": ["a", "b", None]}, "maxItems": 3},
    },
    "required": ["x", "name"],
    "additionalProperties": False,
}
_SHORT = {"type": "integer", "minimum": 0, "maximum": 10**9}


def test_every_token_of_an_answer_by_a_matcher_that_starts_anew() -> None:
    """llguidance's grammars, many requests at a time and preempted: each token against a matcher of the prefix."""
    model = tiny_model()
    tokenizer = byte_tokenizer()
    compiler = GrammarCompiler(tokenizer, 259, {2})
    schemas = [_POINT, _SHORT]
    requests = [
        GenerationRequest(
            str(number),
            prompt_of(5 + number, vocabulary=259),
            120,
            SamplingParams(temperature=1.0, seed=number, ignore_eos=number % 3 == 0),
            plan_of(Steer(random_direction(number, 8.0), 1)) if number % 2 else plan_of(),
            grammar=compiler.compile(json_answer(schemas[number % 4 == 0])),
        )
        for number in range(16)
    ]
    engine = engine_of(model, num_pages=60, max_running=12)
    outputs = run(engine, requests)
    assert engine.stats().total_preemptions > 0
    engine.close()
    fresh = from_tokenizer(tokenizer, n_vocab=259, eos_token=[2])
    for number, request in enumerate(requests):
        tokens = tokens_of(outputs[request.request_id])
        assert outputs[request.request_id][-1].finish_reason is FinishReason.STOP
        written = [token for token in tokens if token != 2]
        for length in range(len(written)):
            source = json_answer(schemas[number % 4 == 0])
            matcher = LLMatcher(fresh, LLMatcher.grammar_from_lark(source), log_level=0)
            assert matcher.consume_tokens(written[:length])
            assert matcher.validate_tokens(written[length : length + 1]) == 1
        assert tokens[len(written) :] in ([], [2])
        value = json.loads(str(tokenizer.decode(written)))
        assert isinstance(value, int) if number % 4 == 0 else -99 <= value["x"] <= 99
