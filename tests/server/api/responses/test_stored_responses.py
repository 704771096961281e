"""Responses that are kept: going on from them, reading and deleting them, and whom they are shown to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.responses import Response, ResponseItem
from openai.types.responses.response_item_list import ResponseItemList

from server.demo.documents import CHAT_TEMPLATE
from server.keys import ApiKeys
from tests.server.api.responses.shapes import exactly, without_ids
from tests.server.api.serving import Server, serving, vector

TOOL: dict[str, Any] = {"type": "function", "name": "now", "parameters": None, "strict": True}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An open server whose chat template has tools, with the vector `calm`."""
    with serving(tmp_path_factory.mktemp("data"), chat_template=CHAT_TEMPLATE) as running:
        running.store.put("calm", vector(1))
        yield running


def ask(server: Server, text: Any, **options: Any) -> Any:
    """A greedy response of 8 tokens that is kept, unless `options` say otherwise."""
    asked = {"model": "tiny", "input": text, "max_output_tokens": 8, "temperature": 0, "store": True}
    return server.sdk.responses.create(**(asked | options))


def test_a_response_goes_on_from_an_earlier_one(server: Server) -> None:
    first = ask(server, "one", instructions="Shout.")
    second = ask(server, "two", previous_response_id=first.id)
    third = ask(server, "three", previous_response_id=second.id, store=False)
    assert third.previous_response_id == second.id
    by_hand = ask(
        server,
        [
            {"role": "user", "content": "one"},
            *first.output,
            {"role": "user", "content": "two"},
            *second.output,
            {"role": "user", "content": "three"},
        ],
    )
    assert third.output_text == by_hand.output_text
    assert third.usage.input_tokens == by_hand.usage.input_tokens
    again = ask(server, "three", previous_response_id=second.id, instructions="Shout.")
    assert again.usage.input_tokens > third.usage.input_tokens


def test_a_call_of_an_earlier_response_is_answered(server: Server) -> None:
    called = ask(
        server, "when?", tools=[TOOL], tool_choice="required", parallel_tool_calls=False, max_output_tokens=120
    )
    (call,) = called.output
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "noon"}
    answer = ask(server, [output], previous_response_id=called.id)
    assert answer.output_text
    data = server.sdk.responses.input_items.list(answer.id, order="asc").data
    assert [item.type for item in data] == ["message", "function_call", "function_call_output"]
    with pytest.raises(openai.BadRequestError, match=r"input\.0\.call_id"):
        ask(server, [output | {"call_id": "call_of_nobody"}], previous_response_id=called.id)


def test_steering_is_each_response_s_own(server: Server) -> None:
    first = ask(server, "one", extra_body={"steering": [{"vector": "calm"}]})
    assert ask(server, "two", previous_response_id=first.id).steering == []
    assert server.sdk.responses.retrieve(first.id).steering == first.steering  # type: ignore[attr-defined]


def test_nothing_is_kept_unless_asked(server: Server) -> None:
    for options in ({}, {"store": False}):
        answer = server.http.post("/v1/responses", json={"input": "hi", "max_output_tokens": 1, **options}).json()
        assert server.http.get(f"/v1/responses/{answer['id']}").status_code == 404


def test_a_kept_response_is_given_back_as_it_was(server: Server) -> None:
    for body in ({"input": "hi", "max_output_tokens": 2, "store": True}, {"input": "hi", "store": True, "stop": ["a"]}):
        answer = server.http.post("/v1/responses", json=body).json()
        kept = server.http.get(f"/v1/responses/{answer['id']}").json()
        assert kept == answer
        exactly(Response, kept)


def test_a_streamed_response_is_kept_when_it_says_so(server: Server) -> None:
    *_, last = ask(server, "hi", stream=True)
    assert server.sdk.responses.retrieve(last.response.id) == last.response


def test_a_deleted_response_is_gone_and_what_followed_it_stays(server: Server) -> None:
    first = ask(server, "one")
    second = ask(server, "two", previous_response_id=first.id)
    server.sdk.responses.delete(first.id)
    for call in (server.sdk.responses.retrieve, server.sdk.responses.delete, server.sdk.responses.input_items.list):
        with pytest.raises(openai.NotFoundError) as missing:
            call(first.id)
        assert missing.value.code == "response_not_found"
    with pytest.raises(openai.BadRequestError) as refused:
        ask(server, "three", previous_response_id=first.id)
    assert (refused.value.code, refused.value.param) == ("previous_response_not_found", "previous_response_id")
    assert ask(server, "three", previous_response_id=second.id).output_text


def test_input_items_come_in_pages_as_the_sdk_types_them(server: Server) -> None:
    items: list[dict[str, Any]] = [
        {"role": "system", "content": "zero"},
        {"role": "user", "content": [{"type": "input_text", "text": "one"}]},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "two"}]},
        {"role": "assistant", "content": "three"},
        {"type": "function_call", "call_id": "c", "name": "now", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "four"},
    ]
    answer = ask(server, items)
    path = f"/v1/responses/{answer.id}/input_items"
    for item in exactly(ResponseItemList, server.http.get(path).json()).data:
        exactly(ResponseItem, item.to_dict())
    newest_first = server.http.get(path).json()["data"]
    assert [item["type"] for item in newest_first] == [item.get("type", "message") for item in reversed(items)]
    paged = list(server.sdk.responses.input_items.list(answer.id, limit=4, order="asc"))
    assert [item.id for item in paged] == [item["id"] for item in reversed(newest_first)]
    sent_back = ask(server, list(reversed(newest_first)))
    assert without_ids([item.to_dict() for item in sent_back.output]) == without_ids(
        [item.to_dict() for item in answer.output]
    )


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("/input_items?limit=0", "limit"),
        ("/input_items?order=up", "order"),
        ("/input_items?after=msg_0", "after"),
        ("/input_items?include[]=message.output_text.logprobs", "include"),
        ("/input_items?mood=x", "mood"),
        ("?stream=true", "stream"),
        ("?starting_after=3", "starting_after"),
        ("?limit=3", "limit"),
    ],
)
def test_a_malformed_query_is_a_400_that_names_it(server: Server, query: str, param: str) -> None:
    answer = ask(server, "hi", max_output_tokens=1)
    response = server.http.get(f"/v1/responses/{answer.id}{query}")
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def test_a_truncated_call_can_be_gone_on_from(server: Server) -> None:
    parameters = {"type": "object", "properties": {"a_long_name": {"enum": ["x"]}}, "required": ["a_long_name"]}
    tool = TOOL | {"parameters": parameters}
    called = ask(server, "when?", tools=[tool], tool_choice="required", max_output_tokens=50)
    assert (called.status, called.output[0].type) == ("incomplete", "function_call")
    assert ask(server, "go on", previous_response_id=called.id).output


def test_a_response_is_visible_to_the_key_that_made_it(tmp_path: Path) -> None:
    with serving(tmp_path, keys=ApiKeys(use=["mine", "theirs"], manage=["boss"]), key="mine") as server:
        answer = ask(server, "hi")
        assert server.sdk.responses.retrieve(answer.id).id == answer.id
        for key in ("theirs", "boss"):
            other = server.sdk.with_options(api_key=key)
            for call in (other.responses.retrieve, other.responses.delete, other.responses.input_items.list):
                with pytest.raises(openai.NotFoundError):
                    call(answer.id)
            with pytest.raises(openai.BadRequestError):
                other.responses.create(model="tiny", input="hi", previous_response_id=answer.id)
        with pytest.raises(openai.AuthenticationError):
            server.sdk.with_options(api_key="wrong").responses.retrieve(answer.id)
        assert server.sdk.responses.retrieve(answer.id).id == answer.id
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or b"mine" not in path.read_bytes()


def test_a_server_that_keeps_nothing_says_so(tmp_path: Path) -> None:
    with serving(tmp_path, keeps_responses=False) as server:
        for options, param in (
            ({"store": True}, "store"),
            ({"previous_response_id": "resp_0"}, "previous_response_id"),
        ):
            response = server.http.post("/v1/responses", json={"input": "hi"} | options)
            assert (response.status_code, response.json()["error"]["param"]) == (400, param)
        assert ask(server, "hi", store=False).output_text
        assert server.http.get("/v1/responses/resp_0").status_code == 404
        assert server.http.delete("/v1/responses/resp_0").status_code == 404
