"""Calls in the format of each published family, through the official SDK: read, constrained, streamed and replayed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server.answers.call_templates import CHANNEL_TAGS, CHANNELS, FAMILIES, Family
from tests.server.answers.chat_templates import tokenizer_with
from tests.server.api.generation.dictating import serving_chats, together
from tests.server.api.serving import Server, vector

WEATHER: dict[str, Any] = {
    "name": "weather",
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "enum": ["Paris", "<think>"]},
            "days": {"type": "integer", "minimum": 1, "maximum": 9},
            "brief": {"type": "boolean"},
        },
        "required": ["city", "days"],
        "additionalProperties": False,
    },
}
REST: dict[str, Any] = {
    "name": "rest",
    "parameters": {"type": "object", "properties": {}, "additionalProperties": False},
}
TOOLS: Any = [{"type": "function", "function": function} for function in (WEATHER, REST)]
STRICT: Any = [{"type": "function", "function": function | {"strict": True}} for function in (WEATHER, REST)]
NAMED: Any = {"type": "function", "function": {"name": "rest"}}
NOTE: Any = [
    {
        "type": "function",
        "function": {
            "name": "note",
            "parameters": {
                "type": "object",
                "properties": {"text": {"type": "string"}, "count": {"type": "integer"}, "last": {"type": "boolean"}},
            },
        },
    }
]
SCHEMA: Any = {
    "type": "json_schema",
    "json_schema": {
        "name": "s",
        "schema": {"type": "object", "properties": {"a": {"enum": ["<tool_call>"]}}, "required": ["a"]},
    },
}
STEERED: dict[str, Any] = {"extra_body": {"steering": [{"vector": "v", "parts": ["content", "tool_calls"]}]}}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def server(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A model of the family, which says what it is told."""
    tokenizer = tokenizer_with(family.template, specials=family.tags if family.is_special else ())
    if not family.is_special:
        tokenizer.add_tokens(list(family.tags))
    folder: Path = tmp_path_factory.mktemp("data")
    with serving_chats(folder, family.template, tokenizer=tokenizer) as running:
        running.store.put("v", vector(1, 0))
        yield running


def ask(server: Server, said: str, **options: Any) -> Any:
    """The choice of an answer that begins with `said`, and the same from its stream."""
    body: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": said}], "seed": 3} | options
    whole, chunks = together(
        lambda is_stream: (
            streamed(server, body) if is_stream else server.sdk.chat.completions.create(**body).choices[0]
        ),
        [False, True],
    )
    assert "".join(chunk.delta.content or "" for chunk in chunks) == (whole.message.content or "")
    calls: dict[int, list[str]] = {}
    for chunk in chunks:
        for call in chunk.delta.tool_calls or []:
            calls.setdefault(call.index, ["", ""])
            calls[call.index][0] += call.function.name or ""
            calls[call.index][1] += call.function.arguments or ""
    assert [tuple(call) for call in calls.values()] == told(whole, parsed=False)
    return whole


def streamed(server: Server, body: dict[str, Any]) -> list[Any]:
    """What each chunk of the answer's stream says."""
    return [chunk.choices[0] for chunk in server.sdk.chat.completions.create(**body, stream=True) if chunk.choices]


def told(choice: Any, *, parsed: bool = True) -> list[Any]:
    calls = [(call.function.name, call.function.arguments) for call in choice.message.tool_calls or []]
    return [(name, json.loads(arguments)) for name, arguments in calls] if parsed else calls


def written(server: Server, *calls: tuple[str, dict[str, Any]]) -> str:
    """Calls as the template writes them."""
    made = [
        {"id": f"abcdefgh{index}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for index, (name, arguments) in enumerate(calls)
    ]
    messages: list[dict[str, Any]] = [{"role": "user", "content": "x"}]
    messages.append({"role": "assistant", "content": "", "tool_calls": made})
    rendered = server.text.render_chat(messages, add_generation_prompt=False)
    return rendered.rpartition("<|im_start|>assistant\n")[2].removesuffix("<|im_end|>\n")


TEXTS = ("a < b, {}", '{"name": "other"}', "let me see: <tool", "[note] (x)")
ONE: dict[str, Any] = {"parallel_tool_calls": False}


def two_notes(family: Family) -> list[tuple[str, dict[str, Any]]]:
    calls: list[tuple[str, dict[str, Any]]] = [
        ("note", {"text": 'a "b" < c', "count": 7, "last": True}),
        ("note", {"text": "d", "count": -1, "last": False}),
    ]
    return calls[: 1 + family.repeats]


def thoughtful(server: Server, family: Family) -> tuple[str, int]:
    """Calls after a thought, if the family has any, and how many tokens end within the last call's name."""
    text = ("<think>hm</think>" if family.thinks else "") + written(server, *two_notes(family))
    return text, len(server.text.encode(text[: text.rindex("note") + 2], add_special_tokens=False))


@pytest.fixture(scope="module")
def answers(server: Server, family: Family) -> dict[str, Any]:
    """The answers to all that the tests ask of a family."""
    thought = "<think>hm</think>" if family.thinks else ""
    cut, num_tokens = thoughtful(server, family)
    beginning = written(server, ("weather", {"city": "Paris", "days": 3})).partition("weather")[0]
    required = {"tools": TOOLS, "tool_choice": "required"}
    schema = {"said": thought + '{"a"', "response_format": SCHEMA}
    asked: dict[str, dict[str, Any]] = {
        "written": {"said": written(server, *two_notes(family)), "tools": NOTE},
        "cut": {"said": cut, "tools": NOTE, "max_tokens": num_tokens, "logprobs": True},
        "stopped": {"said": cut, "tools": NOTE, "stop": ["ount"]},
        **{text: {"said": text, "tools": NOTE} for text in TEXTS},
        "required": {"said": thought, **required, **ONE, **STEERED},
        "named": {"said": thought, "tools": TOOLS, "tool_choice": NAMED, **ONE},
        "many": {"said": thought, **required, "max_tokens": 150, "temperature": 1.5},
        "strict": {"said": beginning + "wea", "tools": STRICT, **ONE},
        "free": {"said": "No calls.", "tools": STRICT, "max_tokens": 15},
        "structured": schema,
        "structured beside tools": {**schema, "tools": TOOLS, "tool_choice": "none"},
        "to be answered": {"said": "<think></think>" if family.thinks else "", **required, **ONE},
    }
    return dict(zip(asked, together(lambda options: ask(server, **options), asked.values()), strict=True))


def test_what_the_template_writes_is_read(answers: dict[str, Any], family: Family) -> None:
    answer = answers["written"]
    assert (answer.finish_reason, answer.message.content) == ("tool_calls", None)
    assert told(answer) == two_notes(family)


def test_a_call_that_is_cut_leaves_no_markup(server: Server, answers: dict[str, Any], family: Family) -> None:
    """By `max_tokens` in the name of the last call, or by a stop string in the arguments of the first."""
    answer, stopped = answers["cut"], answers["stopped"]
    assert (answer.finish_reason, answer.message.content or "") == ("length", "")
    assert told(answer) == two_notes(family)[:-1]
    assert len(answer.logprobs.content) == thoughtful(server, family)[1]
    assert (stopped.finish_reason, stopped.message.content or "") == ("stop", "")


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_text(answers: dict[str, Any], text: str) -> None:
    assert (answers[text].message.content, answers[text].message.tool_calls) == (text, None)


def test_required_calls_come_and_are_valid(answers: dict[str, Any], family: Family) -> None:
    """With steering and without, and however many there are."""
    for kind in ("required", "named"):
        ((name, arguments),) = told(answers[kind])
        check(name, arguments)
        assert (answers[kind].finish_reason, answers[kind].message.content) == ("tool_calls", None)
        assert kind == "required" or name == "rest"
        thought = (answers[kind].message.model_extra or {}).get("reasoning_content")
        assert thought == ("hm" if family.thinks else None)
    many = answers["many"]
    for name, written_arguments in told(many, parsed=False)[: None if many.finish_reason == "tool_calls" else -1]:
        check(name, json.loads(written_arguments))
    if many.finish_reason == "tool_calls":
        assert len(told(many)) == 1 or family.repeats


def check(name: str, arguments: dict[str, Any]) -> None:
    assert name in ("weather", "rest")
    if name == "weather":
        assert arguments["city"] in ("Paris", "<think>")
        assert 1 <= arguments["days"] <= 9
        assert isinstance(arguments.get("brief", True), bool)
    else:
        assert arguments == {}


def test_strict_calls_are_kept_to_their_schema(answers: dict[str, Any]) -> None:
    ((name, arguments),) = told(answers["strict"])
    assert name == "weather"
    check(name, arguments)
    assert (answers["free"].message.content or "").startswith("No calls.")


def test_structured_output_quotes_a_tag(answers: dict[str, Any]) -> None:
    for name in ("structured", "structured beside tools"):
        assert json.loads(answers[name].message.content) == {"a": "<tool_call>"}


def test_a_call_can_be_answered_and_a_cut_one_replayed(server: Server, answers: dict[str, Any]) -> None:
    (call,) = answers["to be answered"].message.tool_calls

    def replayed(arguments: str) -> Any:
        made = {"id": call.id, "type": "function", "function": {"name": "weather", "arguments": arguments}}
        messages = [
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": None, "tool_calls": [made]},
            {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
            {"role": "user", "content": "yes"},
        ]
        return server.sdk.chat.completions.create(model="tiny", messages=messages, tools=TOOLS)  # type: ignore[arg-type]

    for replay in together(replayed, (call.function.arguments, '{"city": "Par', "")):
        assert replay.choices[0].message.content == "yes"


@pytest.fixture(scope="module")
def channels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A model that answers in channels."""
    tokenizer = tokenizer_with(CHANNELS, specials=CHANNEL_TAGS)
    with serving_chats(tmp_path_factory.mktemp("data"), CHANNELS, tokenizer=tokenizer) as running:
        running.store.put("v", vector(1, 0))
        yield running


THOUGHT = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant"


def test_channels_are_read(channels: Server) -> None:
    answer = ask(channels, f"{THOUGHT}<|channel|>final<|message|>Hello.", tools=TOOLS, stop=["hm"])
    assert (answer.message.content, answer.message.model_extra) == ("Hello.", {"reasoning_content": "hm"})
    headers = (
        "<|channel|>commentary to=functions.rest <|constrain|>json",
        " to=functions.rest<|channel|>commentary json",
    )
    for answer in together(lambda header: ask(channels, f"{THOUGHT}{header}<|message|>{{}}", tools=TOOLS), headers):
        assert (told(answer), answer.finish_reason) == ([("rest", {})], "tool_calls")


@pytest.mark.parametrize("options", [{}, STEERED], ids=["", "steered"])
@pytest.mark.parametrize("thought", ["", THOUGHT])
def test_answers_in_channels_are_constrained(channels: Server, options: dict[str, Any], thought: str) -> None:
    if not thought:  # the model is not to begin one that never ends
        thought = "<|channel|>commentary"
    asked: list[dict[str, Any]] = [
        {"said": thought, "tools": TOOLS, "tool_choice": "required"},
        {"said": thought, "tools": TOOLS, "tool_choice": NAMED},
    ]
    if thought == THOUGHT:
        asked.append({"said": f"{thought}<|channel|>final", "response_format": SCHEMA})
        asked.append({"said": f"{thought}<|channel|>final<|message|>No", "tools": STRICT, "max_tokens": 40})
    required, named, *answers = together(lambda more: ask(channels, **more, **options), asked)
    ((name, arguments),) = told(required)
    check(name, arguments)
    assert told(named) == [("rest", {})]
    if thought == THOUGHT:
        structured, free = answers
        assert json.loads(structured.message.content) == {"a": "<tool_call>"}
        assert free.message.content.startswith("No")


def test_the_tokenizers_end_token_ends_an_answer(tmp_path: Path) -> None:
    """Although the model's configuration names another one."""
    tokenizer = tokenizer_with(FAMILIES["hermes"].template)
    tokenizer.eos_token = "!"
    with serving_chats(tmp_path, FAMILIES["hermes"].template, tokenizer=tokenizer) as server:
        assert ask(server, "yes! more").message.content == "yes"
        ignoring = server.sdk.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "yes! more"}],
            extra_body={"ignore_eos": True},
            max_tokens=9,
        )
        assert (ignoring.choices[0].message.content or "").endswith("more")
