"""Tools through the official SDK: who may be called, what a call looks like whole and streamed, and a complete loop."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from server.demo.documents import CHAT_TEMPLATE
from tests.server.api.chat.shapes import exactly
from tests.server.api.generation.dictating import serving_chats
from tests.server.api.serving import LAYERS, Server, byte_tokenizer


class Weather(BaseModel):
    """The weather somewhere."""

    model_config = ConfigDict(extra="forbid", strict=True)
    city: Literal["Paris", 'Rome "la bella" </tool_call>']
    days: int = Field(ge=1, le=9)


class Rest(BaseModel):
    """Nothing to do."""

    model_config = ConfigDict(extra="forbid", strict=True)
    why: list[Literal["tired", "late"]] = Field(min_length=1, max_length=2)


class Verdict(BaseModel):
    """A structured answer."""

    model_config = ConfigDict(extra="forbid", strict=True)
    is_right: bool
    grade: Literal[1, 2, 3]


MODELS: dict[str, type[BaseModel]] = {"Weather": Weather, "Rest": Rest}
STRICT: list[Any] = [openai.pydantic_function_tool(model) for model in MODELS.values()]
LOOSE: list[Any] = [
    {"type": "function", "function": {name: value for name, value in tool["function"].items() if name != "strict"}}
    for tool in STRICT
]
HELLO: Any = [{"role": "user", "content": "hello there"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A model that says what comes to its mind."""
    with serving_chats(tmp_path_factory.mktemp("data"), CHAT_TEMPLATE, repeats=False) as running:
        yield running


@pytest.fixture(scope="module")
def repeating(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A model that repeats what it is told; of these weights, what it goes on with by itself ends soon."""
    with serving_chats(tmp_path_factory.mktemp("data"), CHAT_TEMPLATE, num_layers=LAYERS) as running:
        yield running


def saying(text: str) -> Any:
    """What makes the repeating model say `text`."""
    return [{"role": "user", "content": text}]


def ask(server: Server, **options: Any) -> ChatCompletion:
    """A seeded chat about the weather, whose answer is checked against the SDK's types."""
    raw = server.sdk.chat.completions.with_raw_response.create(**(BASE | options))
    answer: ChatCompletion = exactly(ChatCompletion, json.loads(raw.text))
    return answer


BASE: dict[str, Any] = {"model": "tiny", "messages": HELLO, "tools": STRICT, "seed": 7, "temperature": 1.2}


def streamed(server: Server, **options: Any) -> list[ChatCompletionChunk]:
    """The chunks of the same, checked too."""
    with server.sdk.chat.completions.with_streaming_response.create(**(BASE | options), stream=True) as response:
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    return [exactly(ChatCompletionChunk, json.loads(line)) for line in lines[:-1]]


def told(choice: Any) -> list[tuple[str, str]]:
    return [(call.function.name, call.function.arguments) for call in choice.message.tool_calls or []]


def check_calls(choice: Any) -> list[str]:
    """The names of valid calls, each with an id of its own."""
    for name, arguments in told(choice):
        MODELS[name].model_validate_json(arguments)
    ids = [call.id for call in choice.message.tool_calls]
    assert len(set(ids)) == len(ids)
    return [name for name, _ in told(choice)]


VERDICT_FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "v", "schema": Verdict.model_json_schema()}}
NAMED: Any = {"type": "function", "function": {"name": "Rest"}}


def allowed(mode: str, *names: str) -> Any:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


@pytest.mark.parametrize(
    ("choice", "names"),
    [("required", {"Weather", "Rest"}), (NAMED, {"Rest"}), (allowed("required", "Weather"), {"Weather"})],
)
@pytest.mark.parametrize("tools", [STRICT, LOOSE], ids=["strict", "loose"])
def test_a_call_that_must_come_comes_and_is_valid(server: Server, choice: Any, names: set[str], tools: Any) -> None:
    seen = set()
    for answer in ask(server, tool_choice=choice, tools=tools, n=4, parallel_tool_calls=False).choices:
        assert (answer.finish_reason, answer.message.content) == ("tool_calls", None)
        (name,) = check_calls(answer)
        seen.add(name)
    assert seen <= names


def test_parallel_calls_may_be_several(server: Server) -> None:
    choices = ask(server, tool_choice="required", n=10, max_tokens=250).choices
    counts = {len(check_calls(choice)) for choice in choices if choice.finish_reason == "tool_calls"}
    assert max(counts) > 1


def test_the_stream_of_calls_says_what_the_whole_answer_says(server: Server) -> None:
    options = {"tool_choice": "required", "n": 3, "max_tokens": 200}
    whole = ask(server, **options)
    chunks = streamed(server, **options, stream_options={"include_usage": True})
    for choice in whole.choices:
        parts = [part for chunk in chunks for part in chunk.choices if part.index == choice.index]
        assert joined(parts) == told(choice)
        assert [part.finish_reason for part in parts if part.finish_reason] == [choice.finish_reason]
        assert choice.finish_reason == "length" or not any(part.delta.content for part in parts)
    assert len({tuple(told(choice)) for choice in whole.choices}) == 3
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def joined(parts: list[Any]) -> list[tuple[str, str]]:
    """The calls of a stream: an index for each, id, type and name once, arguments in pieces."""
    names: dict[int, str] = {}
    arguments: dict[int, list[str]] = {}
    for part in parts:
        for call in part.delta.tool_calls or []:
            is_first = call.index not in names
            assert (call.id is not None, call.type, call.function.name is not None) == (
                is_first,
                "function" if is_first else None,
                is_first,
            )
            if is_first:
                assert call.index == len(names)
                names[call.index] = call.function.name
            arguments.setdefault(call.index, []).append(call.function.arguments)
    return [(name, "".join(arguments[index])) for index, name in names.items()]


CALL = '<tool_call>\n{"name": "Weather", "arguments": {"city": "Paris", "days": 3}}\n</tool_call>'


@pytest.mark.parametrize("options", [{}, {"tool_choice": "auto", "parallel_tool_calls": True}])
def test_a_call_of_the_models_own(repeating: Server, options: Any) -> None:
    text = f"On it.\n{CALL}\n{CALL.replace('Paris', 'Rome')}"
    (answer,) = ask(repeating, messages=saying(text), tools=LOOSE, **options).choices
    assert (answer.finish_reason, answer.message.content) == ("tool_calls", "On it.")
    assert told(answer) == [("Weather", f'{{"city": "{city}", "days": 3}}') for city in ("Paris", "Rome")]
    parts = [chunk.choices[0] for chunk in streamed(repeating, messages=saying(text), tools=LOOSE, **options)]
    assert joined(parts) == told(answer)
    assert "".join(part.delta.content or "" for part in parts) == "On it."
    assert sum(len(part.delta.tool_calls or []) for part in parts) > 20, "arguments come while they are written"


def test_text_is_text_when_nothing_may_be_called(repeating: Server) -> None:
    for options in ({"tool_choice": "none"}, {"tools": openai.omit}):
        (answer,) = ask(repeating, messages=saying(CALL), **options).choices
        assert (answer.finish_reason, answer.message.content, answer.message.tool_calls) == ("stop", CALL, None)


@pytest.mark.parametrize(
    "text", ["plain", "<tool_call>nothing</tool_call> ", "ends in <tool_ca", '<tool_call>{"na', " \n"]
)
def test_an_answer_without_calls_is_content_to_the_letter(repeating: Server, text: str) -> None:
    (answer,) = ask(repeating, messages=saying(text), tools=LOOSE).choices
    assert (answer.finish_reason, answer.message.content, answer.message.tool_calls) == ("stop", text, None)
    parts = [chunk.choices[0] for chunk in streamed(repeating, messages=saying(text), tools=LOOSE)]
    assert "".join(part.delta.content or "" for part in parts) == text


KEPT: list[tuple[dict[str, Any], set[str]]] = [
    ({"tools": STRICT}, {"Weather", "Rest"}),
    ({"tools": LOOSE, "parallel_tool_calls": False}, {"Weather", "Rest"}),
    ({"tools": LOOSE, "tool_choice": allowed("auto", "Rest")}, {"Rest"}),
]


@pytest.mark.parametrize(("options", "names"), KEPT, ids=["strict", "one", "allowed"])
def test_auto_calls_are_kept_to_a_schema(repeating: Server, options: Any, names: set[str]) -> None:
    """It is made to begin a call; how it goes on is up to the grammar."""
    answers = ask(repeating, messages=saying("On it. <tool_call>"), n=4, max_tokens=110, **options).choices
    called = [(choice, told(choice)[0]) for choice in answers]
    for choice, (name, arguments) in called:
        MODELS[name].model_validate_json(arguments)
        assert name in names
        assert (choice.message.content or "").startswith("On it.")
        if not options.get("parallel_tool_calls", True):
            assert (choice.finish_reason, choice.message.content, len(told(choice))) == ("tool_calls", "On it.", 1)
    free = ask(repeating, messages=saying("No calls."), max_tokens=20, **options).choices[0]
    assert (free.message.content or "").startswith("No calls.")


def test_tools_and_a_schema_together(server: Server, repeating: Server) -> None:
    options = {"response_format": VERDICT_FORMAT, "parallel_tool_calls": False}
    kinds = set()
    for choice in ask(server, n=12, **options).choices:
        if choice.finish_reason == "tool_calls":
            check_calls(choice)
        else:
            Verdict.model_validate_json(choice.message.content or "")
        kinds.add(choice.finish_reason)
    assert "stop" in kinds
    assert check_calls(ask(repeating, messages=saying("<"), **options).choices[0])
    assert Verdict.model_validate_json(ask(repeating, messages=saying("{"), **options).choices[0].message.content or "")
    assert check_calls(ask(server, tool_choice=NAMED, **options).choices[0]) == ["Rest"]


def test_the_sdk_parses_calls_and_answers(server: Server) -> None:
    called = server.sdk.chat.completions.parse(**(BASE | {"tool_choice": "required", "parallel_tool_calls": False}))
    (call,) = called.choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, Weather | Rest)
    said = server.sdk.chat.completions.parse(**(BASE | {"tools": openai.omit, "response_format": Verdict}))
    assert isinstance(said.choices[0].message.parsed, Verdict)


def test_the_sdks_stream_helper(server: Server) -> None:
    options = BASE | {"tool_choice": NAMED}
    with server.sdk.chat.completions.stream(**options) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert {"tool_calls.function.arguments.delta", "tool_calls.function.arguments.done"} <= set(kinds)
    (call,) = final.choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, Rest)
    assert final.choices[0].finish_reason == "tool_calls"
    with server.sdk.chat.completions.stream(**(BASE | {"tools": openai.omit, "response_format": Verdict})) as stream:
        assert "content.done" in [event.type for event in stream]
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Verdict)


def test_a_complete_loop(repeating: Server) -> None:
    """Ask, call, run, answer: every step goes back as the SDK gave it, and the template sees all of it."""
    messages: list[Any] = saying(f"Let me see.\n{CALL}\n{CALL}")
    asked = ask(repeating, messages=messages, tools=LOOSE).choices[0].message
    messages.append(asked)
    for call in asked.tool_calls or []:
        assert call.type == "function"
        days = TypeAdapter(Weather).validate_json(call.function.arguments, strict=True).days
        messages.append(
            {"role": "tool", "tool_call_id": call.id, "content": [{"type": "text", "text": f"{days} sunny"}]}
        )
    messages += saying("It will be sunny.")
    answer = ask(repeating, messages=messages, tools=LOOSE, extra_body={"return_token_ids": True})
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("It will be sunny.", "stop")
    assert answer.model_extra is not None
    arguments = {"city": "Paris", "days": 3}
    rendered = byte_tokenizer(CHAT_TEMPLATE).apply_chat_template(
        [
            *saying(f"Let me see.\n{CALL}\n{CALL}"),
            {
                "role": "assistant",
                "content": "Let me see.",
                "tool_calls": [{"type": "function", "function": {"name": "Weather", "arguments": arguments}}] * 2,
            },
            *[{"role": "tool", "content": "3 sunny"}] * 2,
            *saying("It will be sunny."),
        ],
        tools=[named(tool) for tool in LOOSE],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=False,
    )
    assert answer.model_extra["prompt_token_ids"] == rendered


def named(tool: Any) -> Any:
    """A tool with its fields in the order that templates are given them."""
    function = tool["function"]
    return {"type": "function", "function": {name: function[name] for name in ("name", "description", "parameters")}}


UNKEPT: Any = {
    "type": "function",
    "function": {
        "name": "tag",
        "parameters": {"type": "object", "properties": {"tags": {"type": "array", "uniqueItems": True}}},
    },
}
"""A tool whose schema cannot be enforced."""


def test_a_tool_that_need_not_keep_to_its_schema_spoils_no_request(server: Server) -> None:
    for tools, options in ((LOOSE, {}), (STRICT, {}), (STRICT, {"parallel_tool_calls": False})):
        assert ask(server, tools=[*tools, UNKEPT], max_tokens=2, **options).choices
    assert ask(server, tools=[*LOOSE, UNKEPT], tool_choice=NAMED, max_tokens=2).choices
    assert ask(server, tools=[*LOOSE, UNKEPT], tool_choice=allowed("required", "Rest"), max_tokens=2).choices


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "tag"}}], ids=str)
def test_a_tool_that_must_keep_to_its_schema_is_named(server: Server, choice: Any) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        ask(server, tools=[*LOOSE, UNKEPT], tool_choice=choice)
    assert refused.value.param == f"tools.{len(LOOSE)}"
    assert "'tag'" in str(refused.value)
    assert "the keywords uniqueItems are not supported; expected a schema without that, or tool_choice auto and" in str(
        refused.value
    )
