"""Answers are read the same however their text is cut, like transformers reads them whole, and lose nothing."""

from __future__ import annotations

import dataclasses
import json
import random
import time
from collections.abc import Sequence
from typing import Any

import pytest
from transformers.utils.chat_parsing import parse_response
from transformers.utils.chat_parsing.response_templates import ResponseTemplate, load_response_template

from server.answers.reading import CONTENT, Reading
from server.answers.regions import RegionReader
from server.answers.reply import Reply, ReplyDelta, ReplyParser
from server.text import TextProcessor
from tests.server.answers import chat_templates as styles
from tests.server.answers.chat_templates import tokenizer_with

PROMPT = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look",
            "parameters": {"type": "object", "properties": {"n": {"type": "integer"}, "s": {"type": "string"}}},
        },
    }
]


def derived(chat_template: str, *, with_calls: bool = True) -> ResponseTemplate:
    found = TextProcessor(tokenizer_with(chat_template)).chat_format.reading(with_calls=with_calls).template
    assert found is not None
    return found


TEMPLATES = {
    "derived": derived(styles.THINKING_SWITCH),
    "tight": derived(styles.TIGHT),
    "tagged": load_response_template(styles.TAGGED),
    "channels": load_response_template(styles.CHANNELS),
    "xml": load_response_template(styles.XML_CALLS),
    "listed": load_response_template(styles.LISTED_CALLS),
    "patterned": load_response_template(styles.PATTERNED),
}
TAGS = ("derived", "tagged")
IN_TAGS = pytest.mark.parametrize("name", TAGS)


def read(
    name: str, pieces: Sequence[str], prompt: str = PROMPT, *, is_cut: bool = False
) -> tuple[Reply, list[ReplyDelta]]:
    """A reply read in pieces, and the deltas."""
    parser = ReplyParser(Reading(TEMPLATES[name]), prompt, TOOLS)
    deltas = [parser.push(piece) for piece in pieces] + [parser.finish(is_cut=is_cut)]
    return Reply.of(deltas), deltas


def whole(
    name: str, text: str, prompt: str = PROMPT, *, is_cut: bool = False
) -> tuple[str, str, list[tuple[str, str]]]:
    """Content, reasoning, and names and arguments of the calls."""
    return said(read(name, [text], prompt, is_cut=is_cut)[0])


def said(reply: Reply) -> tuple[str, str, list[tuple[str, str]]]:
    """A reply without the calls' random ids."""
    return reply.content, reply.reasoning, [(call.name, call.arguments) for call in reply.tool_calls]


def cut(rng: random.Random, text: str) -> list[str]:
    """`text` in random pieces, some empty."""
    borders = sorted(rng.choices(range(len(text) + 1), k=rng.randint(0, 12)))
    return [text[start:end] for start, end in zip([0, *borders], [*borders, len(text)], strict=True)]


TAG_FRAGMENTS = [
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<call>",
    "</call>",
    "<tool",
    "_call>",
    "<",
    "</",
]
JSON_FRAGMENTS = [
    '{"name": "look", "arguments": {"n": 1}}', '{"name": "look", "arguments": ', '{"s": "a</tool_call>b"}', "null",
    "{", "}", "[", "]", ",", '"', "\\", '\\"', "1e999",
]  # fmt: skip
OTHER_FRAGMENTS = [
    "[TOOL_CALLS]", "[TOOL_", "<|channel|>", "<|message|>", "analysis", "final", "commentary ", "to=functions.look ",
    "<|call|>", "<|end|>", "<|channel|>final<|message|>", "<function=look>\n", "<parameter=n>\n3\n</parameter>\n",
    "</function>\n",
]  # fmt: skip
TEXT_FRAGMENTS = ["\n", " ", "\t", "\x01", "héé", "日本", "🙂", "a", "hello world", ">"]
FRAGMENTS = TAG_FRAGMENTS + JSON_FRAGMENTS + OTHER_FRAGMENTS + TEXT_FRAGMENTS


def random_text(rng: random.Random) -> str:
    return "".join(rng.choices(FRAGMENTS, k=rng.randint(0, 14)))


@pytest.mark.parametrize("name", TEMPLATES)
def test_how_the_text_is_cut_changes_nothing(name: str) -> None:
    rng = random.Random(5)
    for _ in range(150):
        text = random_text(rng)
        expected = whole(name, text)
        for pieces in (list(text), cut(rng, text)):
            assert said(read(name, pieces)[0]) == expected, (text, pieces)


@pytest.mark.parametrize("name", ["derived", "tight", "tagged", "xml", "listed", "patterned"])
def test_no_character_gets_lost(name: str) -> None:
    rng = random.Random(6)
    for _ in range(300):
        text = random_text(rng)
        reader = RegionReader(Reading(TEMPLATES[name]), PROMPT, TOOLS)
        events = [event for piece in cut(rng, text) for event in reader.feed(piece)] + reader.finish()
        assert "".join(event.text for event in events) == text


def without_space(text: str) -> str:
    return "".join(text.split())


@IN_TAGS
def test_what_is_no_call_is_content(name: str) -> None:
    rng = random.Random(7)
    num_seen = 0
    for _ in range(400):
        text = random_text(rng)
        content, reasoning, calls = whole(name, text)
        if calls or reasoning or "</think>" in text or "<think>" in text:
            continue
        num_seen += 1
        assert without_space(content) == without_space(text)
    assert num_seen > 100


def random_json(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.randrange(5 if depth < 3 else 3)
    if kind == 0:
        return rng.choice([None, True, False, 0, -3, 2.5, 1e20])
    if kind in (1, 2):
        return "".join(rng.choices(['"', "\\", "{", "}", "[", "]", "\n", "é", "日", "🙂", "a", " ", ":", ","], k=8))
    if kind == 3:
        return [random_json(rng, depth + 1) for _ in range(rng.randrange(3))]
    return {rng.choice(["a", 'b"', "{", "é"]): random_json(rng, depth + 1) for _ in range(rng.randrange(4))}


def random_message(rng: random.Random) -> tuple[str, str, list[dict[str, Any]]]:
    """Reasoning, content and calls."""
    reasoning = rng.choice(["", "let me see", "a < b\n\nso <b>", "{"])
    content = rng.choice(["", "Hello.", "Well,\n\nthen </b> <t {", "日本 🙂"])
    calls = [{"name": rng.choice(["look", "x"]), "arguments": {"v": random_json(rng)}} for _ in range(rng.randrange(4))]
    return reasoning, content, calls


def joining(template: ResponseTemplate) -> ResponseTemplate:
    """The same, with all content and not only what comes after the last call."""
    content = dataclasses.replace(template.fields["content"], repeats=True, join="")
    return dataclasses.replace(template, fields=template.fields | {"content": content})


@IN_TAGS
def test_well_formed_answers_are_read_as_transformers_reads_them(name: str) -> None:
    rng = random.Random(8)
    for _ in range(150):
        reasoning, content, calls = random_message(rng)
        texts = [json.dumps(call, ensure_ascii=rng.random() < 0.5) for call in calls]
        text = f"<think>\n{reasoning}\n</think>\n\n" if reasoning else ""
        text += content + "".join(f"\n<tool_call>\n{each}\n</tool_call>" for each in texts)
        reply, _ = read(name, cut(rng, text))
        theirs = parse_response(text, joining(TEMPLATES[name]), prefix=PROMPT)
        assert reply.content == theirs.get("content", "") == content.strip()
        assert reply.reasoning == theirs.get("reasoning", theirs.get("reasoning_content", "")) == reasoning.strip()
        told = [(call.name, json.loads(call.arguments)) for call in reply.tool_calls]
        functions = [call.get("function", call) for call in theirs.get("tool_calls", [])]
        assert told == [(call["name"], call["arguments"]) for call in functions]
        assert told == [(call["name"], call["arguments"]) for call in calls]
        assert len({call.call_id for call in reply.tool_calls}) == len(calls)


FOREIGN = [
    (
        "channels",
        "<|channel|>analysis<|message|>hm, to=functions.x<|end|><|im_start|>assistant<|channel|>commentary "
        'to=functions.look <|constrain|>json<|message|>{"name": "n", "arguments": {"s": "<|call|>"}}<|call|>',
        ("", "hm, to=functions.x", [("look", {"name": "n", "arguments": {"s": "<|call|>"}})]),
    ),
    ("channels", "<|channel|>final<|message|>Hi.\n<|return|>", ("Hi.", "", [])),
    ("channels", "<|channel|>analysis<|message|>so", ("", "so", [])),
    (
        "xml",
        "On it.\n<tool_call>\n<function=look>\n<parameter=n>\n3\n</parameter>\n<parameter=s>\n3\n</parameter>\n"
        "</function>\n</tool_call>\n<tool_call>\n<function=look>\n</function>\n</tool_call>",
        ("On it.", "", [("look", {"n": 3, "s": "3"}), ("look", {})]),
    ),
    (
        "listed",
        '[TOOL_CALLS][{"name": "look", "arguments": {"n": 1}}, {"name": "x", "arguments": {}}]',
        ("", "", [("look", {"n": 1}), ("x", {})]),
    ),
    ("tight", 'So:<call>{"name": "x", "parameters": {"a": [{}]}}</call>', ("So:", "", [("x", {"a": [{}]})])),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "expected"), FOREIGN)
def test_other_styles(name: str, text: str, expected: tuple[str, str, list[tuple[str, Any]]]) -> None:
    for pieces in ([text], list(text)):
        content, reasoning, calls = said(read(name, pieces)[0])
        assert (content, reasoning, [(each, json.loads(arguments)) for each, arguments in calls]) == expected


BROKEN = [
    "<tool_call>\nnothing\n</tool_call>",
    "<tool_call>[1, 2]</tool_call>",
    "<tool_call>{}</tool_call>",
    '<tool_call>{"name": 3, "arguments": {}}</tool_call>',
    '<tool_call>{"name": "look", "arguments": [1]}</tool_call>',
    '<tool_call>{"arguments": {"n": 1}}</tool_call>',
    "<tool_call>{'name': 'look'}</tool_call>",
    '<tool_call>{"name": "look", "argu',
    "<tool_call>",
    "</tool_call>",
    "<tool_call></tool_call>",
    "<tool_call>" + "[" * 20_000 + "</tool_call>",
]


@IN_TAGS
@pytest.mark.parametrize("broken", BROKEN, ids=range(len(BROKEN)))
def test_a_malformed_call_is_shown_as_it_is(name: str, broken: str) -> None:
    assert whole(name, broken) == (broken, "", [])
    assert whole(name, f"well \n{broken}") == (f"well \n{broken}", "", [])
    if broken.endswith("</tool_call>"):
        assert whole(name, f"a {broken} b") == (f"a {broken} b", "", [])
        good = '<tool_call>{"name": "look", "arguments": {}}</tool_call>'
        assert whole(name, f"{broken}\n{good}") == (broken, "", [("look", "{}")])
        assert whole(name, f"{good}\n{broken}") == (broken, "", [("look", "{}")])


def test_other_styles_malformed() -> None:
    for broken in ("<tool_call>\n<function=look>\n<para", "<tool_call>\n<functio"):
        content, _, calls = whole("xml", f"a\n{broken}")
        assert (content, calls) in [(f"a\n{broken}", []), ("a", [("look", "{}")])]
    text = "to=functions.look<|message|>{nothing}<|call|><|channel|>final<|message|>Hi."
    assert whole("channels", text) == ("Hi.", "", [("look", "{nothing}")]), "its arguments are streamed as they come"
    good = '<calls> [{"name": "look"}, {"name": "x", "arguments": {"s": "</call>"}}]</call>'
    text = f"<call>nothing</call>{good} a <call>\n3</calls>é<call>"
    assert whole("patterned", text) == (
        "<call>nothing</call>a <call>\n3</calls>é<call>",
        "",
        [("look", "{}"), ("x", '{"s": "</call>"}')],
    )
    assert whole("listed", "a [TOOL_CALLS]nothing") == ("a [TOOL_CALLS]nothing", "", [])


@IN_TAGS
def test_a_quoted_delimiter_is_part_of_the_arguments(name: str) -> None:
    arguments = {"s": 'a</tool_call>"<tool_call>\\', "</tool_call>": "<think>", "u": "\u2028 </think>"}
    text = f"<tool_call>{json.dumps({'name': 'look', 'arguments': arguments}, ensure_ascii=False)}</tool_call> b"
    content, _, ((_, told),) = whole(name, text)
    assert (content, json.loads(told)) == ("b", arguments)


@IN_TAGS
def test_arguments_come_while_they_are_written(name: str) -> None:
    text = '<tool_call>\n{"name": "look", "arguments": {"s": "long text", "n": {"a": "}"}}}\n</tool_call>'
    reply, deltas = read(name, list(text))
    told = [call for delta in deltas for call in delta.tool_calls]
    assert "".join(call.arguments for call in told) == reply.tool_calls[0].arguments
    assert reply.tool_calls[0].arguments == '{"s": "long text", "n": {"a": "}"}}'
    assert len(told) > 20
    assert [call.name for call in told] == ["look"] + [None] * (len(told) - 1)
    assert [call.call_id is None for call in told] == [False] + [True] * (len(told) - 1)
    assert {call.index for call in told} == {0}


@IN_TAGS
def test_line_breaks_in_strings_are_escaped(name: str) -> None:
    """Models write them raw, which is no JSON."""
    text = '<tool_call>{"name": "look", "arguments": {"s": "a\nb\t"}}</tool_call>'
    ((_, arguments),) = whole(name, text)[2]
    assert json.loads(arguments) == {"s": "a\nb\t"}


@IN_TAGS
def test_names_and_arguments_in_any_order(name: str) -> None:
    text = '<tool_call>{"arguments": {"s": "é"}, "name": "look"}</tool_call>'
    assert whole(name, text) == ("", "", [("look", '{"s": "é"}')])
    assert whole(name, text.replace("arguments", "parameters"))[2] == [("look", '{"s": "é"}')]
    assert whole(name, '<tool_call>{"name": "look"}</tool_call>')[2] == [("look", "{}")]


@IN_TAGS
@pytest.mark.parametrize("is_cut", [False, True])
def test_a_call_cut_by_the_end_is_told_as_far_as_it_goes(name: str, is_cut: bool) -> None:
    text = 'On it. <tool_call>\n{"name": "look", "arguments": {"s": "ab", "n": [1'
    assert whole(name, text, is_cut=is_cut) == ("On it.", "", [("look", '{"s": "ab", "n": [1')])
    for end in ("", "</tool_"):
        text = f'<tool_call>{{"name": "look", "arguments": {{}}}}{end}'
        assert whole(name, text, is_cut=is_cut) == ("", "", [("look", "{}")])


@IN_TAGS
@pytest.mark.parametrize("end", ["<", "</", "<t", "<tool_cal", "<think", "</think"])
def test_what_might_have_become_a_marker_is_shown_at_the_end(name: str, end: str) -> None:
    assert whole(name, f"so {end}") == (f"so {end}", "", [])
    _, deltas = read(name, [*"so ", *end])
    held = "" if end.startswith("</") else end
    assert "".join(delta.content for delta in deltas[:-1]) == f"so {end}".removesuffix(held).rstrip()
    assert whole(name, f"{end} b")[0] == f"{end} b"


@IN_TAGS
def test_white_space_between_parts_belongs_to_none(name: str) -> None:
    call = '<tool_call>{"name": "look", "arguments": {}}</tool_call>'
    assert whole(name, f"<think>\n a \n</think>\n\n b \n{call}\n{call}\n") == (
        "b",
        "a",
        [("look", "{}"), ("look", "{}")],
    )
    assert whole(name, " \n plain text \n\n") == (" \n plain text \n\n", "", [])
    assert whole(name, "<think>a</think>\n b\n") == ("b\n", "a", [])
    assert whole(name, "<think>a \n") == ("", "a", [])
    assert whole(name, "<think>\n\n</think>\n\nb") == ("b", "", [])


@IN_TAGS
def test_reasoning_that_the_prompt_began(name: str) -> None:
    begun = f"{PROMPT}<think>\n"
    assert whole(name, "hm\n</think>\n\nyes", begun) == ("yes", "hm", [])
    assert whole(name, "hm", begun) == ("", "hm", [])
    closed = f"{PROMPT}<think>\n\n</think>\n\n"
    assert whole(name, "yes", closed) == ("yes", "", [])


@IN_TAGS
def test_a_prompt_without_the_anchor_begins_nothing(name: str) -> None:
    for prompt in ("<think>", "<tool_call>{nothing}</tool_call>", "<tool_call>"):
        assert whole(name, "yes", prompt) == ("yes", "", [])


def test_a_format_without_parts_is_content() -> None:
    parser = ReplyParser(CONTENT, PROMPT)
    text = " <think>a</think><tool_call>{}</tool_call> \n"
    assert parser.push(text) + parser.finish(is_cut=False) == ReplyDelta(content=text)
    assert not parser.has_calls


@IN_TAGS
def test_reasoning_tokens_are_counted(name: str) -> None:
    parser = ReplyParser(Reading(TEMPLATES[name]), PROMPT)
    for piece in ("<think>", "a", " b", "</think>", "c", "d"):
        parser.push(piece, num_tokens=1)
    assert parser.num_reasoning_tokens == 3, "two inside and the one that closes"


@pytest.mark.parametrize("name", ["derived", "channels", "xml"])
def test_reading_costs_little(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It prints what a token costs."""
    long = "word </b> " * 400
    call = json.dumps({"name": "look", "arguments": {"s": long, "n": {}}})
    text = f"<think>{long}</think>{long}<tool_call>{call}</tool_call>"
    pieces = [text[at : at + 4] for at in range(0, len(text), 4)]
    start = time.perf_counter()
    reply, _ = read(name, pieces)
    seconds = time.perf_counter() - start
    with capsys.disabled():
        print(f"\n{name}: {seconds / len(pieces) * 1e6:.0f} us a token of four characters ({len(text)} characters)")
    assert name != "derived" or len(reply.tool_calls) == 1
