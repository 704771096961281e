"""ChatFormat: how a model writes the parts of its answers, read from its tokenizer and chat template.

A tokenizer with a `response_template` declares it. For the others, a conversation with tool calls is rendered through
the chat template, and the format is read from what surrounds the names and arguments.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from transformers.utils.chat_parsing.response_templates import ResponseTemplate, load_response_template

from server.answers import channels
from server.answers.call_shape import CallShape
from server.answers.conventions import USUAL, Conventions
from server.answers.reading import CONTENT, Reading
from server.answers.template_probe import QUESTION, Render, answer_header, common_start, find_calls, takes_tools
from server.marks import NO_MARKS, Marks, is_tag

REASONING_FIELDS = frozenset({"thinking", "reasoning", "reasoning_content"})
"""The names that response templates have for the part before the answer."""

CALLS_FIELD = "tool_calls"

_THINK_OPEN, _THINK_CLOSE = "<think>", "</think>"
_LITERALS, _PATTERNS = ("open", "close"), ("open_pattern", "close_pattern")


@dataclass(frozen=True)
class ChatFormat:
    """The parts that an answer may have.

    `spec` is a response template as transformers reads it; None: an answer is only content. `calls` is None when tool
    calls cannot be constrained. `takes_tools`: the chat template shows tools to the model. `conventions`: what the
    chat template wants of earlier calls. `is_declared`: the spec is the tokenizer's own, or that of a known
    format. `content_header`: what the model writes before the content.
    """

    spec: Mapping[str, Any] | None
    calls: CallShape | None
    takes_tools: bool
    conventions: Conventions = USUAL
    is_declared: bool = False
    content_header: str = ""

    @property
    def has_reasoning(self) -> bool:
        """True when answers may begin with reasoning."""
        return self.spec is not None and bool(REASONING_FIELDS & self.spec["fields"].keys())

    @property
    def reads_calls(self) -> bool:
        """True when tool calls can be distinguished from content."""
        return self.spec is not None and CALLS_FIELD in self.spec["fields"]

    def reading(
        self, marks: Marks = NO_MARKS, *, with_calls: bool, callable_names: Collection[str] | None = None
    ) -> Reading:
        """How one answer is read; without calls, what looks like one is content.

        `callable_names`: what bare calls may name; None: anything.
        """
        template = self._template(marks, with_calls=with_calls)
        if template is None:
            return CONTENT
        is_bare = self.has_bare_calls and with_calls
        first_only = frozenset[str]()
        if not self.is_declared:
            first_only = (REASONING_FIELDS | ({CALLS_FIELD} if is_bare else set())) & template.fields.keys()
        names = frozenset(callable_names) if is_bare and callable_names is not None else None
        return Reading(template, marks, first_only, names)

    def _template(self, marks: Marks, *, with_calls: bool) -> ResponseTemplate | None:
        if self.spec is None:
            return None
        fields = {name: field for name, field in self.spec["fields"].items() if with_calls or name != CALLS_FIELD}
        if not fields.keys() - {"content"}:
            return None
        optional = {name: {**_marked(field, marks), "optional": True} for name, field in fields.items()}
        anchor = {
            key: marks.marked_pattern(value) if key.endswith("pattern") else marks.marked(value)
            for key, value in self.spec.items()
            if key in ("start_anchor", "start_anchor_pattern")
        }
        return load_response_template({**self.spec, **anchor, "fields": optional})

    @property
    def has_bare_calls(self) -> bool:
        """True when only its JSON tells a call from an answer."""
        return self.calls is not None and self.calls.is_bare and not self.is_declared

    @property
    def reasoning_markers(self) -> tuple[str, str] | None:
        """The text before and after the reasoning; None without reasoning, or when these texts vary."""
        if self.content_header:
            return channels.REASONING_MARKERS
        fields = {} if self.spec is None else self.spec["fields"]
        for name in REASONING_FIELDS & fields.keys():
            opening, closing = fields[name].get("open"), fields[name].get("close")
            if isinstance(opening, str) and isinstance(closing, str):
                return opening, closing
        return None

    @property
    def marks_content(self) -> bool:
        """True when the content itself has delimiters, so that an answer cannot be bare content; which is not known."""
        if self.content_header:
            return False
        content = {} if self.spec is None else self.spec["fields"].get("content", {})
        return "open" in content or "open_pattern" in content

    def marks_among(self, names: Mapping[int, str]) -> Marks:
        """The tokens among `names` (text by id) that delimit parts."""
        fields = [] if self.spec is None else self.spec["fields"].values()
        texts = [field[key] for field in fields for key in (*_LITERALS, *_PATTERNS) if key in field]
        texts = ["\n".join([entry] if isinstance(entry, str) else entry) for entry in texts]
        written = "\n".join(texts).replace("\\", "")  # patterns escape characters that tokens contain as they are
        if self.calls is not None:
            written += "\n" + self.calls.delimiters
        return Marks({token_id: name for token_id, name in names.items() if is_tag(name) and name in written})


PLAIN = ChatFormat(None, None, takes_tools=False)
"""Answers without parts."""


def format_of(template_source: str | None, response_template: Mapping[str, Any] | None, render: Render) -> ChatFormat:
    """The format of a chat template, with the tokenizer's own `response_template` if it has one."""
    if template_source is None:
        return PLAIN
    found = find_calls(render)
    shows_tools = takes_tools(render)
    if response_template is None and answer_header(render).endswith(channels.CONTENT_HEADER):
        return ChatFormat(channels.SPEC, channels.CALLS, shows_tools, found.conventions, True, channels.CONTENT_HEADER)
    if response_template is not None:
        load_response_template(dict(response_template))
        return ChatFormat(dict(response_template), found.shape, shows_tools, found.conventions, is_declared=True)
    shape = found.shape if shows_tools else None
    fields: dict[str, Any] = {} if shape is None else {CALLS_FIELD: shape.field()}
    if (
        _THINK_OPEN in template_source or _THINK_CLOSE in template_source
    ):  # some templates only open the reasoning, or strip earlier reasoning
        fields["reasoning"] = {"open": _THINK_OPEN, "close": _THINK_CLOSE}
    if not fields:
        return ChatFormat(None, None, shows_tools, found.conventions)
    spec = {"defaults": {"role": "assistant"}, **_anchor(render), "fields": {"content": {}, **fields}}
    return ChatFormat(spec, shape, shows_tools, found.conventions)


def _marked(field: Mapping[str, Any], marks: Marks) -> dict[str, Any]:
    """The field of a response template with its delimiters in marked text."""
    marked = dict(field)
    for key in _LITERALS:
        if key in marked:
            entry = marked[key]
            marked[key] = marks.marked(entry) if isinstance(entry, str) else [marks.marked(text) for text in entry]
    for key in _PATTERNS:
        if key in marked:
            marked[key] = marks.marked_pattern(marked[key])
    arguments = dict(marked.get("content_args", {}))
    if "tag_pattern" in arguments:
        arguments["tag_pattern"] = marks.marked_pattern(arguments["tag_pattern"])
    if arguments:
        marked["content_args"] = _marked_delimiters(arguments, marks)
    return marked


def _marked_delimiters(arguments: Mapping[str, Any], marks: Marks) -> dict[str, Any]:
    """The arguments of a content parser with the delimiters of its strings in marked text."""
    marked = dict(arguments)
    if "string_delims" in marked:
        marked["string_delims"] = [[marks.marked(text) for text in pair] for pair in marked["string_delims"]]
    parser = marked.get("value_parser")
    if isinstance(parser, Mapping) and "args" in parser:
        marked["value_parser"] = {**parser, "args": _marked_delimiters(parser["args"], marks)}
    return marked


def _anchor(render: Render) -> dict[str, str]:
    """Where the assistant's own text begins: after the last generation prompt."""
    try:
        silent, speaking = render([QUESTION]), render([QUESTION], add_generation_prompt=True)
    except Exception:  # a template is the model author's program and may raise anything
        return {"start_anchor_pattern": r"\Z"}
    header = speaking[len(common_start(silent, speaking)) :].partition(_THINK_OPEN)[0]
    return {"start_anchor": header} if header.strip() else {"start_anchor_pattern": r"\Z"}
