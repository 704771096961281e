"""Responses through the official SDK and by hand, against a real server; every object and event as the SDK types it."""

from __future__ import annotations

import json
import typing
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pydantic
import pytest
from openai.types.responses import Response
from openai.types.responses.response_create_params import ResponseCreateParamsBase

from server.answers.reply import ReplyParser
from server.api.generation.dialogue import ReplyPiece
from server.api.responses.items import Conversation, items_of
from server.api.responses.output import ResponseOutput
from server.api.responses.wire import ResponseRequest
from server.demo.documents import CHAT_TEMPLATE
from server.text import TextProcessor
from tests.server.api.responses.shapes import EVENTS, events_of, exactly, rebuilt, without_ids
from tests.server.api.serving import Server, byte_tokenizer, eventually, serving, vector

PATH = "/v1/responses"

WEATHER: dict[str, Any] = {
    "type": "function",
    "name": "weather",
    "description": "Tells the weather.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Oslo", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}
CALL_WEATHER: dict[str, Any] = {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False}
A_CITY: dict[str, Any] = {
    "type": "json_schema",
    "name": "a_city",
    "strict": True,
    "schema": WEATHER["parameters"],
}
LOGPROBS: dict[str, Any] = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An open server whose chat template has tools, with the vector `calm`."""
    with serving(tmp_path_factory.mktemp("data"), chat_template=CHAT_TEMPLATE) as running:
        running.store.put("calm", vector(1))
        yield running


def ask(server: Server, **options: Any) -> Any:
    """A greedy response of 12 tokens, unless `options` say otherwise."""
    asked: dict[str, Any] = {"model": "tiny", "input": "hello there", "max_output_tokens": 12, "temperature": 0}
    return server.sdk.responses.create(**(asked | options))


def post(server: Server, **options: Any) -> dict[str, Any]:
    """The same by hand: the JSON as it travels."""
    response = server.http.post(
        PATH, json={"input": "hello there", "max_output_tokens": 12, "temperature": 0} | options
    )
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


def streamed(server: Server, **options: Any) -> list[dict[str, Any]]:
    """The events of the same as a stream."""
    body = {"input": "hello there", "max_output_tokens": 12, "temperature": 0, "stream": True} | options
    with server.http.stream("POST", PATH, json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        return events_of(response.read().decode())


def test_a_response_has_openais_shape(server: Server) -> None:
    answer = exactly(Response, post(server, metadata={"a": "b"}, user="u", instructions="Be brief."))
    assert (answer.object, answer.model, answer.id[:5], answer.status) == ("response", "tiny", "resp_", "incomplete")
    assert answer.incomplete_details.reason == "max_output_tokens"
    (message,) = answer.output
    assert (message.type, message.role, message.status) == ("message", "assistant", "incomplete")
    assert answer.output_text == message.content[0].text != ""
    assert (answer.usage.output_tokens, answer.usage.total_tokens) == (12, answer.usage.input_tokens + 12)
    assert answer.usage.output_tokens_details.reasoning_tokens == 0
    assert (answer.metadata, answer.user, answer.instructions) == ({"a": "b"}, "u", "Be brief.")
    assert (answer.temperature, answer.max_output_tokens, answer.steering) == (0, 12, [])


def test_a_complete_response_says_when(server: Server) -> None:
    answer = exactly(Response, post(server, text={"format": A_CITY}, max_output_tokens=64))
    assert (answer.status, answer.incomplete_details, answer.output[0].status) == ("completed", None, "completed")
    assert answer.completed_at >= answer.created_at
    assert answer.text.format.schema_ == A_CITY["schema"]


def test_a_prompt_seen_before_comes_from_the_cache(server: Server) -> None:
    first, second = (
        post(server, input="a prompt of its own, long enough for some pages")["usage"]["input_tokens_details"]
        for _ in range(2)
    )
    assert first["cached_tokens"] < second["cached_tokens"]
    assert sum(first.values()) == sum(second.values())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 1.3, "seed": 7, "top_p": 0.9, "top_k": 50},
        {"stop": ["\ufffd", "x"]},
        {"steering": [{"vector": "calm"}]},
        {"text": {"format": A_CITY}, "max_output_tokens": 64},
        {"text": {"format": {"type": "json_object"}}},
        CALL_WEATHER | {"max_output_tokens": 120},
        CALL_WEATHER,
        LOGPROBS,
    ],
)
def test_a_stream_tells_what_the_whole_response_is(server: Server, options: dict[str, Any]) -> None:
    whole = post(server, **options)
    events = streamed(server, **options)
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    assert (events[0]["response"]["status"], events[0]["response"]["output"]) == ("in_progress", [])
    assert events[0]["response"]["steering"] == whole["steering"]
    last = events[-1]["response"]
    assert events[-1]["type"] == f"response.{whole['status']}"
    assert without_ids(last["output"]) == without_ids(whole["output"])
    told = rebuilt(events)
    for item, final in zip(told, last["output"], strict=True):
        parts = [dict(part) for part in final.get("content", [])]
        for part in parts:
            part["logprobs"] = []  # deltas have them without bytes; see the test of log-probabilities
        assert item == final | ({"content": parts} if "content" in final else {})
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == last["output"]
    counts = ("input_tokens", "output_tokens", "total_tokens", "output_tokens_details")
    assert [last["usage"][name] for name in counts] == [whole["usage"][name] for name in counts]
    exactly(Response, whole)


def test_log_probabilities_are_of_the_message_s_text(server: Server) -> None:
    text = "".join(post(server, text={"format": A_CITY}, max_output_tokens=64)["output"][0]["content"][0]["text"])
    (part,) = post(server, text={"format": A_CITY}, max_output_tokens=64, **LOGPROBS)["output"][0]["content"]
    assert b"".join(bytes(token["bytes"]) for token in part["logprobs"]).decode() == part["text"] == text
    assert all(len(token["top_logprobs"]) == 2 for token in part["logprobs"])
    events = streamed(server, text={"format": A_CITY}, max_output_tokens=64, **LOGPROBS)
    deltas = [token for event in events if event["type"].endswith("text.delta") for token in event["logprobs"]]
    assert [token["logprob"] for token in deltas] == pytest.approx([token["logprob"] for token in part["logprobs"]])
    assert [event["logprobs"] for event in events if event["type"].endswith("text.done")] == [deltas]


def test_the_sdk_s_stream_helper_gathers_the_response(server: Server) -> None:
    first = ask(server).output_text[:4]
    options: Any = {"extra_body": {"stop": [first[-1]]}, "max_output_tokens": 40, "temperature": 0}
    with server.sdk.responses.stream(model="tiny", input="hello there", **options) as stream:
        texts = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert "".join(texts) == final.output_text == ask(server, **options).output_text
    assert final.status == "completed"


def test_the_sdk_parses_structured_answers(server: Server) -> None:
    class Visit(pydantic.BaseModel):
        city: Literal["Oslo", "Rome"]
        again: bool

    parsed = server.sdk.responses.parse(
        model="tiny", input="where to?", text_format=Visit, max_output_tokens=64, temperature=0
    )
    assert isinstance(parsed.output_parsed, Visit)
    with server.sdk.responses.stream(
        model="tiny", input="where to?", text_format=Visit, max_output_tokens=64, temperature=0
    ) as stream:
        stream.until_done()
        assert stream.get_final_response().output_parsed == parsed.output_parsed


def test_a_tool_is_called_and_its_output_answered(server: Server) -> None:
    items: list[Any] = [{"role": "user", "content": "how is the weather?"}]
    called = ask(server, input=items, max_output_tokens=120, **CALL_WEATHER)
    (call,) = called.output
    assert (call.type, call.name, called.status) == ("function_call", "weather", "completed")
    assert json.loads(call.arguments)["city"] in ("Oslo", "Rome")
    items += called.output  # the SDK's own objects go back as they came
    items.append({"type": "function_call_output", "call_id": call.call_id, "output": "rain"})
    answer = ask(server, input=items, tools=[WEATHER], tool_choice="none")
    assert [item.type for item in answer.output] == ["message"]
    assert answer.output_text
    messages: Any = [
        {"role": "user", "content": "how is the weather?"},
        {
            "role": "assistant",
            "tool_calls": [
                {"id": call.call_id, "type": "function", "function": {"name": "weather", "arguments": call.arguments}}
            ],
        },
        {"role": "tool", "tool_call_id": call.call_id, "content": "rain"},
    ]
    tools: Any = [{"type": "function", "function": {key: WEATHER[key] for key in WEATHER if key != "type"}}]
    chat = server.sdk.chat.completions.create(
        model="tiny", messages=messages, tools=tools, tool_choice="none", max_tokens=12, temperature=0
    )
    assert (chat.choices[0].message.content, chat.usage.prompt_tokens) == (  # type: ignore[union-attr]
        answer.output_text,
        answer.usage.input_tokens,
    )


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ({"type": "function", "name": "weather"}, {"weather"}),
        ({"type": "function", "name": "time"}, {"time"}),
        ({"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "time"}]}, {"time"}),
    ],
)
def test_a_choice_of_tools_is_kept(server: Server, choice: dict[str, Any], names: set[str]) -> None:
    tools = [{"type": "function", "name": name, "parameters": None, "strict": False} for name in ("weather", "time")]
    answer = exactly(
        Response, post(server, tools=tools, tool_choice=choice, parallel_tool_calls=False, max_output_tokens=80)
    )
    assert {item.name for item in answer.output} == names
    assert answer.tool_choice.type == choice["type"]
    assert [tool.name for tool in answer.tools] == ["weather", "time"]


def test_items_become_the_chat_they_are(server: Server) -> None:
    """The same conversation as a chat has the same prompt, and so the same answer."""
    answer = ask(
        server,
        instructions="Be kind.",
        input=[
            {"role": "user", "content": "one"},
            {
                "type": "message",
                "role": "user",
                "content": [{"type": "input_text", "text": x} for x in ("two", "three")],
            },
            {"role": "assistant", "content": "four"},
            {
                "type": "message",
                "id": "msg_1",
                "status": "completed",
                "role": "assistant",
                "content": [{"type": "output_text", "text": x, "annotations": []} for x in ("fi", "ve")],
            },
            {"role": "developer", "content": "six"},
        ],
    )
    messages: Any = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "one"},
        {"role": "user", "content": "two\nthree"},
        {"role": "assistant", "content": "four"},
        {"role": "assistant", "content": "five"},
        {"role": "system", "content": "six"},
    ]
    chat = server.sdk.chat.completions.create(model="tiny", messages=messages, max_tokens=12, temperature=0)
    assert chat.choices[0].message.content == answer.output_text
    assert chat.usage is not None
    assert chat.usage.prompt_tokens == answer.usage.input_tokens


def test_reasoning_a_message_and_calls_in_a_row_are_one_turn() -> None:
    conversation = Conversation()
    thought: Any = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]}
    said: Any = {"role": "assistant", "content": "Well."}
    calls: list[Any] = [
        {"type": "function_call", "call_id": name, "name": name, "arguments": '{"a": 1}'} for name in "fg"
    ]
    outputs: list[Any] = [{"type": "function_call_output", "call_id": name, "output": name} for name in "fg"]
    for each in items_of([thought, said, *calls, *outputs, thought, *calls[:1], said]):
        conversation.add(each, "input")
    called = [{"id": name, "type": "function", "function": {"name": name, "arguments": {"a": 1}}} for name in "fg"]
    assert conversation.messages == [
        {"role": "assistant", "content": "Well.", "reasoning_content": "hm", "tool_calls": called},
        {"role": "tool", "content": "f", "tool_call_id": "f"},
        {"role": "tool", "content": "g", "tool_call_id": "g"},
        {"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": called[:1]},
        {"role": "assistant", "content": "Well."},
    ]


def test_steering_changes_the_answer_and_is_echoed(server: Server) -> None:
    plain = ask(server).output_text
    for options in ({"extra_body": {"steering": [{"vector": "calm", "scale": -1.5}]}}, {"model": "tiny+calm:-1.5"}):
        answer = ask(server, **options)
        assert answer.output_text != plain
        (entry,) = answer.steering
        assert (entry["vector"], entry["scale"], entry["revision"]) == (
            "calm",
            -1.5,
            server.store.get("calm").revision,
        )


THINKING = CHAT_TEMPLATE.replace(
    "'<|im_start|>assistant\n' }}{% endif %}", "'<|im_start|>assistant\n<think>\n' }}{% endif %}"
) + ("{# thoughts end with </think> #}")
REPLY = (
    'a thought</think>\n\nWell.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
)


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_reasoning_text_and_calls_are_items_in_their_order(size: int) -> None:
    """However the text is cut into pieces, which a model's tokens do."""
    text = TextProcessor(byte_tokenizer(THINKING))
    prompt = text.render_chat([{"role": "user", "content": "weather?"}])
    parser = ReplyParser(text.reading(["weather"]), prompt)
    output = ResponseOutput(text.table, None)
    events: list[Any] = []
    for start in range(0, len(REPLY), size):
        delta = parser.push(REPLY[start : start + size])
        events += list(output.add(ReplyPiece(delta, (), (), None))) if delta else []
    events += list(output.add(ReplyPiece(parser.finish(is_cut=False), (), (), "tool_calls")))
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    for event in events:
        exactly(EVENTS[event["type"]], event)
    assert rebuilt(events) == output.items()
    shown = [
        (item["type"], item["status"], item.get("arguments") or item["content"][0]["text"])
        for item in json.loads(json.dumps(output.items()))
    ]
    assert shown == [
        ("reasoning", "completed", "a thought"),
        ("message", "completed", "Well."),
        ("function_call", "completed", '{"city": "Oslo"}'),
        ("function_call", "completed", '{"city": "Rome"}'),
    ]


@pytest.mark.parametrize(
    ("written", "calls"),
    [
        ('{"name": "we', [("completed", '{"city": "Oslo"}')]),
        ('{"name": "weather", "arguments": {"ci', [("completed", '{"city": "Oslo"}'), ("incomplete", '{"ci')]),
    ],
)
def test_a_call_before_the_one_that_was_cut_is_complete(written: str, calls: list[tuple[str, str]]) -> None:
    text = TextProcessor(byte_tokenizer(THINKING))
    parser = ReplyParser(text.reading(["weather"]), text.render_chat([{"role": "user", "content": "weather?"}]))
    delta = parser.push(REPLY[: REPLY.index('{"name"', REPLY.index("Oslo"))] + written) + parser.finish(is_cut=True)
    output = ResponseOutput(text.table, None)
    events: list[Any] = list(output.add(ReplyPiece(delta, (), (), "length")))
    assert rebuilt(events) == output.items()
    items = json.loads(json.dumps(output.items()))
    assert [item["type"] for item in items] == ["reasoning", "message", *["function_call"] * len(calls)]
    assert [(item["status"], item["arguments"]) for item in items[2:]] == calls


def test_a_response_may_end_in_its_reasoning(tmp_path_factory: pytest.TempPathFactory) -> None:
    with serving(tmp_path_factory.mktemp("thinking"), chat_template=THINKING) as server:
        answer = exactly(Response, post(server))
        (item,) = answer.output
        assert (item.type, item.status, answer.output_text) == ("reasoning", "incomplete", "")
        assert answer.usage.output_tokens_details.reasoning_tokens == 12
        told = streamed(server)
        assert without_ids(rebuilt(told)) == without_ids(post(server)["output"])
        again = post(server, input=[{"role": "user", "content": "hello there"}, *post(server)["output"]])
        assert again["usage"]["input_tokens"] > answer.usage.input_tokens


def test_every_parameter_of_the_sdk_is_known() -> None:
    parameters = typing.get_type_hints(ResponseCreateParamsBase).keys() | {"stream"}
    assert parameters <= ResponseRequest.model_fields.keys() | ResponseRequest.unsupported.keys()


def item(**fields: Any) -> dict[str, Any]:
    """A request with one item."""
    return {"input": [fields]}


BODIES: list[tuple[dict[str, Any], str]] = [
    ({"input": None}, "input"),
    ({"input": []}, "input"),
    ({"input": 3}, "input"),
    ({"input": ["hi"]}, "input.0"),
    (item(role="user"), "input.0.content"),
    (item(role="tool", content="x"), "input.0.role"),
    (item(role="user", content=[]), "input.0.content"),
    (item(role="user", content=[{"type": "input_text"}]), "input.0.content.0"),
    (item(role="user", content=[{"type": "input_image", "image_url": "x"}]), "input.0.content.0"),
    (item(role="user", content=[{"type": "output_text", "text": "x"}]), "input.0.content.0"),
    (item(role="user", content="x", mood="y"), "input.0.mood"),
    (item(role="assistant", content="x", phase="commentary"), "input.0.phase"),
    (item(type="item_reference", id="msg_1"), "input.0.type"),
    (item(id="msg_1"), "input.0.type"),
    (item(type="web_search_call", id="x"), "input.0.type"),
    (item(type="reasoning", summary=[{"type": "summary_text", "text": "x"}]), "input.0.summary"),
    (item(type="reasoning", summary=[], encrypted_content="x"), "input.0.encrypted_content"),
    (item(type="function_call", call_id="c", name="f", arguments=[1]), "input.0.arguments"),
    (item(type="function_call_output", call_id="c", output="x"), "input.0.call_id"),
    (item(type="function_call_output", output="x"), "input.0.call_id"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"max_output_tokens": 10_000}, "input"),
    ({"temperature": 3}, "temperature"),
    ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
    ({"tools": [{"type": "function"}]}, "tools.0.name"),
    ({"tools": [WEATHER | {"defer_loading": True}]}, "tools.0.defer_loading"),
    ({"tools": [WEATHER, WEATHER]}, "tools.1"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": [WEATHER], "tool_choice": {"type": "mcp", "server_label": "x"}}, "tool_choice.type"),
    ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "other"}}, "tool_choice"),
    ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
    ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "moon"}}}}, "text.format"),
    ({"text": {"verbosity": "low"}}, "text.verbosity"),
    ({"reasoning": {"effort": "low"}}, "reasoning.effort"),
    ({"reasoning": {"effort": "some"}}, "reasoning.effort"),
    ({"reasoning": {"summary": "auto"}}, "reasoning.summary"),
    ({"include": ["reasoning.encrypted_content"]}, "include.0"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"truncation": "auto"}, "truncation"),
    ({"background": True}, "background"),
    ({"conversation": "conv_1"}, "conversation"),
    ({"prompt": {"id": "pmpt_1"}}, "prompt"),
    ({"prompt_cache_options": {"prewarm": True}}, "prompt_cache_options.prewarm"),
    ({"service_tier": "flex"}, "service_tier"),
    ({"n": 2}, "n"),
    ({"messages": []}, "messages"),
    ({"metadata": {str(number): "x" for number in range(17)}}, "metadata"),
    ({"metadata": {"a": "x" * 513}}, "metadata"),
    ({"previous_response_id": "resp_0"}, "previous_response_id"),
    ({"steering": [{"vector": "calm", "layers": [99]}]}, "steering.0.layers"),
    ({"stream_options": {"include_obfuscation": True}, "stream": True}, "stream_options.include_obfuscation"),
]


@pytest.mark.parametrize(
    ("fields", "param"), BODIES, ids=[f"{number}-{param}" for number, (_, param) in enumerate(BODIES)]
)
def test_a_malformed_request_is_a_400_that_names_the_field(server: Server, fields: dict[str, Any], param: str) -> None:
    response = server.http.post(PATH, json={"input": "hi"} | fields)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param), response.text
    assert server.is_idle()


def test_what_asks_for_nothing_is_taken(server: Server) -> None:
    neutral: dict[str, Any] = {
        "background": False, "conversation": None, "include": [], "instructions": None, "max_tool_calls": None,
        "metadata": {}, "parallel_tool_calls": True, "prompt": None, "reasoning": {"effort": "none", "summary": None},
        "service_tier": "auto", "store": False, "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "tool_choice": "auto", "tools": [], "top_logprobs": 0, "truncation": "disabled", "prompt_cache_key": "k",
        "safety_identifier": "s", "stream": False, "steering": [],
    }  # fmt: skip
    assert post(server, **neutral)["output"][0]["content"] == post(server)["output"][0]["content"]


def test_leaving_a_stream_frees_everything(server: Server) -> None:
    generated = server.engine.stats().total_generated_tokens
    body = {"input": "hi", "max_output_tokens": 400, "ignore_eos": True, "stream": True, "store": True}
    with server.http.stream("POST", PATH, json=body) as response:
        lines = response.iter_lines()
        created = json.loads([next(lines), next(lines)][1].removeprefix("data: "))
        eventually(lambda: server.engine.stats().num_running == 1)
    eventually(server.is_idle)
    assert server.engine.stats().total_generated_tokens - generated < 400
    with pytest.raises(openai.NotFoundError):  # what was not finished is not kept
        server.sdk.responses.retrieve(created["response"]["id"])
