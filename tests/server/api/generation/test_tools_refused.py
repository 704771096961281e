"""Tools and formats of answers that are malformed, or that a model cannot have: 400, naming the field."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.server.answers import chat_templates as styles
from tests.server.answers.chat_templates import tokenizer_with
from tests.server.api.generation.dictating import serving_chats
from tests.server.api.serving import Server, serving

HELLO: Any = [{"role": "user", "content": "hello there"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A model with tools."""
    with serving(tmp_path_factory.mktemp("data"), chat_template=styles.HERMES) as running:
        yield running


def function(**fields: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": fields}]}


IMAGE = {"type": "image_url", "image_url": {"url": "x"}}
F = {"type": "function", "function": {"name": "f"}}
FUNCTION_F: Any = F
MADE = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def remade(**fields: Any) -> dict[str, Any]:
    """An earlier answer with a call that has these fields."""
    return after({"role": "assistant", "tool_calls": [MADE | fields]})


def arguments(text: Any) -> dict[str, Any]:
    """An earlier answer whose call has these arguments."""
    return remade(function={"name": "f", "arguments": text})


def allowed(mode: str, *names: str) -> Any:
    """`tool_choice` of several functions."""
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


def schema(value: Any) -> dict[str, Any]:
    """`response_format` with a schema."""
    return {"response_format": {"type": "json_schema", "json_schema": value}}


def after(*messages: Any) -> dict[str, Any]:
    return {"messages": [*HELLO, *messages]}


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"tools": [F] * 129}, "tools"),
    ({"tools": {}}, "tools"),
    ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools.0.type"),
    ({"tools": [{"type": "function"}]}, "tools.0.function"),
    ({"tools": [{"function": {"name": "f"}}]}, "tools.0.type"),
    (function(), "tools.0.function.name"),
    (function(name="a b"), "tools.0.function.name"),
    (function(name="x" * 65), "tools.0.function.name"),
    (function(name="f", parameters=[]), "tools.0.function.parameters"),
    (function(name="f", colour=1), "tools.0.function.colour"),
    (function(name="f", strict=1), "tools.0.function.strict"),
    (
        function(name="f", parameters={"properties": {"a": {"type": "nonsense"}}}) | {"tool_choice": "required"},
        "tools.0",
    ),
    (function(name="f", parameters={"$ref": "#/nowhere"}) | {"tool_choice": "required"}, "tools.0"),
    (function(name="f", parameters={"type": "string"}), "tools.0.function.parameters"),
    ({"tools": [F, F]}, "tools.1"),
    ({"tools": [F], "tool_choice": "any"}, "tool_choice"),
    ({"tools": [F], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
    ({"tools": [F], "tool_choice": {"type": "function"}}, "tool_choice.function"),
    ({"tools": [F], "tool_choice": {"type": "custom", "custom": {"name": "f"}}}, "tool_choice.type"),
    ({"tools": [F], "tool_choice": allowed("auto")}, "tool_choice.allowed_tools.tools"),
    ({"tools": [F], "tool_choice": allowed("none", "f")}, "tool_choice.allowed_tools.mode"),
    ({"tools": [F], "tool_choice": allowed("auto", "g")}, "tool_choice"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": FUNCTION_F, "tools": []}, "tool_choice"),
    ({"parallel_tool_calls": "yes"}, "parallel_tool_calls"),
    (after({"role": "tool", "content": "x"}), "messages.1.tool_call_id"),
    (after({"role": "user", "content": "x", "tool_call_id": "c"}), "messages.1.tool_call_id"),
    (after({"role": "user", "content": "x", "tool_calls": [MADE]}), "messages.1.tool_calls"),
    (remade(id=""), "messages.1.tool_calls.0.id"),
    (remade(type="custom"), "messages.1.tool_calls.0.type"),
    (arguments([1]), "messages.1.tool_calls.0.function.arguments"),
    ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages.0.content.0"),
    ({"messages": [{"role": "user", "content": []}]}, "messages.0.content"),
    ({"response_format": {"type": "xml"}}, "response_format"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    (schema({"schema": {}}), "response_format.json_schema.name"),
    (schema({"name": "x", "schema": {"type": "nonsense"}}), "response_format"),
    ({"reasoning_effort": "enormous"}, "reasoning_effort"),
    ({"reasoning_effort": "low"}, "reasoning_effort"),
]


@pytest.mark.parametrize(("fields", "param"), WRONG, ids=[f"{i}-{param}" for i, (_, param) in enumerate(WRONG)])
def test_a_malformed_request_is_refused_by_its_field(server: Server, fields: dict[str, Any], param: str) -> None:
    response = server.http.post("/v1/chat/completions", json={"messages": HELLO, "max_tokens": 2} | fields)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param), error
    assert error["type"] == "invalid_request_error"
    assert param in error["message"]


XML = (styles.XML_PARAMETERS, styles.XML_CALLS)
CHANNELS = (styles.HERMES, styles.CHANNELS)
TOOL = {"role": "tool", "tool_call_id": "c", "content": "x"}
LACKING: list[tuple[str, Any, dict[str, Any], str, str]] = [
    (styles.PLAIN, None, {"tools": [F]}, "tools", "does not support tools"),
    (styles.PLAIN, None, {"tools": [F], "tool_choice": "none"}, "tools", "does not support tools"),
    (styles.PLAIN, None, after({"role": "assistant", "tool_calls": [MADE]}), "messages", "does not support tools"),
    (styles.PLAIN, None, after(TOOL), "messages", "does not support tools"),
    (styles.XML_PARAMETERS, None, {"tools": [F]}, "tools", "the format of this model's tool calls is unknown"),
    (*XML, {"tools": [F], "tool_choice": "required"}, "tool_choice", "a format that cannot be enforced"),
    (*XML, {"tools": [F], "parallel_tool_calls": False}, "parallel_tool_calls", "a format that cannot be enforced"),
    (*XML, function(name="f", strict=True), "tools.0", "a format that cannot be enforced"),
    (*CHANNELS, {"response_format": {"type": "json_object"}}, "response_format", "in its own markers"),
    (*CHANNELS, {"tools": [F], "tool_choice": "required"}, "tool_choice", "in its own markers"),
]


@pytest.mark.parametrize("style", range(len(LACKING)))
def test_what_a_model_lacks_is_refused_by_name(style: int, lacking: dict[int, httpx.Response]) -> None:
    _, _, _, param, message = LACKING[style]
    response = lacking[style]
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, param, "unsupported_parameter"), error
    assert message in error["message"]


@pytest.fixture(scope="module")
def lacking(tmp_path_factory: pytest.TempPathFactory) -> dict[int, httpx.Response]:
    """The answers to `LACKING`: one server for each pair of templates."""
    answers = {}
    pairs = list({id(case[0]) ^ id(case[1]): case[:2] for case in LACKING}.values())
    for chat_template, response_template in pairs:
        tokenizer = tokenizer_with(chat_template, response_template)
        with serving_chats(tmp_path_factory.mktemp("data"), chat_template, tokenizer=tokenizer) as server:
            for index, case in enumerate(LACKING):
                if case[:2] == (chat_template, response_template):
                    body = {"messages": HELLO, "max_tokens": 2} | case[2]
                    answers[index] = server.http.post("/v1/chat/completions", json=body)
    return answers
