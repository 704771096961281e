"""Chats through the official SDK, sync and async, against a real server."""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import Any

import openai
import pytest

from tests.server.api.serving import LAYERS, Server, eventually, vector

HELLO: Any = [{"role": "user", "content": "hello there"}]


def ask(server: Server, **options: Any) -> Any:
    """A greedy chat of 24 tokens, unless `options` say otherwise."""
    return server.sdk.chat.completions.create(
        **({"model": "tiny", "messages": HELLO, "max_tokens": 24, "temperature": 0} | options)
    )


def text_of(server: Server, **options: Any) -> str:
    """What the first choice says."""
    text: str = ask(server, **options).choices[0].message.content
    return text


def streamed(server: Server, **options: Any) -> tuple[dict[int, str], list[Any]]:
    """The text of each choice of a stream, and its chunks."""
    chunks = list(ask(server, stream=True, **options))
    texts: dict[int, str] = {}
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
    return texts, chunks


def test_a_chat_has_openais_shape(server: Server) -> None:
    answer = ask(server)
    (choice,) = answer.choices
    assert (answer.object, answer.model, answer.id[:9]) == ("chat.completion", "tiny", "chatcmpl-")
    assert (choice.message.role, choice.finish_reason, choice.logprobs) == ("assistant", "length", None)
    assert answer.usage.completion_tokens == 24
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 24
    assert answer.usage.prompt_tokens_details.cached_tokens <= answer.usage.prompt_tokens
    assert answer.steering == []


def test_a_prompt_seen_before_comes_from_the_cache(server: Server) -> None:
    messages = [{"role": "user", "content": "a prompt of its own, long enough for some pages"}]
    first, second = (ask(server, messages=messages).usage.prompt_tokens_details.cached_tokens for _ in range(2))
    assert first < second


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"n": 3, "temperature": 1, "seed": 5},
        {"stop": ["\ufffd", "x"]},
        {"extra_body": {"steering": [{"vector": "calm"}]}},
        {"temperature": 1.5, "seed": 1, "top_p": 0.9, "frequency_penalty": 1, "presence_penalty": -1},
        {
            "extra_body": {"top_k": 20, "min_p": 0.01, "repetition_penalty": 1.2, "min_tokens": 4},
            "seed": 3,
            "temperature": 1,
        },
    ],
)
def test_a_stream_says_what_the_whole_answer_says(server: Server, options: dict[str, Any]) -> None:
    whole = ask(server, **options)
    texts, chunks = streamed(server, stream_options={"include_usage": True}, **options)
    assert texts == {choice.index: choice.message.content for choice in whole.choices}
    ends = {c.index: c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason is not None}
    assert ends == {choice.index: choice.finish_reason for choice in whole.choices}
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    assert chunks[0].steering == whole.steering


def test_a_stream_begins_with_the_role_and_ends_with_the_usage(server: Server) -> None:
    _, chunks = streamed(server, stream_options={"include_usage": True})
    assert chunks[0].choices[0].delta.role == "assistant"
    assert (chunks[-2].choices[0].finish_reason, chunks[-2].choices[0].delta.content) == ("length", None)
    assert (chunks[-1].choices, chunks[-1].usage.completion_tokens) == ([], 24)
    assert all(chunk.usage is None for chunk in chunks[:-1])
    _, plain = streamed(server)
    assert [chunk.usage for chunk in plain] == [None] * len(plain)
    assert plain[-1].choices[0].finish_reason == "length"


@pytest.mark.parametrize(
    ("path", "body"), [("/v1/chat/completions", {"messages": HELLO}), ("/v1/completions", {"prompt": "hello"})]
)
def test_every_chunk_may_have_the_usage_so_far(server: Server, path: str, body: dict[str, Any]) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    wanted = body | {"max_tokens": 8, "stream": True, "stream_options": options}
    with server.http.stream("POST", path, json=wanted) as response:
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    counts = [json.loads(line)["usage"]["completion_tokens"] for line in lines[:-1]]
    assert (counts[0], counts[-1]) == (0, 8)
    assert counts == sorted(counts)


@pytest.mark.parametrize(
    ("field", "neutral", "other"),
    [
        ("skip_special_tokens", True, False),
        ("use_beam_search", False, True),
        ("length_penalty", 1.0, 2.0),
        ("priority", 0, 1),
        ("add_generation_prompt", True, False),
        ("include_stop_str_in_output", False, True),
        ("guided_json", None, {"type": "object"}),
        ("mood", None, 1),
    ],
)
def test_fields_of_other_servers_change_nothing_or_are_refused(
    server: Server, field: str, neutral: Any, other: Any
) -> None:
    if field != "mood":
        assert text_of(server, extra_body={field: neutral}) == text_of(server)
    with pytest.raises(openai.BadRequestError) as refused:
        ask(server, extra_body={field: other})
    assert refused.value.param == field


def test_a_whole_number_may_have_a_point(server: Server) -> None:
    assert ask(server, extra_body={"max_tokens": 8.0}).usage.completion_tokens == 8
    with pytest.raises(openai.BadRequestError):
        ask(server, extra_body={"max_tokens": 8.5})


def test_events_are_framed_and_end_with_done(server: Server) -> None:
    body = {"messages": HELLO, "max_tokens": 3, "stream": True}
    with server.http.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        text = response.read().decode()
    *events, done, rest = text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    assert all(event.startswith("data: {") and "\n" not in event for event in events)


def test_steering_changes_the_answer_and_is_echoed(server: Server) -> None:
    plain = text_of(server)
    answer = ask(server, extra_body={"steering": [{"vector": "calm", "scale": -1.5, "positions": "all"}]})
    revision = server.store.get("calm").revision
    assert answer.choices[0].message.content != plain
    assert answer.steering == [
        {
            "vector": "calm",
            "revision": revision,
            "site": "residual",
            "scale": -1.5,
            "layers": [1],
            "positions": "all",
            "parts": ["reasoning", "content", "structured"],
            "operation": "add",
            "preserve_norm": False,
        }
    ]


def test_scale_zero_is_unsteered_and_echoed(server: Server) -> None:
    answer = ask(server, extra_body={"steering": [{"vector": "bold", "scale": 0}]})
    assert answer.choices[0].message.content == text_of(server)
    assert [entry["scale"] for entry in answer.steering] == [0]


@pytest.mark.parametrize("layers", [[0, 2], "0,2", "0-2"])
def test_layers_as_list_and_as_text(server: Server, layers: Any) -> None:
    answer = ask(server, extra_body={"steering": [{"vector": "bold", "layers": layers}]})
    assert answer.steering[0]["layers"] == ([0, 1, 2] if layers == "0-2" else [0, 2])


def test_a_single_direction_goes_wherever_it_is_sent(server: Server) -> None:
    answer = ask(server, extra_body={"steering": [{"vector": "calm", "layers": list(range(LAYERS))}]})
    assert answer.steering[0]["layers"] == [0, 1, 2]


def test_steering_by_model_name(server: Server) -> None:
    revision = server.store.get("calm").revision
    by_field = text_of(server, extra_body={"steering": [{"vector": "calm", "scale": 1.5}, {"vector": "bold"}]})
    for model in ("tiny+calm:1.5+bold", f"tiny+calm@{revision[:8]}:1.5+bold"):
        answer = ask(server, model=model)
        assert (answer.choices[0].message.content, answer.model) == (by_field, model)
        assert [(entry["vector"], entry["scale"]) for entry in answer.steering] == [("calm", 1.5), ("bold", 1.0)]
    assert text_of(server, model="tiny+calm:0") == text_of(server)


def test_the_model_names_steering_comes_before_the_fields(server: Server) -> None:
    answer = ask(server, model="tiny+calm:-2", extra_body={"steering": [{"vector": "bold"}, {"vector": "calm"}]})
    assert [(entry["vector"], entry["scale"]) for entry in answer.steering] == [("calm", -2), ("bold", 1), ("calm", 1)]


def test_the_one_model_serves_requests_that_name_none(server: Server) -> None:
    response = server.http.post("/v1/chat/completions", json={"messages": HELLO, "max_tokens": 2})
    assert (response.status_code, response.json()["model"]) == (200, "tiny")


def test_a_pinned_revision_survives_a_swap_and_a_new_request_sees_it(server: Server) -> None:
    server.store.put("swapped", vector(7))
    first = ask(server, model="tiny+swapped")
    revision = first.steering[0]["revision"]
    server.store.put("swapped", vector(8))
    second = ask(server, model="tiny+swapped")
    assert second.steering[0]["revision"] != revision
    assert second.choices[0].message.content != first.choices[0].message.content
    pinned = ask(server, model=f"tiny+swapped@{revision}")
    assert pinned.choices[0].message.content == first.choices[0].message.content


def test_seeds_repeat_and_choices_differ(server: Server) -> None:
    options = {"n": 4, "seed": 11, "temperature": 1.2}
    first, second = ([c.message.content for c in ask(server, **options).choices] for _ in range(2))
    assert first == second
    assert len(set(first)) == 4
    assert text_of(server, **(options | {"n": 1})) == first[0]


def test_stop_strings_cut_the_text_and_count_their_token(server: Server) -> None:
    answer = ask(server, extra_body={"return_token_ids": True})
    choice = answer.choices[0]
    decoded = server.text.table
    names = [decoded.name_of(token_id) for token_id in choice.token_ids]
    place = next(i for i, name in enumerate(names) if i > 3 and len(name) == 1 and name not in names[:i])
    stopped = ask(server, stop=[names[place]]).choices[0]
    assert stopped.finish_reason == "stop"
    assert stopped.message.content == choice.message.content.partition(names[place])[0]
    assert ask(server, stop=names[place]).usage.completion_tokens == place + 1
    later = ask(server, stop=[names[place]], extra_body={"min_tokens": place + 1})
    assert later.usage.completion_tokens > place + 1
    eventually(server.is_idle)


def test_stop_token_ids_and_ignore_eos(server: Server) -> None:
    token_ids = ask(server, extra_body={"return_token_ids": True}).choices[0].token_ids
    stopped = ask(server, extra_body={"stop_token_ids": [token_ids[5]], "return_token_ids": True})
    assert stopped.choices[0].finish_reason == "stop"
    assert stopped.choices[0].token_ids == token_ids[: token_ids.index(token_ids[5]) + 1]
    forced = {"logit_bias": {"2": 100}}
    ended = ask(server, **forced)
    assert (ended.choices[0].finish_reason, ended.choices[0].message.content) == ("stop", "")
    assert ended.usage.completion_tokens == 1
    ignored = ask(server, extra_body={"ignore_eos": True}, **forced)
    assert (ignored.choices[0].finish_reason, ignored.usage.completion_tokens) == ("length", 24)


def test_logprobs_are_the_steered_models_own(server: Server) -> None:
    answer = ask(server, logprobs=True, top_logprobs=3, max_tokens=8, extra_body={"return_token_ids": True})
    (choice,) = answer.choices
    content = choice.logprobs.content
    assert len(content) == 8
    assert b"".join(bytes(entry.bytes) for entry in content).decode("utf-8", "replace") == choice.message.content
    for entry in content:  # greedy: the likeliest was taken
        assert (entry.top_logprobs[0].token, entry.top_logprobs[0].logprob) == (entry.token, entry.logprob)
        assert [top.logprob for top in entry.top_logprobs] == sorted(
            (top.logprob for top in entry.top_logprobs), reverse=True
        )
    biased = ask(server, logprobs=True, max_tokens=1, logit_bias={str(choice.token_ids[0]): -100})
    assert biased.choices[0].logprobs.content[0].logprob < content[0].logprob
    steered = ask(server, logprobs=True, max_tokens=1, model="tiny+calm")
    assert steered.choices[0].logprobs.content[0].logprob != content[0].logprob


def test_streamed_logprobs_and_token_ids_are_the_same(server: Server) -> None:
    options = {"logprobs": True, "top_logprobs": 1, "extra_body": {"return_token_ids": True}}
    whole = ask(server, **options)
    _, chunks = streamed(server, **options)
    parts = [choice for chunk in chunks for choice in chunk.choices]
    tokens = [entry.token for part in parts if part.logprobs for entry in part.logprobs.content]
    assert tokens == [entry.token for entry in whole.choices[0].logprobs.content]
    assert (
        list(itertools.chain.from_iterable(getattr(part, "token_ids", []) for part in parts))
        == whole.choices[0].token_ids
    )
    assert chunks[0].prompt_token_ids == whole.prompt_token_ids


def test_max_tokens_default_to_what_the_context_leaves(server: Server) -> None:
    answer = ask(server, max_tokens=None, extra_body={"ignore_eos": True})
    assert answer.usage.total_tokens == 512


def test_developer_messages_and_content_parts_are_text(server: Server) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    first = text_of(server, messages=[{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts}])
    second = text_of(
        server, messages=[{"role": "system", "content": "be brief"}, {"role": "user", "content": "one\ntwo"}]
    )
    assert first == second


def test_an_answer_can_go_back_as_the_sdk_gave_it(server: Server) -> None:
    answer = ask(server).choices[0].message
    again = ask(server, messages=[*HELLO, answer, {"role": "user", "content": "go on"}])
    assert again.choices[0].message.content is not None


def test_what_changes_nothing_is_accepted(server: Server) -> None:
    plain = text_of(server)
    assert plain == text_of(
        server,
        user="me",
        metadata={"run": "1"},
        store=False,
        service_tier="auto",
        parallel_tool_calls=True,
        response_format={"type": "text"},
        prompt_cache_key="key",
        safety_identifier="me",
        modalities=["text"],
        tools=[],
        tool_choice="none",
    )


def test_null_means_absent(server: Server) -> None:
    names = ("stop", "seed", "top_p", "n", "tools", "logit_bias", "steering", "stream", "stream_options", "logprobs")
    body = {"messages": HELLO, "max_tokens": 24, "temperature": 0} | dict.fromkeys(names)
    response = server.http.post("/v1/chat/completions", json=body)
    assert response.json()["choices"][0]["message"]["content"] == text_of(server)


def test_template_kwargs_and_template_refusals(server: Server) -> None:
    mood = {"chat_template_kwargs": {"mood": "sadly, "}}
    assert ask(server, extra_body=mood).usage.prompt_tokens == ask(server).usage.prompt_tokens + len("sadly, ")
    with pytest.raises(openai.BadRequestError, match="this word is forbidden"):
        ask(server, messages=[{"role": "user", "content": "forbidden"}])


def steered_by(*entries: dict[str, Any]) -> dict[str, Any]:
    """Options with this steering."""
    return {"extra_body": {"steering": list(entries)}}


TOOL = {"type": "function", "function": {"name": "f"}}
NOT_FOUND, BAD_REQUEST = openai.NotFoundError, openai.BadRequestError
ERRORS: list[tuple[dict[str, Any], type[openai.APIStatusError], str, str]] = [
    ({"model": "other"}, NOT_FOUND, "model_not_found", "model"),
    ({"model": "tiny+nobody"}, NOT_FOUND, "vector_not_found", "model"),
    ({"model": "tiny+calm:much"}, BAD_REQUEST, "invalid_steering", "model"),
    (steered_by({"vector": "calm"}, {"vector": "nobody"}), NOT_FOUND, "vector_not_found", "steering.1.vector"),
    (steered_by({"vector": "calm@000000"}), NOT_FOUND, "revision_not_found", "steering.0.vector"),
    (steered_by({"vector": "bold", "layers": [9]}), BAD_REQUEST, "invalid_layers", "steering.0.layers"),
    ({"max_tokens": 600}, BAD_REQUEST, "context_length_exceeded", "messages"),
    ({"extra_body": {"colour": 1}}, BAD_REQUEST, "unknown_parameter", "colour"),
    ({"tools": [TOOL]}, BAD_REQUEST, "unsupported_parameter", "tools"),
]


@pytest.mark.parametrize(("options", "kind", "code", "param"), ERRORS)
def test_errors_are_the_sdks_own(
    server: Server, options: Any, kind: type[openai.APIStatusError], code: str, param: str
) -> None:
    with pytest.raises(kind) as caught:
        ask(server, **options)
    assert (caught.value.code, caught.value.param, caught.value.type) == (code, param, "invalid_request_error")


def test_a_steered_request_is_never_answered_unsteered(server: Server) -> None:
    with pytest.raises(openai.NotFoundError):
        ask(server, stream=True, extra_body={"steering": [{"vector": "nobody"}]})


def test_many_at_once_with_the_async_client(server: Server) -> None:
    plans = [{"steering": [{"vector": "bold", "scale": scale / 4, "layers": [scale % 3]}]} for scale in range(-8, 8)]
    alone = [text_of(server, extra_body=plan) for plan in plans]

    async def together() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:

            async def one(plan: Any) -> str:
                stream = await client.chat.completions.create(
                    model="tiny", messages=HELLO, max_tokens=24, temperature=0, stream=True, extra_body=plan
                )
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            return await asyncio.gather(*map(one, plans))

    assert asyncio.run(together()) == alone
    eventually(server.is_idle)
