"""Which answers a grammar takes: a call in the model's own form under a tool's schema, and nothing beside it."""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest

from server.answers.compiler import GrammarCompiler
from server.answers.grammar_source import after_reasoning, answer, json_answer
from server.answers.tools import Tool, ToolUse
from server.engine.grammar import allowed_tokens
from server.text import TextProcessor
from tests.server.answers import chat_templates as styles
from tests.server.answers.chat_templates import tokenizer_with

END = 2
TEXTS = {
    "spelled": TextProcessor(tokenizer_with(styles.THINKING)),
    "tokens": TextProcessor(
        tokenizer_with(styles.THINKING, specials=["<think>", "</think>", "<tool_call>", "</tool_call>"])
    ),
}
"""Tokenizers that spell the markers, and that have a special token for each."""
VOCABULARY = 263


@functools.cache
def compiler_of(processor: TextProcessor) -> GrammarCompiler:
    return processor.grammar_compiler(VOCABULARY, [END])


def takes(source: str, text: str, processor: TextProcessor = TEXTS["spelled"]) -> bool:
    """True when `text` may be a whole answer."""
    state = compiler_of(processor).compile(source).start()
    for token_id in processor.encode(text, add_special_tokens=False):
        if not allowed_tokens(state, VOCABULARY)[token_id]:
            return False
        state.accept(token_id)
    return state.is_complete or bool(allowed_tokens(state, VOCABULARY)[END])


def tool(name: str, **properties: Any) -> Tool:
    schema = {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}
    return Tool(name, None, schema, strict=True)


GET = tool("get", a={"enum": [1, "</tool_call>"]})
GO = tool("go")
BOTH = (GET, GO)
ANSWER = {"type": "object", "properties": {"x": {"type": "boolean"}}, "required": ["x"], "additionalProperties": False}


def call(name: str, **arguments: Any) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {json.dumps(arguments)}}}\n</tool_call>'


ONE, QUOTING, OTHER, WRONG, UNKNOWN = (
    call("get", a=1),
    call("get", a="</tool_call>"),
    call("go"),
    call("get"),
    call("x"),
)
CASES: list[tuple[ToolUse, Any, list[str], list[str]]] = [
    (
        ToolUse(BOTH, "required"),
        None,
        [ONE, QUOTING, OTHER, f"{ONE}\n{OTHER}\n{ONE}"],
        ["", "hm", f"hm{ONE}", WRONG, UNKNOWN, f"{ONE} x", ONE[:-1], f"{ONE}{ONE}"],
    ),
    (ToolUse(BOTH, "required", parallel=False), None, [ONE, OTHER], [f"{ONE}\n{OTHER}", "", "hm"]),
    (ToolUse(BOTH, "required", frozenset({"go"})), None, [OTHER], [ONE]),
    (
        ToolUse(BOTH, "auto"),
        None,
        ["", "hm", "hm <tool", ONE, f"hm\n{QUOTING}\n{OTHER}", f"{ONE} hm", f"{ONE}{ONE}"],
        [WRONG, UNKNOWN, f"hm {WRONG}", ONE[:-20], f"{ONE}\n{UNKNOWN}", "<tool_call>hm"],
    ),
    (ToolUse(BOTH, "auto", parallel=False), None, ["", "hm", ONE, f"hm {ONE}"], [f"{ONE}\n{ONE}", f"{ONE} hm"]),
    (ToolUse(BOTH, "auto", frozenset({"go"})), None, ["hm", OTHER], [ONE]),
    (ToolUse(BOTH, "auto"), ANSWER, ['{"x": true}', ONE, f"{ONE}\n{OTHER}"], ["hm", '{"x": 1}', f'{ONE}{{"x": true}}']),
    (ToolUse(BOTH, "none"), ANSWER, ['{"x": true}'], [ONE]),
]


@pytest.mark.parametrize(("use", "schema", "good", "bad"), CASES, ids=range(len(CASES)))
@pytest.mark.parametrize("thinks", [False, True], ids=["", "after reasoning"])
@pytest.mark.parametrize("markers", TEXTS)
def test_answers(use: ToolUse, schema: Any, good: list[str], bad: list[str], thinks: bool, markers: str) -> None:
    text = TEXTS[markers]
    source = answer(schema, use, text.chat_format.calls, text.terminal, never_first="<think>" if thinks else "")
    before = [""]
    if thinks:
        source = after_reasoning(source, ("<think>", "</think>"), text.terminal, is_open=False)
        before = ["", "<think></think>", "<think>\nhm {\n</think>\n\n"]
        before += [f"<think>{WRONG}</think>"] if markers == "spelled" else []
    # where the marker is a special token, no string can have it, and its spelling is text like any other
    for thoughts in before:
        taken = {each: takes(source, thoughts + each, text) for each in good + bad}
        assert [each for each in good if not taken[each] and (markers == "spelled" or QUOTING not in each)] == []
        assert [each for each in bad if taken[each]] == []


@pytest.mark.parametrize("markers", TEXTS)
def test_reasoning_that_has_begun_must_end(markers: str) -> None:
    text = TEXTS[markers]
    source = answer(ANSWER, ToolUse(), None, text.terminal)
    begun = after_reasoning(source, ("<think>", "</think>"), text.terminal, is_open=True)
    assert takes(begun, 'hm {"x": true}\n</think>\n\n{"x": true}', text)
    assert not takes(begun, '{"x": true}', text)
    assert not takes(begun, "hm</think>hm", text)


def test_parameters_that_are_none_leave_nothing_to_give() -> None:
    """A function without parameters is described so by its clients, who do not say `additionalProperties`."""
    bare = Tool("bare", None, {"type": "object", "properties": {}})
    text = TEXTS["spelled"]
    source = answer(None, ToolUse((bare,), "required"), text.chat_format.calls, text.terminal)
    assert takes(source, call("bare"))
    assert not takes(source, call("bare", a=1))
    anything = answer(
        None, ToolUse((Tool("bare", None, {"type": "object"}),), "required"), text.chat_format.calls, text.terminal
    )
    assert takes(anything, call("bare", a=1))


@pytest.mark.parametrize("value", ["<|im_end|>", "a<|im_start|>b", "</think><tool_call>"])
def test_strings_may_spell_control_tokens(value: str) -> None:
    """What forces such a text may not force the token, which ends answers and is no text."""
    processor = TEXTS["tokens"]
    state = compiler_of(processor).compile(json_answer({"const": value})).start()
    token_ids: list[int] = []
    while not state.is_complete and END not in token_ids:
        token_ids += allowed_tokens(state, VOCABULARY).nonzero().flatten().tolist()
        state.accept(token_ids[-1])
    assert json.loads(b"".join(map(processor.table.bytes_of, token_ids))) == value
    assert not any(map(processor.table.is_special, token_ids))
