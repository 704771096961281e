"""What `parts` leave alone, over HTTP: every token is as likely as under a plain hook that reads the answer's text."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch

from server.demo.documents import CHAT_TEMPLATE
from tests.reference import Steer, steered_logits
from tests.server.api.generation.dictating import serving_chats, together
from tests.server.api.serving import LAYERS, Server, byte_tokenizer, direction, tiny_module, vector

TEMPLATE = CHAT_TEMPLATE + "{# <think></think> #}"
CALL = '<tool_call>\n{"name": "f", "arguments": {"a": [1]}}\n</tool_call>'
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
JSON = {"type": "json_schema", "json_schema": {"name": "j", "schema": {"enum": [{"a": 1}, {"b": 22}]}}}
MOODS = [f"{letter}{number}" for letter in "abcdefgh" for number in range(10)]
TOKENIZER = byte_tokenizer(None)

PartOfText = Callable[[str], str]
"""The part that comes after this beginning of an answer."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A model that repeats what it is told."""
    with serving_chats(tmp_path_factory.mktemp("data"), TEMPLATE, num_layers=LAYERS) as running:
        running.store.put("calm", vector(1))
        running.store.put("loud", vector(1).with_defaults(parts=["tool_calls"]))
        yield running


def between(opening: str, closing: str, part: str, outside: str = "content") -> PartOfText:
    """`part` after `opening` and until `closing` is complete."""
    return lambda text: part if opening in text and closing not in text.rpartition(opening)[2] else outside


IN_CALL = between("<tool_call>", "</tool_call>", "tool_calls")
IN_THOUGHT = between("<think>", "</think>", "reasoning")
DEFAULT = ("reasoning", "content", "structured")

CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any], tuple[str, ...], PartOfText]] = {
    "calls are left alone": (f"Well.{CALL}\n{CALL} So.", {"tools": TOOLS}, {}, DEFAULT, IN_CALL),
    "calls only": (f"Well.{CALL} So.", {"tools": TOOLS}, {"parts": ["tool_calls"]}, ("tool_calls",), IN_CALL),
    "the vector's own": (f"Well.{CALL}", {"tools": TOOLS}, {"vector": "loud"}, ("tool_calls",), IN_CALL),
    "a call that no tool is for": (f"Well.{CALL}", {}, {}, DEFAULT, lambda text: "content"),
    "after the reasoning": ("<think>Hm.</think> Yes.", {}, {"parts": ["content"]}, ("content",), IN_THOUGHT),
    "the reasoning": ("<think>Hm.</think> Yes.", {}, {"parts": ["reasoning"]}, ("reasoning",), IN_THOUGHT),
    "structured": ('{"b": 22}', {"response_format": JSON}, {}, DEFAULT, lambda text: "structured"),
    "not the structured": (
        '{"b": 22}',
        {"response_format": JSON},
        {"parts": ["content"]},
        ("content",),
        lambda text: "structured",
    ),
    "a call that must be": (
        CALL,
        {"tools": TOOLS, "tool_choice": "required"},
        {},
        DEFAULT,
        lambda text: "tool_calls",
    ),
}


@pytest.fixture(scope="module")
def answers(server: Server) -> dict[str, Any]:
    """The answer to each case."""

    def ask(name: str) -> Any:
        text, options, entry, _, _ = CASES[name]
        body = {
            "messages": [{"role": "user", "content": text}],
            "temperature": 0,
            "max_tokens": 400,
            "logprobs": True,
            "return_token_ids": True,
            "steering": [{"vector": "calm", "scale": 0.7} | entry],
        }
        return server.http.post("/v1/chat/completions", json=body | options).json()

    return dict(zip(CASES, together(ask, CASES), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_tokens_are_as_likely_as_under_a_hook_that_knows_the_parts(answers: dict[str, Any], name: str) -> None:
    text, _, _, parts, part_of_text = CASES[name]
    answer = answers[name]
    (choice,) = answer["choices"]
    assert answer["steering"][0]["parts"] == list(parts)
    prompt, said = answer["prompt_token_ids"], choice["token_ids"]
    assert str(TOKENIZER.decode(said)).startswith(text)

    def part_of(response: Sequence[int]) -> str:
        return part_of_text(str(TOKENIZER.decode(list(response))))

    steer = Steer(direction(2), 1, scale=0.7, parts=parts)
    logits = steered_logits(tiny_module(), [*prompt, *said], [steer], len(prompt), part_of)
    expected = torch.log_softmax(logits[len(prompt) - 1 : -1], -1).gather(1, torch.tensor(said)[:, None])[:, 0]
    shown = torch.tensor([token["logprob"] for token in choice["logprobs"]["content"]])
    torch.testing.assert_close(shown, expected, atol=1e-4, rtol=0)


def test_a_steered_model_still_writes_calls_that_parse(server: Server) -> None:
    """However strong: a call that is left alone is the unsteered model's, one that is steered is kept to its schema."""
    ask = {"messages": [{"role": "user", "content": "<tool_call>"}], "temperature": 0, "max_tokens": 300}
    tools = {"tools": [_enumerating_tool()], "tool_choice": "required", "parallel_tool_calls": False}
    told = []
    for entry in ({"scale": 0}, {"scale": 200}, {"scale": 200, "parts": ["tool_calls"]}):
        steering = [{"vector": "calm", **entry}]
        answer = server.http.post("/v1/chat/completions", json=ask | tools | {"steering": steering}).json()
        assert answer["choices"][0]["finish_reason"] == "tool_calls", answer
        (call,) = answer["choices"][0]["message"]["tool_calls"]
        told.append(json.loads(call["function"]["arguments"]))
    assert told[0] == told[1]
    assert all(arguments["mood"] in MOODS for arguments in told)


def _enumerating_tool() -> dict[str, Any]:
    schema = {"type": "object", "properties": {"mood": {"enum": MOODS}}, "required": ["mood"]}
    return {"type": "function", "function": {"name": "f", "parameters": schema, "strict": True}}
