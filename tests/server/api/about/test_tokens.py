"""`/tokenize` and `/detokenize` against the tokenizer itself."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing

from server.api.about import tokens
from server.api.about.tokens import MAX_TOKENS, TokenizeRequest
from server.text import TextProcessor
from tests.server.api.serving import CONTEXT, Server, byte_tokenizer

HELLO: Any = [{"role": "user", "content": "hi"}]


def tokenize(server: Server, **body: Any) -> Any:
    """The answer to a tokenization."""
    response = server.http.post("/tokenize", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def test_a_text_is_tokenized_as_the_tokenizer_does(server: Server) -> None:
    text = "Naïve <|im_end|> text"
    expected = byte_tokenizer().encode(text)
    assert tokenize(server, prompt=text, model="tiny+calm:2") == {
        "count": len(expected),
        "max_model_len": CONTEXT,
        "tokens": expected,
        "token_strs": None,
    }
    named = tokenize(server, prompt=text, return_token_strs=True)
    assert named["token_strs"] == byte_tokenizer().convert_ids_to_tokens(expected)
    assert tokenize(server, prompt="")["tokens"] == []


def test_a_chat_is_tokenized_as_it_is_asked(server: Server) -> None:
    asked = server.http.post(
        "/v1/chat/completions", json={"messages": HELLO, "max_tokens": 1, "return_token_ids": True}
    )
    assert tokenize(server, messages=HELLO)["tokens"] == asked.json()["prompt_token_ids"]
    open_ended = tokenize(server, messages=HELLO, chat_template_kwargs={"mood": "gay "})["tokens"]
    assert str(byte_tokenizer().decode(open_ended)).endswith("<|im_start|>assistant\ngay ")
    closed = tokenize(server, messages=HELLO, add_generation_prompt=False)["tokens"]
    assert byte_tokenizer().decode(closed) == "<|im_start|>user\nhi<|im_end|>\n"


TOOL: Any = {"type": "function", "function": {"name": "track", "parameters": {"type": "object", "properties": {}}}}


def test_tools_are_shown_by_templates_that_know_them() -> None:
    template = "{% for tool in tools or [] %}[{{ tool['function']['name'] }}]{% endfor %}{{ messages[-1]['content'] }}"
    text = TextProcessor(byte_tokenizer(template))
    request = TokenizeRequest.model_validate({"messages": HELLO, "tools": [TOOL]})
    assert text.decode_all(request.encoded(text)) == "[track]hi"


@pytest.mark.parametrize("add", [None, True, False])
def test_special_tokens_are_added_to_texts_and_not_to_chats_unless_told(add: bool | None) -> None:
    tokenizer = byte_tokenizer()
    begins = [("<|pad|>", tokenizer.pad_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<|pad|> $A", special_tokens=begins)
    text = TextProcessor(tokenizer)
    prompt = TokenizeRequest(prompt="hi", add_special_tokens=add).encoded(text)
    chat = TokenizeRequest(messages=HELLO, add_special_tokens=add).encoded(text)
    assert text.decode_all(prompt) == ("hi" if add is False else "<|pad|>hi")
    rendered = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert text.decode_all(chat) == (f"<|pad|>{rendered}" if add else rendered)


def test_token_ids_become_text_with_special_tokens(server: Server) -> None:
    text = "<|im_start|>user\nnaïve<|im_end|>"
    tokens = byte_tokenizer().encode(text)
    assert server.http.post("/detokenize", json={"tokens": tokens, "model": "tiny"}).json() == {"prompt": text}
    assert server.http.post("/detokenize", json={"tokens": []}).json() == {"prompt": ""}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": HELLO}, "messages"),
        ("/tokenize", {"prompt": ["a"]}, "prompt"),
        ("/tokenize", {"prompt": "a", "add_generation_prompt": True}, "add_generation_prompt"),
        ("/tokenize", {"prompt": "a", "chat_template_kwargs": {}}, "chat_template_kwargs"),
        ("/tokenize", {"prompt": "a", "mood": 1}, "mood"),
        ("/tokenize", {"prompt": "a", "model": "other"}, "model"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"messages": HELLO, "continue_final_message": True}, "continue_final_message"),
        ("/tokenize", {"messages": HELLO, "chat_template": "x"}, "chat_template"),
        ("/tokenize", {"messages": HELLO, "tools": [TOOL]}, "tools"),
        ("/tokenize", {"prompt": "a", "tools": [TOOL]}, "tools"),
        ("/tokenize", {"messages": [{"role": "user", "content": "forbidden"}]}, "messages"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": "a"}, "tokens"),
        ("/detokenize", {"tokens": [259]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": [5, True]}, "tokens.1"),
        ("/detokenize", {"tokens": [5] * (MAX_TOKENS + 1)}, "tokens"),
        ("/detokenize", {"tokens": [5], "model": "other"}, "model"),
    ],
    ids=lambda value: f"{value}"[:50],
)
def test_refusals_name_the_field(server: Server, path: str, body: Any, param: str) -> None:
    response = server.http.post(path, json=body)
    assert response.status_code in (400, 404)
    assert response.json()["error"]["param"] == param


def test_a_text_far_beyond_the_limit_is_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "MAX_TOKENS", 20)
    for body in ({"prompt": "a" * 10_000}, {"messages": [{"role": "user", "content": "a" * 10_000}]}):
        refused = server.http.post("/tokenize", json=body)
        error = refused.json()["error"]
        assert (refused.status_code, error["code"]) == (400, "context_length_exceeded")
        assert error["param"] == next(iter(body))
