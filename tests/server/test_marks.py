"""Marks: a delimiter's token is one character that no text contains, and comes back as its text."""

from __future__ import annotations

import json
import re

import pytest

from server.answers.parts import AnswerParts
from server.detokenizer import ChoiceText, TokenTable
from server.marks import Marks, hidden_marks, is_tag
from server.text import TextProcessor
from tests.server.answers.chat_templates import THINKING_SWITCH, tokenizer_with

MARKS = Marks({7: "<think>", 8: "</think>", 9: "<|channel|>"})


def test_marks_come_back_as_their_text() -> None:
    text = "a<think>b</think><|channel|>c"
    marked = MARKS.marked(text)
    assert len(marked) == 6
    assert MARKS.plain(marked) == text
    assert MARKS.without(marked) == "abc"
    assert {MARKS.of(7), MARKS.of(8), MARKS.of(9)} == set(marked) - set("abc")
    assert MARKS.of(1) is None
    with pytest.raises(UnicodeEncodeError):
        marked.encode()


def test_marks_in_json_are_escaped() -> None:
    quote = Marks({5: '<|"|>'})
    assert json.loads(quote.plain_json(f'{{"a": "{quote.of(5)}b"}}')) == {"a": '<|"|>b'}


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (r"<\|channel\|>final", "<|channel|>final"),
        (r"<think>\s*", "<think>  "),
        (re.escape("</think>"), "</think>"),
    ],
)
def test_patterns_are_marked_escaped_or_not(pattern: str, text: str) -> None:
    assert re.fullmatch(MARKS.marked_pattern(pattern), MARKS.marked(text))


def test_what_is_a_tag() -> None:
    assert all(map(is_tag, ("<think>", "[TOOL_CALLS]", "<｜tool▁sep｜>", "</s>")))
    assert not any(map(is_tag, ("name", "\n\n", "  ", "<>", " <a>")))
    assert hidden_marks({7: "<x>"}).of(7) != Marks({7: "<x>"}).of(7)


WORDS = ["õ", "naïve", "ação", "Škoda", "<tool_call>"]


def test_added_words_are_their_letters() -> None:
    tokenizer = tokenizer_with(None)
    tokenizer.add_tokens(WORDS)
    table = TokenTable(tokenizer)
    for word in WORDS:
        (token_id,) = tokenizer.encode(word, add_special_tokens=False)
        assert table.bytes_of(token_id).decode() == word


def test_a_stop_may_name_a_control_token_and_part_of_a_mark() -> None:
    tokenizer = tokenizer_with(None, specials=["<think>"])
    table = TokenTable(tokenizer)
    mark_id = tokenizer.convert_tokens_to_ids("<think>")
    for stop in ("<|im_start|>", "a<|im_start|>", "x"):
        text = ChoiceText(table, begins_text=True, stops=[stop])
        shown = "".join(
            text.push(token_id) for token_id in tokenizer.encode("hia<|im_start|>", add_special_tokens=False)
        )
        assert (shown + text.flush(), text.is_stopped) == ("hi" if stop[0] == "a" else "hia", stop != "x")
    text = ChoiceText(table, begins_text=True, stops=["ink>!"], marks=Marks({mark_id: "<think>"}))
    assert text.push(mark_id) == ""
    assert text.push(tokenizer.encode("!", add_special_tokens=False)[0]) == ""
    assert text.is_stopped


def test_a_stop_inside_a_thought_does_not_stop() -> None:
    """Whether the thought's delimiters are tokens or letters; a stop after it does."""
    for specials in ([], ["<think>", "</think>"]):
        processor = TextProcessor(tokenizer_with(THINKING_SWITCH, specials=specials))
        reading = processor.reading(())
        thought = AnswerParts(processor.table, reading).start()
        text = ChoiceText(processor.table, begins_text=True, stops=["hm"], marks=processor.marks, thought=thought)
        shown = ""
        for token_id in processor.encode("<think>hm, h</think>m, hm, more", add_special_tokens=False):
            shown += text.push(token_id)
            if text.is_stopped:
                break
        assert (processor.marks.plain(shown), text.is_stopped) == ("<think>hm, h</think>m, ", True)
