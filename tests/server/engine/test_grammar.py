"""Constrained decoding in the engine: only what the grammar allows, from the model's own logits.

Grammars of a few lines stand for what no library could know; llguidance's are checked by reading each answer again,
token by token, with a matcher that never saw the engine.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from llguidance import LLMatcher
from llguidance.hf import from_tokenizer

from server.answers.compiler import GrammarCompiler
from server.answers.grammar_source import json_answer
from server.engine.grammar import Grammar
from server.engine.request import EngineRequest, FinishReason, Generate, SamplingParams
from tests.families import VOCABULARY, build
from tests.reference import Steer, steered_logits
from tests.server.api.serving import byte_tokenizer, tiny_model
from tests.server.engine.driving import (
    alone,
    engine_of,
    loaded,
    mixed_requests,
    num_preemptions,
    plan_of,
    prompt_of,
    random_direction,
    run,
    tokens_of,
)
from tests.server.engine.grammars import END, EVEN, ODD_AND_END, Rule, exactly

HOT = SamplingParams(temperature=1.0, seed=7)


def constrained(name: str, grammar: Grammar, sampling: SamplingParams = HOT, **changes: object) -> EngineRequest:
    work = {key: changes.pop(key) for key in ("max_tokens", "num_logprobs") if key in changes}
    generate = replace(Generate(20, sampling, grammar=grammar), **work)  # type: ignore[arg-type]
    return replace(EngineRequest(name, prompt_of(9), generate), **changes)  # type: ignore[arg-type]


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


def constrained_requests() -> list[EngineRequest]:
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
    assert (num_preemptions(engine) > 0) is ("num_pages" in changes)
    engine.close()
    assert all(token % 2 == 0 for name in ("even", "even again", "penalised") for token in expected[name])
    assert expected["even"] != expected["even again"]
    assert expected["exact"] == list(range(40, 55))


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
        EngineRequest(
            str(number),
            prompt_of(5 + number, vocabulary=259),
            Generate(
                120,
                SamplingParams(temperature=1.0, seed=number, ignore_eos=number % 3 == 0),
                grammar=compiler.compile(json_answer(schemas[number % 4 == 0])),
            ),
            plan_of(Steer(random_direction(number, 8.0), 1)) if number % 2 else plan_of(),
        )
        for number in range(16)
    ]
    engine = engine_of(model, num_pages=60, max_running=12)
    outputs = run(engine, requests)
    assert num_preemptions(engine) > 0
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
