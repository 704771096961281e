"""LangChain beyond its standard tests: steering, every method of structured output, and tools with known arguments.

On the embedded model a schema leaves one right answer; where a model would have to choose by itself to call, or to
write JSON, one that repeats what it is told does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import httpx
import pytest
from pydantic import BaseModel

from server.demo import MODEL_NAME
from server.demo.documents import CHAT_TEMPLATE
from tests.clients.demo_tokens import json_that_ends
from tests.server.api.generation.dictating import serving_chats

pytest.importorskip("langchain_openai")

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

MUSIC = "Do you like music?"

pytestmark = pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning")


class Customer(BaseModel):
    """Register a customer."""

    name: Literal["你好啊集团", "こんにちは株式会社 🎈"]
    rating: Literal[3]


NAMES: tuple[Literal["你好啊集团"], Literal["こんにちは株式会社 🎈"]] = ("你好啊集团", "こんにちは株式会社 🎈")


@tool
def get_weather(city: Literal["San Francisco, CA"]) -> str:
    """The weather in a city."""
    return f"It is sunny in {city}."


def client(base_url: str, **options: Any) -> ChatOpenAI:
    """A client of the embedded model, as docs/clients.md has it."""
    return ChatOpenAI(
        **{"model": MODEL_NAME, "base_url": base_url, "api_key": "none", "temperature": 0, "max_retries": 0, **options}
    )


@pytest.fixture
def model(base_url: str) -> ChatOpenAI:
    """Greedy, and its JSON ends."""
    return client(base_url, logit_bias=json_that_ends(), max_tokens=200)


@pytest.fixture(scope="module")
def repeating(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatOpenAI]:
    """A model that says what the last user said."""
    with serving_chats(tmp_path_factory.mktemp("data"), CHAT_TEMPLATE) as server:
        yield client(f"{server.url}/v1", model="tiny")


@pytest.fixture(scope="module")
def said(base_url: str) -> dict[str, str]:
    """What the server says without LangChain: plainly, and when it is made cheerful."""
    body = {"messages": [{"role": "user", "content": MUSIC}], "temperature": 0}
    texts = {}
    for name, steering in (("plain", []), ("cheerful", [{"vector": "cheerful"}])):
        answer = httpx.post(f"{base_url}/chat/completions", json={**body, "steering": steering}, timeout=60)
        texts[name] = answer.json()["choices"][0]["message"]["content"]
    assert texts["plain"] != texts["cheerful"]
    return texts


@pytest.mark.parametrize(
    "options",
    [
        {"extra_body": {"steering": [{"vector": "cheerful"}]}},
        {"model": f"{MODEL_NAME}+cheerful"},
        {"model": f"{MODEL_NAME}+cheerful", "use_responses_api": True},
    ],
    ids=["extra_body", "model", "responses"],
)
def test_steering(base_url: str, said: dict[str, str], options: dict[str, Any]) -> None:
    assert client(base_url).invoke(MUSIC).text == said["plain"]
    steered = client(base_url, **options)
    assert steered.invoke(MUSIC).text == said["cheerful"]
    assert "".join(chunk.text for chunk in steered.stream(MUSIC)) == said["cheerful"]


def test_steering_of_one_call(base_url: str, said: dict[str, str]) -> None:
    chat = client(base_url)
    assert chat.invoke(MUSIC, extra_body={"steering": [{"vector": "cheerful", "scale": 0.6}]}).text == said["cheerful"]
    assert chat.bind(model=f"{MODEL_NAME}+cheerful:0.6").invoke(MUSIC).text == said["cheerful"]
    assert chat.invoke(MUSIC).text == said["plain"]


async def test_events_of_a_stream(base_url: str, said: dict[str, str]) -> None:
    chat = client(base_url, extra_body={"steering": [{"vector": "cheerful"}]}, stream_usage=True)
    events = [event async for event in chat.astream_events(MUSIC, version="v2")]
    texts = [event["data"]["chunk"].text for event in events if event["event"] == "on_chat_model_stream"]
    assert "".join(texts) == said["cheerful"]
    assert len([text for text in texts if text]) > 10, "it comes while it is written"
    assert (events[0]["event"], events[-1]["event"]) == ("on_chat_model_start", "on_chat_model_end")
    usage = events[-1]["data"]["output"].usage_metadata
    assert (usage["input_tokens"], usage["output_tokens"]) == (13, usage["total_tokens"] - 13)


async def test_requests_at_a_time(base_url: str, said: dict[str, str]) -> None:
    plain, steered = client(base_url), client(base_url, model=f"{MODEL_NAME}+cheerful")
    assert [message.text for message in await plain.abatch([MUSIC] * 5)] == [said["plain"]] * 5
    assert [message.text for message in await steered.abatch([MUSIC] * 5)] == [said["cheerful"]] * 5


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
async def test_structured_output(model: ChatOpenAI, method: Any) -> None:
    asks = model.with_structured_output(Customer, method=method)
    answers = [asks.invoke("hi"), await asks.ainvoke("hi"), *list(asks.stream("hi"))[-1:]]
    for answer in answers:
        assert isinstance(answer, Customer)
        assert (answer.name in NAMES, answer.rating) == (True, 3)
    raw = model.with_structured_output(Customer, method=method, include_raw=True, strict=True).invoke("hi")
    assert raw["parsed"] == answers[0]
    assert raw["parsing_error"] is None


def test_json_mode_gives_an_object(model: ChatOpenAI, repeating: ChatOpenAI) -> None:
    schema = Customer.model_json_schema()
    assert isinstance(model.with_structured_output(schema, method="json_mode").invoke("Reply with JSON."), dict)
    asks = repeating.with_structured_output(Customer, method="json_mode")
    wanted = Customer(name=NAMES[0], rating=3)
    asked = f'{{"name": "{NAMES[0]}", "rating": 3}}'
    assert asks.invoke(asked) == wanted
    assert list(asks.stream(asked))[-1] == wanted


@pytest.mark.parametrize("choice", ["any", "Customer", "required", True])
async def test_arguments(model: ChatOpenAI, choice: Any) -> None:
    described = {
        "name": "Customer",
        "parameters": {
            "type": "object",
            "properties": {"name": {"const": NAMES[1]}, "rating": {"const": 3}},
            "required": ["name", "rating"],
        },
    }
    calling = model.bind_tools([described], tool_choice=choice, parallel_tool_calls=False)
    for message in (calling.invoke("hi"), await calling.ainvoke("hi"), _joined(list(calling.stream("hi")))):
        (call,) = message.tool_calls
        assert (call["name"], call["args"]) == ("Customer", {"name": NAMES[1], "rating": 3})
        assert call["id"]
        assert not message.invalid_tool_calls
    assert len([chunk for chunk in calling.stream("hi") if chunk.tool_call_chunks]) > 3, "they come while written"


def test_an_agent_that_must_call(model: ChatOpenAI) -> None:
    messages: list[BaseMessage] = [HumanMessage("What is the weather in San Francisco, CA?")]
    calling = model.bind_tools([get_weather], tool_choice="any", parallel_tool_calls=False)
    asked = calling.invoke(messages)
    (call,) = asked.tool_calls
    result = get_weather.invoke(call)
    assert result.content == "It is sunny in San Francisco, CA."
    answer = model.bind_tools([get_weather]).invoke([*messages, asked, result])
    assert (type(answer), answer.tool_calls) == (AIMessage, [])


@pytest.mark.parametrize("name", NAMES)
def test_an_agent_that_calls_by_itself(repeating: ChatOpenAI, name: str) -> None:
    """`tool_choice` is auto all along; arguments have any letters."""

    @tool
    def greet(customer: str) -> str:
        """Greet a customer."""
        return f"Welcome, {customer}"

    arguments = json.dumps({"customer": name}, ensure_ascii=False)
    asked = f'On it.\n<tool_call>\n{{"name": "greet", "arguments": {arguments}}}\n</tool_call>'
    agent = repeating.bind_tools([greet])
    call_message = agent.invoke(asked)
    streamed = _joined(list(agent.stream(asked)))
    for message in (call_message, streamed):
        assert message.text.rstrip() == "On it."
        assert [(call["name"], call["args"]) for call in message.tool_calls] == [("greet", {"customer": name})]
    result = greet.invoke(call_message.tool_calls[0])
    assert isinstance(result, ToolMessage)
    assert result.content == f"Welcome, {name}"
    last = agent.invoke([HumanMessage(asked), call_message, result, HumanMessage("Thank you.")])
    assert (last.text, last.tool_calls) == ("Thank you.", [])


def _joined(chunks: list[AIMessageChunk]) -> AIMessageChunk:
    whole, *others = chunks
    for chunk in others:
        whole += chunk
    return whole
