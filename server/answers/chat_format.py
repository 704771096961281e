"""ChatFormat: how a model writes the parts of its answers, read from its tokenizer and chat template.

A tokenizer with a `response_template` declares it. For the others, a conversation with tool calls is rendered through
the chat template, and the format is read from what surrounds the names and arguments.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from transformers.utils.chat_parsing.response_templates import ResponseTemplate, load_response_template

REASONING_FIELDS = frozenset({"thinking", "reasoning", "reasoning_content"})
"""The names that response templates have for the part before the answer."""

CALLS_FIELD = "tool_calls"

_NAMES = ("tiller_probe_one", "tiller_probe_two")
_ARGUMENTS = re.compile(r'\{\s*"tiller_key"\s*:\s*"tiller_value"\s*\}')
_ARGUMENTS_KEYS = ("arguments", "parameters")
_THINK_OPEN, _THINK_CLOSE = "<think>", "</think>"

Render = Callable[..., str]
"""`(messages, *, tools=(), add_generation_prompt=False)` -> text; raises whatever the template raises."""


@dataclass(frozen=True, slots=True)
class CallShape:
    """The text around the name and the JSON arguments of a tool call, as the model writes it.

    `opening name middle arguments closing`; another call follows as `separator opening …`.
    """

    opening: str
    middle: str
    closing: str
    separator: str

    @property
    def markers(self) -> tuple[str, str]:
        """The text before and after a call's JSON object."""
        return self.opening.partition("{")[0].strip(), self.closing.rpartition("}")[2].strip()


@dataclass(frozen=True)
class ChatFormat:
    """The parts that an answer may have.

    `spec` is a response template as transformers reads it; None: an answer is only content. `calls` is None when tool
    calls cannot be constrained. `takes_tools`: the chat template shows tools to the model.
    """

    spec: Mapping[str, Any] | None
    calls: CallShape | None
    takes_tools: bool

    @property
    def has_reasoning(self) -> bool:
        """True when answers may begin with reasoning."""
        return self.spec is not None and bool(REASONING_FIELDS & self.spec["fields"].keys())

    @property
    def reads_calls(self) -> bool:
        """True when tool calls can be distinguished from content."""
        return self.spec is not None and CALLS_FIELD in self.spec["fields"]

    def template(self, *, with_calls: bool) -> ResponseTemplate | None:
        """The response template of one answer; None when it can only be content."""
        if self.spec is None:
            return None
        fields = {name: field for name, field in self.spec["fields"].items() if with_calls or name != CALLS_FIELD}
        if not fields.keys() - {"content"}:
            return None
        optional = {name: {**field, "optional": True} for name, field in fields.items()}
        return load_response_template({**self.spec, "fields": optional})

    @property
    def reasoning_markers(self) -> tuple[str, str] | None:
        """The text before and after the reasoning; None without reasoning, or when these texts vary."""
        fields = {} if self.spec is None else self.spec["fields"]
        for name in REASONING_FIELDS & fields.keys():
            opening, closing = fields[name].get("open"), fields[name].get("close")
            if isinstance(opening, str) and isinstance(closing, str):
                return opening, closing
        return None

    @property
    def marks_content(self) -> bool:
        """True when the content itself has delimiters, so that an answer cannot be bare content."""
        content = {} if self.spec is None else self.spec["fields"].get("content", {})
        return "open" in content or "open_pattern" in content

    def visible_specials(self, names: Mapping[int, str]) -> frozenset[int]:
        """The special tokens among `names` (by id) that delimit parts; a parser of parts must see them."""
        fields = [] if self.spec is None else self.spec["fields"].values()
        delimiters = [
            field[key] for field in fields for key in ("open", "open_pattern", "close", "close_pattern") if key in field
        ]
        text = "\n".join("\n".join([entry] if isinstance(entry, str) else entry) for entry in delimiters)
        text = text.replace("\\", "")  # patterns escape characters that tokens contain as they are
        return frozenset(token_id for token_id, name in names.items() if name and name in text)


PLAIN = ChatFormat(None, None, takes_tools=False)
"""Answers without parts."""


def format_of(template_source: str | None, response_template: Mapping[str, Any] | None, render: Render) -> ChatFormat:
    """The format of a chat template, with the tokenizer's own `response_template` if it has one."""
    if template_source is None:
        return PLAIN
    shape = _call_shape(render)
    takes_tools = _takes_tools(render)
    if response_template is not None:
        load_response_template(dict(response_template))
        return ChatFormat(dict(response_template), shape, takes_tools)
    fields: dict[str, Any] = {}
    if shape is not None and takes_tools:
        opening, closing = shape.markers
        fields[CALLS_FIELD] = {"open": opening, "close": closing, "repeats": True, "content": "json"}
    if (
        _THINK_OPEN in template_source or _THINK_CLOSE in template_source
    ):  # some templates only open the reasoning, or strip earlier reasoning
        fields["reasoning"] = {"open": _THINK_OPEN, "close": _THINK_CLOSE}
    if not fields:
        return ChatFormat(None, None, takes_tools)
    spec = {"defaults": {"role": "assistant"}, **_anchor(render), "fields": {"content": {}, **fields}}
    return ChatFormat(spec, shape if takes_tools else None, takes_tools)


def _tool(name: str) -> dict[str, Any]:
    schema = {"type": "object", "properties": {"tiller_key": {"type": "string"}}}
    return {"type": "function", "function": {"name": name, "description": name, "parameters": schema}}


_TOOLS = [_tool(name) for name in _NAMES]
_QUESTION: dict[str, Any] = {"role": "user", "content": "hello"}


def _takes_tools(render: Render) -> bool:
    try:
        return _NAMES[0] in render([_QUESTION], tools=_TOOLS)
    except Exception:  # a template is the model author's program and may raise anything
        return False


def _rendered_calls(render: Render, content: str) -> list[str] | None:
    """The five pieces of text around the names and arguments of two calls; None when the arguments are not JSON."""
    calls = [
        {
            "id": f"call{index:05}",
            "type": "function",
            "function": {"name": name, "arguments": {"tiller_key": "tiller_value"}},
        }
        for index, name in enumerate(_NAMES)
    ]
    try:
        text = render([_QUESTION, {"role": "assistant", "content": content, "tool_calls": calls}], tools=_TOOLS)
    except Exception:  # as above
        return None
    found = list(_ARGUMENTS.finditer(text))
    if len(found) != len(_NAMES):
        return None
    parts, start = [], 0
    for name, arguments in zip(_NAMES, found, strict=True):
        at = text.rfind(name, start, arguments.start())
        if at < 0:
            return None
        parts += [text[start:at], text[at + len(name) : arguments.start()]]
        start = arguments.end()
    return [*parts, text[start:]]


def _call_shape(render: Render) -> CallShape | None:
    alone, after_text = _rendered_calls(render, ""), _rendered_calls(render, "tiller text")
    if alone is None or after_text is None:
        return None
    before, middle, between, second_middle, after = alone
    if second_middle != middle:
        return None
    opening = _common_end(_common_end(before, after_text[0]), between).lstrip()
    closing = _common_start(between[: len(between) - len(opening)], after).rstrip()
    shape = CallShape(opening, middle, closing, between[len(closing) : len(between) - len(opening)])
    return shape if _is_json_call(shape) else None


def _common_end(one: str, other: str) -> str:
    return _common_start(one[::-1], other[::-1])[::-1]


def _common_start(one: str, other: str) -> str:
    length = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        length += 1
    return one[:length]


def _is_json_call(shape: CallShape) -> bool:
    """True when a call is a JSON object with a name and arguments between two markers."""
    opening, closing = shape.markers
    if not opening or not closing:
        return False
    text = f"{shape.opening}x{shape.middle}{{}}{shape.closing}"
    try:
        call = json.loads(text.removeprefix(opening).removesuffix(closing))
    except ValueError:
        return False
    return isinstance(call, dict) and call.get("name") == "x" and any(call.get(key) == {} for key in _ARGUMENTS_KEYS)


def _anchor(render: Render) -> dict[str, str]:
    """Where the assistant's own text begins: after the last generation prompt."""
    try:
        silent, speaking = render([_QUESTION]), render([_QUESTION], add_generation_prompt=True)
    except Exception:  # as above
        return {"start_anchor_pattern": r"\Z"}
    header = speaking[len(_common_start(silent, speaking)) :].partition(_THINK_OPEN)[0]
    return {"start_anchor": header} if header.strip() else {"start_anchor_pattern": r"\Z"}
