"""The engine's reader of parts says of every token what the reader of answers says of its text."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
from transformers import AutoTokenizer
from transformers.utils.chat_parsing.response_templates import ResponseTemplate, load_response_template

from server.answers.chat_format import CALLS_FIELD, REASONING_FIELDS
from server.answers.parts import AnswerParts
from server.answers.reading import CONTENT, Reading
from server.answers.regions import RegionChange, RegionReader, opened_field
from server.demo import MODEL_DIR
from server.detokenizer import Detokenizer, TokenTable
from tests.server.answers import chat_templates as styles
from tests.server.answers.chat_templates import tokenizer_with
from tests.server.answers.test_reply import PROMPT, TEMPLATES, random_text

WIDE: dict[str, Any] = {
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "content": {},
        "reasoning": {"open": "<｜think▁begin｜>", "close": "<｜think▁end｜>"},
        "tool_calls": {"open": "<｜call▁begin｜>", "close": "<｜call▁end｜>", "content": "json"},
    },
}
"""Delimiters whose characters are several bytes each, in models that have a token for every byte."""

TOKENIZERS = {"bytes": tokenizer_with(styles.PLAIN), "embedded": AutoTokenizer.from_pretrained(MODEL_DIR)}
STYLES = {name: template for name, template in TEMPLATES.items() if name in ("derived", "tight", "tagged")} | {
    "wide": load_response_template(WIDE)
}


def part_of(field: str | None) -> str:
    if field in REASONING_FIELDS:
        return "reasoning"
    return "tool_calls" if field == CALLS_FIELD else "content"


def parts_by_text(template: ResponseTemplate, prompt: str, table: TokenTable, token_ids: list[int]) -> list[str]:
    """The part before each token, and after the last, by reading the text."""
    detokenizer = Detokenizer(table, begins_text=True)
    texts = [detokenizer.push(token_id) for token_id in token_ids]
    reader = RegionReader(Reading(template), prompt)
    field, ends = reader.open_field, []
    for event in reader.feed("".join(texts)):
        ends += [field] * len(event.text)  # the field in which each character of the event is read
        if event.field != template.implicit:
            opens = event.change in (RegionChange.OPENED, RegionChange.CONTINUED)
            field = event.field if opens else None
    ends += [field] * (sum(map(len, texts)) + 1 - len(ends))  # with the one that would come next
    offsets = itertools.accumulate(map(len, texts), initial=0)
    return [part_of(ends[offset]) for offset in offsets]


def parts_by_tokens(template: ResponseTemplate, prompt: str, table: TokenTable, token_ids: list[int]) -> list[str]:
    """The same as the engine asks for it."""
    state = AnswerParts(table, Reading(template), opened=opened_field(Reading(template), prompt)).start()
    parts: list[str] = [state.part]
    for token_id in token_ids:
        state.accept(token_id)
        parts.append(state.part)
    return parts


def text_in_style(rng: random.Random, style: str) -> str:
    text = random_text(rng)
    if style == "wide":
        text = text.replace("<think>", "<｜think▁begin｜>").replace("</think>", "<｜think▁end｜>")
        text = text.replace("<tool_call>", "<｜call▁begin｜>").replace("</tool_call>", "<｜call▁end｜>")
    return text


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("prompt", [PROMPT, f"{PROMPT}<think>\n"], ids=["", "reasoning"])
def test_both_readers_agree(style: str, tokenizer: str, prompt: str) -> None:
    rng = random.Random(3)
    table = TokenTable(TOKENIZERS[tokenizer])
    seen = set()
    for _ in range(150):
        text = text_in_style(rng, style)
        token_ids = TOKENIZERS[tokenizer].encode(text, add_special_tokens=False)
        expected = parts_by_text(STYLES[style], prompt, table, token_ids)
        assert parts_by_tokens(STYLES[style], prompt, table, token_ids) == expected, text
        seen |= set(expected)
    assert "content" in seen
    assert len(seen) == (2 if style == "tight" else 3)


def test_one_state_does_not_know_of_another() -> None:
    table = TokenTable(TOKENIZERS["bytes"])
    parts = AnswerParts(table, Reading(TEMPLATES["derived"]))
    one, other = parts.start(), parts.start()
    for token_id in TOKENIZERS["bytes"].encode("<think>", add_special_tokens=False):
        one.accept(token_id)
    assert (one.part, other.part, parts.start().part) == ("reasoning", "content", "content")


def test_outside_of_the_fields_is_what_the_request_is_about() -> None:
    table = TokenTable(TOKENIZERS["bytes"])
    assert AnswerParts(table, CONTENT, outside="structured").start().part == "structured"
    state = AnswerParts(table, Reading(TEMPLATES["derived"]), outside="structured").start()
    parts: list[str] = []
    for token_id in TOKENIZERS["bytes"].encode("<think>a</think>{", add_special_tokens=False):
        state.accept(token_id)
        parts.append(state.part)
    assert parts == ["structured"] * 6 + ["reasoning"] * 9 + ["structured"] * 2


def test_channels() -> None:
    table = TokenTable(TOKENIZERS["bytes"])
    texts = {
        "<|channel|>analysis<|message|>": "content",
        "hm": "reasoning",
        "<|end|>": "reasoning",
        "<|im_start|>assistant<|channel|>commentary to=functions.look <|constrain|>json<|message|>": "content",
        '{"s": "<|call|>"}<|call|>': "tool_calls",
        "<|channel|>final<|message|>Hi.": "content",
    }
    state = AnswerParts(table, Reading(TEMPLATES["channels"])).start()
    for text, part in texts.items():
        for token_id in TOKENIZERS["bytes"].encode(text, add_special_tokens=False):
            assert state.part == part, text
            state.accept(token_id)
