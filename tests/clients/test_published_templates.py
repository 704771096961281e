"""Published chat templates, as the package TRL ships them: what they write as a call is read as this call."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from server.answers.reply import Reply, ReplyParser
from server.text import TextProcessor
from tests.server.answers.chat_templates import tokenizer_with

TEMPLATES = (
    "gptoss",
    "glm4moe",
    "llama3_1",
    "llama3_2",
    "lfm2_2_5",
    "qwen2_5",
    "qwen3",
    "qwen3_vl",
    "qwen3_instruct_2507",
    "qwen3_5_think",
    "qwen3_5_nothink",
    "nemotron_3_nano",
    "gemma4_v3",
    "gemma4_v5",
)
PARAMETERS = {
    "type": "object",
    "properties": {"text": {"type": "string"}, "count": {"type": "integer"}, "last": {"type": "boolean"}},
}
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "note", "description": "x", "parameters": PARAMETERS}}
ARGUMENTS = {"text": "a < b", "count": 7, "last": True}
CALL = {"id": "call_0123456789", "type": "function", "function": {"name": "note", "arguments": ARGUMENTS}}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_published_template_is_read(name: str) -> None:
    package = find_spec("trl")
    if package is None or package.origin is None:
        pytest.skip("needs TRL's chat templates")
    source = (Path(package.origin).parent / "chat_templates" / f"{name}.jinja").read_text()
    text = TextProcessor(tokenizer_with(source))
    asked: list[dict[str, Any]] = [{"role": "user", "content": "hello"}]
    prompt = text.render_chat(asked, tools=[TOOL])
    answered = [*asked, {"role": "assistant", "content": "", "tool_calls": [CALL]}]
    rendered = text.render_chat(answered, tools=[TOOL], add_generation_prompt=False)
    shape = text.chat_format.calls
    assert shape is not None
    start = rendered.rindex(shape.head) if shape.head in rendered else rendered.rindex("to=functions.")
    parser = ReplyParser(text.reading(["note"]), prompt)
    tail = rendered[start:].partition("<|eot_id|>")[0].partition("<|im_end|>")[0]
    thought = "</think>" if prompt.rstrip().endswith("<think>") else ""
    reply = Reply.of([parser.push(thought + tail), parser.finish(is_cut=False)])
    ((call_name, arguments),) = [(call.name, json.loads(call.arguments)) for call in reply.tool_calls]
    assert (call_name, arguments | {"count": int(arguments["count"])}) in (
        ("note", ARGUMENTS),
        ("note", ARGUMENTS | {"last": "True"}),
        ("note", ARGUMENTS | {"last": "true"}),
    )
