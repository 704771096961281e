"""Reasoning apart from the answer, stops and tokens around held-back text, through the official SDK."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tests.server.answers import chat_templates as styles
from tests.server.answers.chat_templates import tokenizer_with
from tests.server.api.chat.shapes import exactly
from tests.server.api.generation.dictating import serving_chats
from tests.server.api.serving import Server, byte_tokenizer

IDS = {"extra_body": {"return_token_ids": True}}
CALL = '<tool_call>\n{"name": "look", "arguments": {"at": "é"}}\n</tool_call>'
LOOK: Any = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
NUMBER: Any = {
    "type": "json_schema",
    "json_schema": {"name": "number", "schema": {"type": "integer", "minimum": 1, "maximum": 99}},
}


@pytest.fixture(scope="module")
def thinking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A model that repeats what it is told, and whose prompts may turn reasoning off."""
    with serving_chats(tmp_path_factory.mktemp("data"), styles.THINKING_SWITCH) as running:
        yield running


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The same, where prompts begin the reasoning."""
    with serving_chats(tmp_path_factory.mktemp("data"), styles.THINKING) as running:
        yield running


def ask(server: Server, text: str, **options: Any) -> ChatCompletion:
    """What the model says when it is told to say `text`, checked against the SDK's types."""
    raw = server.sdk.chat.completions.with_raw_response.create(**asking(text), **options)
    answer: ChatCompletion = exactly(ChatCompletion, json.loads(raw.text))
    return answer


def streamed(server: Server, text: str, **options: Any) -> list[ChatCompletionChunk]:
    """The same in chunks."""
    stream = server.sdk.chat.completions.with_streaming_response
    with stream.create(**asking(text), stream=True, **options) as response:
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert lines.pop() == "[DONE]"
    return [exactly(ChatCompletionChunk, json.loads(line)) for line in lines]


def asking(text: str) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": text}]}


def told(server: Server, text: str, **options: Any) -> tuple[str | None, str | None, int]:
    """Content, reasoning, and the number of reasoning tokens."""
    answer = ask(server, text, **options)
    message, usage = answer.choices[0].message, answer.usage
    assert usage is not None
    assert usage.completion_tokens_details is not None
    assert usage.completion_tokens_details.reasoning_tokens is not None
    reasoning = (message.model_extra or {}).get("reasoning_content")
    return message.content, reasoning, usage.completion_tokens_details.reasoning_tokens


def test_reasoning_is_apart_from_the_answer(thinking: Server, begun: Server) -> None:
    closing = len("</think>")
    assert told(thinking, "<think>\nhm\n</think>\n\nyes") == ("yes", "hm", len("\nhm\n") + closing)
    assert told(begun, "hm\n</think>\n\nyes") == ("yes", "hm", len("hm\n") + closing)
    assert told(begun, "hm", max_tokens=2) == ("", "hm", 2)
    assert told(thinking, "yes") == ("yes", None, 0)
    assert told(thinking, "yes", reasoning_effort="none") == ("yes", None, 0)


def test_a_stream_says_the_same(begun: Server) -> None:
    text = f"hm < é\n</think>\n\nOn it.\n{CALL}"
    options: dict[str, Any] = {"tools": [LOOK], "logprobs": True, **IDS}
    whole = ask(begun, text, **options).choices[0]
    parts = [chunk.choices[0] for chunk in streamed(begun, text, **options)]
    extras = [part.delta.model_extra or {} for part in parts]
    assert "".join(extra.get("reasoning_content", "") for extra in extras) == "hm < é"
    assert "".join(part.delta.content or "" for part in parts) == whole.message.content == "On it."
    called = [call.function for part in parts for call in part.delta.tool_calls or [] if call.function]
    assert "".join(call.arguments or "" for call in called) == '{"at": "é"}'
    assert [part.finish_reason for part in parts if part.finish_reason] == ["tool_calls"]


@pytest.mark.parametrize(
    "text", ["hm\n</think>\n\nyes", f"</think>{CALL}{CALL}", "a < b</thin", f"</think>x {CALL[:-5]}"]
)
def test_every_token_is_told_once(begun: Server, text: str) -> None:
    options: dict[str, Any] = {"tools": [LOOK], "logprobs": True, "top_logprobs": 1, **IDS}
    whole = ask(begun, text, **options).choices[0]
    parts = [chunk.choices[0] for chunk in streamed(begun, text, **options)]
    ids = [token_id for part in parts for token_id in (part.model_extra or {}).get("token_ids", [])]
    tokens = [entry.token for part in parts if part.logprobs for entry in part.logprobs.content or []]
    assert whole.logprobs is not None
    assert ids == (whole.model_extra or {})["token_ids"]
    assert tokens == [entry.token for entry in whole.logprobs.content or []]
    written = byte_tokenizer(None).encode(text, add_special_tokens=False)
    assert ids == [*written, 2]
    assert len(tokens) == len(ids)


@pytest.mark.parametrize("stop", ["STOP", "\nSTOP", "é!"])
def test_a_stop_across_tokens_never_leaks(begun: Server, stop: str) -> None:
    for before in ("hm</think>yes", f"</think>{CALL}\nx", "</think>a <tool_"):
        text = f"{before}{stop}and more"
        options: dict[str, Any] = {"tools": [LOOK], "stop": [stop], **IDS}
        whole = ask(begun, text, **options).choices[0]
        parts = [chunk.choices[0] for chunk in streamed(begun, text, **options)]
        told = "".join(
            (part.delta.content or "") + (part.delta.model_extra or {}).get("reasoning_content", "") for part in parts
        )
        message = whole.message
        assert told == (message.model_extra or {}).get("reasoning_content", "") + (message.content or "")
        assert not any(character in told for character in "STOP!")
        assert whole.finish_reason == ("tool_calls" if message.tool_calls else "stop")
        ids = [token_id for part in parts for token_id in (part.model_extra or {}).get("token_ids", [])]
        assert ids == byte_tokenizer(None).encode(before + stop, add_special_tokens=False)


def test_a_stop_in_the_reasoning_is_reasoning(begun: Server, thinking: Server) -> None:
    assert told(begun, "hm STOP hm</think>yes STOP no", stop=["STOP"])[:2] == ("yes ", "hm STOP hm")
    assert told(thinking, "<think>a STOP</think>b STOP c", stop=[" STOP"])[:2] == ("b", "a STOP")
    assert told(thinking, "a<think>STOP</think>", stop=["STOP"])[:2] == ("a<think>", None)


def test_a_constrained_answer_may_be_thought_about(thinking: Server, begun: Server) -> None:
    content, reasoning, num_tokens = told(begun, "hm, 7?</think>", response_format=NUMBER)
    assert (reasoning, num_tokens) == ("hm, 7?", len("hm, 7?</think>"))
    assert 1 <= int(content or "") <= 99
    assert told(thinking, "<think>hm</think>\n\n5", response_format=NUMBER)[1] == "hm"
    assert 1 <= int(told(thinking, "7", response_format=NUMBER)[0] or "") <= 99
    called = ask(begun, "hm</think>", tools=[LOOK], tool_choice="required", max_tokens=60)
    assert (called.choices[0].message.model_extra or {})["reasoning_content"] == "hm"


def test_markers_that_are_special_tokens_are_read_too(tmp_path: Path) -> None:
    """Other special tokens are no part of any text, and without parts to read neither are these."""
    specials = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<|other|>"]
    tokenizer = tokenizer_with(styles.THINKING_SWITCH, specials=specials)
    with serving_chats(tmp_path, styles.THINKING_SWITCH, tokenizer=tokenizer) as server:
        text = f"<think>h<|other|>m</think>On <|other|>it.{CALL}"
        answer = ask(server, text, tools=[LOOK], **IDS).choices[0]
        (call,) = answer.message.tool_calls or []
        message = answer.message
        assert (message.content, message.model_extra) == ("On it.", {"reasoning_content": "hm"})
        assert call.model_dump()["function"] == {"name": "look", "arguments": '{"at": "é"}'}
        assert (answer.model_extra or {})["token_ids"][0] == tokenizer.convert_tokens_to_ids("<think>")
        required = ask(server, "<think>hm</think>", tools=[LOOK], tool_choice="required", max_tokens=60).choices[0]
        assert required.message.model_extra == {"reasoning_content": "hm"}
        assert required.message.tool_calls


def prompt_of(server: Server, **options: Any) -> str:
    extra = {"extra_body": {"return_token_ids": True} | options.pop("extra_body", {})}
    answer = ask(server, "x", **options, **extra)
    return server.text.decode_all((answer.model_extra or {})["prompt_token_ids"])


def test_effort_reaches_the_prompt_or_is_refused(thinking: Server, begun: Server) -> None:
    off = "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert prompt_of(thinking, reasoning_effort="none").endswith(off)
    assert prompt_of(thinking, extra_body={"chat_template_kwargs": {"enable_thinking": False}}).endswith(off)
    for options in ({"reasoning_effort": "high"}, {}):
        assert prompt_of(thinking, **options).endswith("<|im_start|>assistant\n")
    for effort in ("none", "high"):
        with pytest.raises(openai.BadRequestError) as caught:
            ask(begun, "x", reasoning_effort=effort)
        assert (caught.value.param, caught.value.code) == ("reasoning_effort", "unsupported_parameter")


def test_thoughts_go_back_to_the_template(tmp_path: Path) -> None:
    template = styles.THINKING_SWITCH.replace(
        "(message['content'] or '')", "(message['reasoning_content'] or '-') + message['content']"
    )
    with serving_chats(tmp_path, template) as server:
        messages: Any = [
            {"role": "assistant", "content": "a", "reasoning_content": "because "},
            *asking("x")["messages"],
        ]
        answer = server.sdk.chat.completions.create(
            model="tiny", messages=messages, extra_body={"return_token_ids": True}
        )
        prompt = server.text.decode_all((answer.model_extra or {})["prompt_token_ids"])
        assert "assistant\nbecause a<|im_end|>" in prompt
