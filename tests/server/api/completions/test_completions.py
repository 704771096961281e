"""Completions through the official SDK against a real server."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from tests.server.api.serving import Server


def complete(server: Server, **options: Any) -> Any:
    """A greedy completion of 12 tokens, unless `options` say otherwise."""
    asked: dict[str, Any] = {"model": "tiny", "prompt": "Once upon", "max_tokens": 12, "temperature": 0}
    return server.sdk.completions.create(**(asked | options))


def test_a_completion_has_openais_shape(server: Server) -> None:
    answer = complete(server)
    assert (answer.object, answer.model, answer.id[:5]) == ("text_completion", "tiny", "cmpl-")
    assert (answer.choices[0].finish_reason, answer.choices[0].logprobs) == ("length", None)
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (9, 12)
    assert answer.steering == []


def test_prompts_as_text_and_as_tokens_alone_and_in_lists(server: Server) -> None:
    prompts = ["Once upon", "a hill"]
    token_ids = [server.text.encode(prompt) for prompt in prompts]
    alone = [complete(server, prompt=prompt).choices[0].text for prompt in prompts]
    assert [complete(server, prompt=ids).choices[0].text for ids in token_ids] == alone
    for batch in (prompts, token_ids, [prompts[0], token_ids[1]]):
        answer = complete(server, prompt=batch)
        assert [choice.text for choice in answer.choices] == alone
        assert [choice.index for choice in answer.choices] == [0, 1]
        assert answer.usage.prompt_tokens == sum(map(len, token_ids))


def test_choices_are_numbered_prompt_by_prompt(server: Server) -> None:
    options: dict[str, Any] = {"n": 3, "seed": 4, "temperature": 1}
    both = complete(server, prompt=["Once upon", "a hill"], **options)
    apart = [complete(server, prompt=prompt, **options) for prompt in ("Once upon", "a hill")]
    assert [choice.text for choice in both.choices] == [choice.text for one in apart for choice in one.choices]


def test_echo_gives_the_prompt_back(server: Server) -> None:
    text = complete(server).choices[0].text
    assert complete(server, echo=True).choices[0].text == "Once upon" + text
    assert complete(server, prompt=server.text.encode("Once upon"), echo=True).choices[0].text == "Once upon" + text
    nothing = complete(server, echo=True, max_tokens=0)
    assert (nothing.choices[0].text, nothing.usage.completion_tokens) == ("Once upon", 0)


def test_echoed_logprobs_cover_prompt_and_answer(server: Server) -> None:
    answer = complete(server, echo=True, logprobs=2, max_tokens=3).choices[0]
    logprobs = answer.logprobs
    assert len(logprobs.tokens) == 9 + 3
    assert (logprobs.token_logprobs[0], logprobs.top_logprobs[0]) == (None, None)
    assert all(value < 0 for value in logprobs.token_logprobs[1:])
    assert logprobs.text_offset[:10] == list(range(10))
    for token, value, top in list(zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True))[
        1:
    ]:
        assert top[token] == value
        assert 2 <= len(top) <= 3
    longer = complete(server, prompt="Once upo", echo=True, logprobs=0, max_tokens=0, extra_body={}).choices[0].logprobs
    assert longer.token_logprobs[1:] == pytest.approx(logprobs.token_logprobs[1:8], abs=1e-4)


def test_a_prompts_logprobs_are_steered_where_the_prompt_is(server: Server) -> None:
    def prompt_logprobs(**options: Any) -> list[float]:
        answer = complete(server, echo=True, logprobs=0, max_tokens=0, **options)
        logprobs: list[float] = answer.choices[0].logprobs.token_logprobs[1:]
        return logprobs

    plain = prompt_logprobs()
    steer = {"vector": "calm", "scale": 2.0}
    assert prompt_logprobs(extra_body={"steering": [steer]}) == pytest.approx(plain, abs=1e-5)
    everywhere = prompt_logprobs(extra_body={"steering": [steer | {"positions": "all"}]})
    assert everywhere != pytest.approx(plain, abs=1e-2)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"echo": True, "logprobs": 1},
        {"prompt": ["Once upon", "a hill"], "n": 2, "seed": 1, "temperature": 1, "logprobs": 0},
        {"stop": ["\ufffd"], "echo": True},
        {"model": "tiny+calm:-1"},
    ],
)
def test_a_stream_says_what_the_whole_answer_says(server: Server, options: dict[str, Any]) -> None:
    whole = complete(server, **options)
    chunks = list(complete(server, stream=True, stream_options={"include_usage": True}, **options))
    for choice in whole.choices:
        parts = [part for chunk in chunks for part in chunk.choices if part.index == choice.index]
        assert "".join(part.text for part in parts) == choice.text
        assert [part.finish_reason for part in parts if part.finish_reason] == [choice.finish_reason]
        if choice.logprobs is not None:
            logprobs = [part.logprobs for part in parts if part.logprobs is not None]
            assert [token for entry in logprobs for token in entry.tokens] == choice.logprobs.tokens
            assert [offset for entry in logprobs for offset in entry.text_offset] == choice.logprobs.text_offset
    assert chunks[-1].usage.model_dump() | {"prompt_tokens_details": None} == whole.usage.model_dump() | {
        "prompt_tokens_details": None
    }
    assert chunks[0].steering == whole.steering


def test_the_default_is_sixteen_tokens(server: Server) -> None:
    answer = complete(server, max_tokens=None, extra_body={"ignore_eos": True})
    assert answer.usage.completion_tokens == 16


def test_token_ids_come_back_when_asked_for(server: Server) -> None:
    answer = complete(server, extra_body={"return_token_ids": True}).choices[0]
    assert answer.prompt_token_ids == server.text.encode("Once upon")
    assert len(answer.token_ids) == 12


def test_the_best_are_the_likeliest_a_token(server: Server) -> None:
    ends = {"stop_token_ids": list(range(60, 100))}
    options: dict[str, Any] = {"prompt": ["Once upon", "a hill"], "seed": 7, "temperature": 1.2, "extra_body": ends}
    every = complete(server, n=8, logprobs=0, **options)
    means = [sum(choice.logprobs.token_logprobs) / len(choice.logprobs.token_logprobs) for choice in every.choices]
    assert len({len(choice.logprobs.tokens) for choice in every.choices}) > 2  # so that a mean is no sum
    wanted = []
    for first in (0, 8):
        order = sorted(range(first, first + 8), key=lambda index: means[index], reverse=True)
        wanted += [every.choices[index].text for index in order[:3]]
    best = complete(server, best_of=8, n=3, **options)
    assert [choice.text for choice in best.choices] == wanted
    assert [choice.index for choice in best.choices] == list(range(6))
    assert [choice.logprobs for choice in best.choices] == [None] * 6
    assert best.usage.completion_tokens == every.usage.completion_tokens
    assert best.usage.prompt_tokens == every.usage.prompt_tokens
    shown = complete(server, best_of=8, n=3, echo=True, logprobs=1, **options)
    assert [choice.text for choice in shown.choices] == [
        options["prompt"][index // 3] + text for index, text in enumerate(wanted)
    ]
    assert all(len(choice.logprobs.top_logprobs[-1]) >= 1 for choice in shown.choices)


def test_best_of_as_many_as_are_told_changes_nothing(server: Server) -> None:
    options: dict[str, Any] = {"n": 3, "seed": 4, "temperature": 1}
    plain, best = complete(server, **options), complete(server, best_of=3, **options)
    assert [choice.text for choice in best.choices] == [choice.text for choice in plain.choices]
    assert list(complete(server, best_of=3, stream=True, **options))


@pytest.mark.parametrize(
    ("options", "code", "param"),
    [
        ({"best_of": 2, "n": 3}, "invalid_value", "best_of"),
        ({"best_of": 2, "stream": True}, "invalid_value", "best_of"),
        ({"best_of": 129}, "invalid_value", "best_of"),
        ({"suffix": "."}, "unsupported_parameter", "suffix"),
        ({"prompt": []}, "invalid_type", "prompt"),
        ({"prompt": ""}, "empty_prompt", "prompt"),
        ({"prompt": [[1, 2], [999]]}, "invalid_token", "prompt.1"),
        ({"prompt": ["a", [1.5]]}, "invalid_type", "prompt.1"),
        ({"prompt": "a" * 600}, "context_length_exceeded", "prompt"),
        ({"max_tokens": 505}, "context_length_exceeded", "prompt"),
    ],
)
def test_refusals_name_the_field(server: Server, options: dict[str, Any], code: str, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        complete(server, **options)
    assert (caught.value.code, caught.value.param) == (code, param)
    assert complete(server, best_of=1).choices[0].text
