"""Earlier turns as SDKs, streams and proxies give them back; what they carry beside the turn changes nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from openai import pydantic_function_tool
from pydantic import BaseModel

from server.api.chat.wire import ChatMessage
from server.api.generation.content import IGNORED_IN_ANSWERS, IGNORED_IN_PARTS
from server.api.generation.tools import CalledFunction, FunctionTool, MessageToolCall
from server.demo.documents import CHAT_TEMPLATE
from tests.server.api.generation.dictating import serving_chats
from tests.server.api.serving import MODEL, Server

TEMPLATE = (
    "{%- if tools %}{{ tools | tojson }}{% endif %}{% for message in messages %}"
    "<|im_start|>{{ message | tojson }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
"""Shows all that reaches it."""

USER, NEXT = {"role": "user", "content": "Hi"}, {"role": "user", "content": "Why?"}
CALL: dict[str, Any] = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
ANSWERED = {"role": "tool", "tool_call_id": "c", "content": "x"}


class Mood(BaseModel):
    """How it is."""

    mood: Literal["happy", "sad"]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving_chats(tmp_path_factory.mktemp("data"), TEMPLATE) as running:
        yield running


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving_chats(tmp_path_factory.mktemp("data"), CHAT_TEMPLATE, repeats=False) as running:
        yield running


def prompt(shown: Server, *messages: dict[str, Any]) -> str:
    """What the model reads."""
    response = shown.http.post("/tokenize", json={"messages": [USER, *messages, NEXT]})
    assert response.status_code == 200, response.text
    read = shown.http.post("/detokenize", json={"tokens": response.json()["tokens"]})
    text: str = read.json()["prompt"]
    return text


def refusal(shown: Server, *messages: dict[str, Any]) -> str:
    """The field that a request with these messages is refused for."""
    response = shown.http.post("/v1/chat/completions", json={"messages": list(messages), "max_tokens": 1})
    assert response.status_code == 400
    param: str = response.json()["error"]["param"]
    return param


def answer(**fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": "Fine.", **fields}


def called(function: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    return answer(tool_calls=[{**CALL, "function": CALL["function"] | (function or {}), **fields}])


THOUGHT = {"reasoning_content": "hm, so"}
SAME: list[tuple[dict[str, Any], dict[str, Any]]] = [
    *((answer(**{name: [{"x": 1}]}), answer()) for name in ChatMessage.ignored if name != "artifact"),
    *((answer(**{name: None}), answer()) for name in ("audio", "function_call", "images", "refusal", "tool_calls")),
    (
        answer(images=[], tool_calls=[], prefix=False, reasoning=None, reasoning_details=[], thinking_blocks=[]),
        answer(),
    ),
    (answer(content=None), answer(content="")),
    (answer(content=[]), answer(content="")),
    ({"role": "assistant"}, answer(content="")),
    (answer(content=None, refusal="No."), answer(content="No.")),
    (answer(content=[{"type": "refusal", "refusal": "No."}]), answer(content="No.")),
    (answer(content=[{"type": "text", "text": "Fine.", **dict.fromkeys(IGNORED_IN_ANSWERS, 1)}]), answer()),
    (answer(reasoning="hm, so"), answer(**THOUGHT)),
    (answer(reasoning="hm, so", **THOUGHT), answer(**THOUGHT)),
    (answer(reasoning_details=[{"type": "reasoning.text", "text": "hm, "}, {"text": "so"}]), answer(**THOUGHT)),
    (answer(thinking_blocks=[{"type": "thinking", "thinking": "hm, so", "signature": "x"}]), answer(**THOUGHT)),
    *((called(**{name: {"x": 1}}), called()) for name in MessageToolCall.ignored),
    *((called({name: {"x": 1}}), called()) for name in CalledFunction.ignored),
    (called(type=None, custom=None), called()),
    (called({"arguments": {"a": 1}}), called()),
    (called({"arguments": '{"a":\n1 }'}), called()),
    (called({"arguments": ""}), called({"arguments": "{}"})),
    (called({"arguments": None}), called({"arguments": "{}"})),
    (called({"arguments": "null"}), called({"arguments": "{}"})),
]


@pytest.mark.parametrize(("given", "plain"), SAME, ids=[json.dumps(given)[:90] for given, _ in SAME])
def test_what_comes_with_a_turn_changes_nothing(shown: Server, given: dict[str, Any], plain: dict[str, Any]) -> None:
    assert prompt(shown, given) == prompt(shown, plain)


@pytest.mark.parametrize("arguments", ['{"a": "Ro', "[1]", '"Rome"', '{"a": "C:\\Users"}', "[" * 9000])
def test_arguments_that_are_no_object_are_shown_as_they_are(shown: Server, arguments: str) -> None:
    assert json.dumps(arguments) in prompt(shown, called({"arguments": arguments})).replace("\\u003c", "<")


def test_a_tool_may_have_nothing_to_say(shown: Server) -> None:
    plain = prompt(shown, called(), {**ANSWERED, "content": ""})
    nothing: list[Any] = [None, []]
    for content in nothing:
        assert prompt(shown, called(), {**ANSWERED, "content": content, "status": "success", "artifact": [1]}) == plain
    mcp = [{"type": "text", "text": "x", **dict.fromkeys(IGNORED_IN_PARTS)}]
    assert prompt(shown, called(), {**ANSWERED, "content": mcp}) == prompt(shown, called(), ANSWERED)


def test_cache_marks_are_taken_wherever_clients_put_them(shown: Server) -> None:
    mark = {"cache_control": {"type": "ephemeral"}}
    parts = [{"type": "text", "text": "Hello", **mark}]
    for role in ("system", "developer", "user"):
        plain = prompt(shown, {"role": role, "content": "Hello"})
        assert prompt(shown, {"role": role, "content": parts, "id": "m", **mark}) == plain
    tool = {"type": "function", "function": {"name": "f", **mark}, **mark}
    body = {"messages": [USER], "tools": [tool], "tool_choice": "none", "max_tokens": 1}
    response = shown.http.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([{**USER, "mood": 1}], "messages.0.mood"),
        ([{**USER, "parsed": {}}], "messages.0.parsed"),
        ([{**USER, "index": 0}], "messages.0.index"),
        ([{**USER, "reasoning": "hm"}], "messages.0.reasoning"),
        ([{"role": "user", "content": None}], "messages.0.content"),
        ([USER, answer(mood=1)], "messages.1.mood"),
        ([USER, answer(audio={"id": "x"})], "messages.1.audio"),
        ([USER, answer(images=[{}])], "messages.1.images"),
        ([USER, answer(prefix=True)], "messages.1.prefix"),
        ([USER, answer(function_call={"name": "f", "arguments": ""})], "messages.1.function_call"),
        ([USER, called(mood=1)], "messages.1.tool_calls.0.mood"),
        ([USER, called({"mood": 1})], "messages.1.tool_calls.0.function.mood"),
        ([USER, called({"arguments": 3})], "messages.1.tool_calls.0.function.arguments"),
        ([{"role": "user", "content": [{"type": "text", "text": "a", "mood": 1}]}], "messages.0.content.0"),
        ([{"role": "user", "content": [{"type": "refusal", "refusal": "a"}]}], "messages.0.content.0"),
    ],
    ids=str,
)
def test_what_is_not_known_is_still_refused_by_name(shown: Server, messages: list[Any], param: str) -> None:
    assert refusal(shown, *messages) == param


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # the SDK's own, for what it parsed itself
def test_what_the_sdk_parsed_goes_back(server: Server) -> None:
    """The message itself and its dumps, whole and from a stream, with a format and with a call."""
    chat: Any = server.sdk.chat.completions
    base: dict[str, Any] = {"model": MODEL, "seed": 7, "max_tokens": 300}
    required: Any = {"tools": [pydantic_function_tool(Mood)], "tool_choice": "required", "parallel_tool_calls": False}
    parsed = chat.parse(messages=[USER], response_format=Mood, **base).choices[0].message
    call = chat.parse(messages=[USER], **required, **base).choices[0].message
    with chat.stream(messages=[USER], **required, **base) as stream:
        streamed = stream.get_final_completion().choices[0].message
    for message in (parsed, call, streamed):
        answers = [{**ANSWERED, "tool_call_id": each.id} for each in message.tool_calls or ()]
        contents = set()
        for form in (message, message.to_dict(), message.model_dump(warnings=False)):
            history: list[Any] = [USER, form, *answers, NEXT]
            contents.add(chat.create(messages=history, **base | {"max_tokens": 9}).choices[0].message.content)
        assert len(contents) == 1


def test_what_the_responses_api_parsed_goes_back(server: Server) -> None:
    responses: Any = server.sdk.responses
    base = {"model": MODEL, "max_output_tokens": 300, "temperature": 0}
    first: Any = responses.parse(input="Hi", text_format=Mood, **base)
    tool: Any = {"type": "function", "name": "Mood", "parameters": Mood.model_json_schema(), "strict": True}
    second: Any = responses.parse(input="Hi", tools=[tool], tool_choice="required", **base)
    for response in (first, second):
        outputs = [
            {"type": "function_call_output", "call_id": item.call_id, "output": []}
            for item in response.output
            if item.type == "function_call"
        ]
        texts = set()
        for items in (response.output, [item.model_dump(warnings=False) for item in response.output]):
            conversation: list[Any] = [USER, *items, *outputs, NEXT]
            texts.add(responses.create(input=conversation, **base | {"max_output_tokens": 16}).output_text)
        assert len(texts) == 1


def test_the_documents_list_what_is_ignored() -> None:
    page = Path("docs/clients.md").read_text()
    names = {*ChatMessage.ignored, *MessageToolCall.ignored, *CalledFunction.ignored, *IGNORED_IN_ANSWERS}
    assert [name for name in sorted(names | {*FunctionTool.ignored}) if f"`{name}`" not in page] == []
