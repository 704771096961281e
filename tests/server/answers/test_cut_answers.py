"""Answers cut by `max_tokens` or a stop string: what was complete is told, and what was not is never shown as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from server.answers.closed_list import closed_list
from server.answers.reading import Reading
from server.answers.reply import Reply, ReplyDelta, ReplyParser
from server.text import TextProcessor
from tests.server.answers.call_templates import CHANNEL_TAGS, CHANNELS, FAMILIES
from tests.server.answers.chat_templates import tokenizer_with

ASKED: list[dict[str, Any]] = [{"role": "user", "content": "x"}]
NOTE: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "note",
            "parameters": {
                "type": "object",
                "properties": {"text": {"type": "string"}, "count": {"type": "integer"}},
            },
        },
    }
]
CALLS = [{"text": 'a ], "b', "count": 7}, {"text": "[c", "count": -1}]
THOUGHT = "<|channel|>analysis<|message|>hm so<|end|><|start|>assistant"


class Chat:
    """How one family's answers are written and read."""

    def __init__(self, name: str) -> None:
        family = FAMILIES.get(name)
        template, tags = (CHANNELS, CHANNEL_TAGS) if family is None else (family.template, family.tags)
        is_special = family is None or family.is_special
        tokenizer = tokenizer_with(template, specials=tags if is_special else ())
        if not is_special:
            tokenizer.add_tokens(list(tags))
        self.text = TextProcessor(tokenizer)
        self.reading: Reading = self.text.reading(["note"])
        self.repeats = family is not None and family.repeats
        self.thought = "" if family is None or not family.thinks else "<think>\nhm so\n</think>\n\n"
        self.prompt = self.text.render_chat(ASKED, add_generation_prompt=True)
        self._is_channels = family is None

    def written(self, content: str, arguments: Sequence[dict[str, Any]], *, thinks: bool = False) -> str:
        """An answer in marked text, as the model writes it."""
        made = [
            {"id": f"abcdefgh{index}", "type": "function", "function": {"name": "note", "arguments": each}}
            for index, each in enumerate(arguments)
        ]
        if self._is_channels:
            answer = THOUGHT if thinks else ""
            if content:
                answer += f"<|channel|>final<|message|>{content}"
        else:
            answer = (self.thought if thinks else "") + content
        if made:
            turn = {"role": "assistant", "content": "", "tool_calls": made}
            rendered = self.text.render_chat([*ASKED, turn], add_generation_prompt=False)
            call = rendered.partition("<|im_end|>\n<|im_start|>assistant\n")[2].removesuffix("<|im_end|>\n")
            answer += rendered.rpartition("<|start|>assistant")[2] if self._is_channels else call
        return self.reading.marks.marked(answer)

    def read(self, answer: str, *, is_cut: bool, whole: bool = True) -> tuple[str, str, list[tuple[str, str]]]:
        """Content, reasoning and calls of an answer that comes at once, or character by character."""
        parser = ReplyParser(self.reading, self.prompt, NOTE)
        deltas: list[ReplyDelta] = [parser.push(piece) for piece in ([answer] if whole else answer)]
        reply = Reply.of([*deltas, parser.finish(is_cut=is_cut)])
        return reply.content, reply.reasoning, [(call.name, call.arguments) for call in reply.tool_calls]


@pytest.fixture(scope="module", params=[*FAMILIES, "channels"])
def chat(request: pytest.FixtureRequest) -> Chat:
    return Chat(request.param)


def test_wherever_it_is_cut_an_answer_is_the_beginning_of_the_whole(chat: Chat) -> None:
    """Its parts are beginnings of the whole answer's parts, and calls that were complete are there."""
    content = "" if chat.reading.bare_names is not None or not chat.repeats else "On it. "
    arguments = CALLS if chat.repeats else CALLS[:1]
    answer = chat.written(content, arguments, thinks=True)
    whole_content, whole_reasoning, whole_calls = chat.read(answer, is_cut=False)
    assert (whole_content, len(whole_calls)) == (content.strip(), len(arguments))
    before_calls = len(chat.written(content, [], thinks=True)) + 1  # a line break, which some templates write
    alone = chat.written(content, arguments[:1], thinks=True)
    first = next((at for at, pair in enumerate(zip(alone, answer, strict=False)) if pair[0] != pair[1]), len(alone))
    for end in range(len(answer)):
        cut_content, reasoning, calls = chat.read(answer[:end], is_cut=True, whole=end % 7 != 0)
        assert whole_content.startswith(cut_content if end > before_calls else cut_content.rstrip()), answer[:end]
        assert whole_reasoning.startswith(reasoning)
        assert calls[:-1] == whole_calls[: max(0, len(calls) - 1)]
        for (name, told), (whole_name, whole) in zip(calls[-1:], whole_calls[len(calls) - 1 :], strict=False):
            assert name == whole_name
            assert whole.startswith(told)
        assert end < first or calls[0] == whole_calls[0]


def test_text_that_is_cut_loses_no_more_than_what_may_begin_a_part(chat: Chat) -> None:
    for text in ("a < b, {} or [x]", "1. one\n2. two ", '{"name": "other", "parameters": {"a": 1}}'):
        answer = chat.written(text, [])
        whole = chat.read(answer, is_cut=False)[0]
        shown = ""
        for end in range(len(answer)):
            before, shown = shown, chat.read(answer[:end], is_cut=True)[0]
            assert whole.startswith(shown.rstrip())
            at_most = len('{"name": "') if chat.reading.bare_names else 1
            assert len(before) <= len(shown) + at_most
        assert shown.rstrip() == whole[:-1].rstrip()


def test_a_bare_call_of_no_known_function_is_content() -> None:
    """`llama 3` has nothing but the JSON to tell a call from an answer."""
    bare = Chat("llama 3")
    assert bare.read('{"name": "Bob", "ag', is_cut=True) == ('{"name": "Bob", "ag', "", [])
    assert bare.read('{"name": "Bo', is_cut=True) == ('{"name": "Bo', "", [])
    assert bare.read('{"name": "no', is_cut=True) == ("", "", [])
    assert bare.read('{"name": "note", "param', is_cut=True) == ("", "", [])


@pytest.mark.parametrize(
    ("text", "closed"),
    [
        ('[{"a": "]}"}, {"b', '[{"a": "]}"}]'),
        ('[{"a": "\\"]"}, {"b": 1}', '[{"a": "\\"]"}, {"b": 1}]'),
        (" [f(a='[', b=[1]), g(", "[f(a='[', b=[1])]"),
        ("[f(a='\\\\'), g(b=')'", "[f(a='\\\\')]"),
        ('[{"a": 1', None),
        ("[", None),
        ("", None),
        ('{"a": [1, 2]}', None),
    ],
)
def test_a_list_is_closed_after_its_last_complete_element(text: str, closed: str | None) -> None:
    assert closed_list(text) == closed
