"""The grammar of an answer, in llguidance's Lark dialect: JSON under a schema, or tool calls in the model's format."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from server.answers.call_shape import ANY_ID, ANY_NUMBER, CallShape
from server.answers.json_schema import SchemaRefused, make_enforceable
from server.answers.narrowing import narrow_schema
from server.answers.tagged_grammar import tagged_arguments
from server.answers.tools import ToolUse

_SPELLING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""White space is fixed: a model that may add as much as it likes may never end."""

_ANY = "/(?s:.*)/"
_PLACES = {ANY_ID: "/[A-Za-z0-9]{9}/", ANY_NUMBER: "/[0-9]{1,3}/"}

Quote = Callable[[str], str]
"""Quotes a text for a grammar of one tokenizer; see `terminal`."""


def json_answer(schema: Mapping[str, Any], header: str = "") -> str:
    """The grammar of an answer that is JSON of `schema` after `header`, which is quoted. Raises `SchemaRefused`."""
    if header:
        return f"start: answer\nanswer: {header} json\njson: {_json(schema)}\n"
    return f"start: answer\nanswer: {_json(schema)}\n"


def answer(
    schema: Mapping[str, Any] | None,
    use: ToolUse,
    shape: CallShape | None,
    quote: Quote,
    *,
    never_first: str = "",
    header: str = "",
) -> str:
    """The grammar of an answer that is JSON of `schema` (None: text), tool calls as `use` says, or either.

    `never_first`: a text that no content begins with, because something else begins with it. `header`: a text that
    all content begins with. Raises `SchemaRefused`.
    """
    if not use.callable:
        assert schema is not None
        return json_answer(schema, quote(header))
    assert shape is not None
    calls = _calls_rules(use, shape, quote)
    if use.mode == "required":
        return f"start: answer\nanswer: calls\n{calls}"
    if schema is not None:
        content = _joined(quote(header), "json")
        return f"start: answer\nanswer: calls | {content}\njson: {_json(schema)}\n{calls}"
    if header:
        return f"start: answer\nanswer: calls | {quote(header)} TEXT\nTEXT: {_ANY}\n{calls}"
    return _text_with_calls(use, shape, quote, never_first)


def _calls_rules(use: ToolUse, shape: CallShape, quote: Quote) -> str:
    """One call, or several if parallel calls are allowed; arguments obey the schema of their tool."""
    whole = _joined(quote(shape.begin), "call", _more(use, shape, quote), quote(shape.end))
    return (
        f"calls: {whole}\ncall: {_joined(quote(shape.opening), 'named', quote(shape.closing))}\n"
        f"{_named_rules(use, shape, quote)}"
    )


def _more(use: ToolUse, shape: CallShape, quote: Quote) -> str:
    return f"({_joined(quote(shape.separator), 'call')})*" if use.parallel and shape.repeats else ""


def _text_with_calls(use: ToolUse, shape: CallShape, quote: Quote, never_first: str) -> str:
    """Free text in which every call that the model makes obeys its tool's schema."""
    first = quote(never_first)
    but = f" & ~({first} {_ANY})" if first.startswith('"') else ""
    if shape.is_bare:
        text = f"text: TEXT\nTEXT: {_ANY} & ~(/\\s*\\{{(?s:.*)/){but}\n"
        return f"start: answer\nanswer: calls | text\n{text}{_calls_rules(use, shape, quote)}"
    marker, rest = _marker(shape, quote)
    is_block = bool(shape.begin.strip())
    more = _more(use, shape, quote) if is_block else ""
    texts = "(opened calls)* text" if use.parallel and shape.repeats else "text | opened calls"
    calls = f"calls: {_joined(quote(rest), 'named', quote(shape.closing), more, quote(shape.end))}\n"
    if more:
        calls += f"call: {_joined(quote(shape.opening), 'named', quote(shape.closing))}\n"
    return (
        f"start: answer\nanswer: {texts}\n"
        f"{_up_to('opened', marker, but)}text: TEXT\nTEXT: {_ANY}{but}\n"
        f"{calls}{_named_rules(use, shape, quote)}"
    )


def _marker(shape: CallShape, quote: Quote) -> tuple[str, str]:
    """The text or token at which a call begins, as it is written in a grammar, and what follows it up to the name."""
    head = shape.head
    for length in range(1, len(head) + 1):
        token = quote(head[:length])
        if token.startswith("<["):
            return token, head[length:]
    text = shape.markers[0] if shape.markers is not None else head.rstrip()
    return quote(text), head[len(text) :]


def _joined(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def after_reasoning(source: str, markers: tuple[str, str], quote: Quote, *, is_open: bool) -> str:
    """The grammar `source`, extended for an answer that may follow reasoning between `markers`.

    `is_open`: the prompt has opened the reasoning, so the answer must close it; else reasoning is optional.
    """
    opening, closing = markers
    thinking = "thinking space" if is_open else f"({quote(opening)} thinking space)?"
    start, rules = source.split("\n", 1)
    assert start == "start: answer"
    return f"start: {thinking} answer\n{_up_to('thinking', quote(closing))}space: /\\n{{0,2}}/\n{rules}"


def _up_to(name: str, end: str, but: str = "") -> str:
    """The rule `name`: any text, except what `but` excludes, up to the first `end`, which is quoted or a token."""
    terminal_name = name.upper()
    if end.startswith('"'):
        return f"{name}[lazy]: {terminal_name}\n{terminal_name}: ({_ANY} {end}){but}\n"
    return f"{name}: {terminal_name} {end}\n{terminal_name}: {_ANY}{but}\n"


def _named_rules(use: ToolUse, shape: CallShape, quote: Quote) -> str:
    tools = use.callable
    named = " | ".join(
        _joined(quote(tool.name + shape.middle), f"arguments_{index}") for index, tool in enumerate(tools)
    )
    rules = []
    for index, tool in enumerate(tools):
        schema = _object(tool.schema)
        if shape.tags is None:
            rules.append(f"arguments_{index}: {_json(schema)}\n")
        else:
            rules.append(tagged_arguments(f"arguments_{index}", schema, shape.tags, shape.closing, quote, _json))
    return f"named: {named}\n" + "".join(rules)


def _object(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Arguments are an object, whether or not their schema says so."""
    return schema if "type" in schema or "$ref" in schema else {**schema, "type": "object"}


def _json(schema: Mapping[str, Any]) -> str:
    try:
        return "%json " + json.dumps({**narrow_schema(make_enforceable(schema)), "x-guidance": _SPELLING})
    except RecursionError:
        raise SchemaRefused("a value is nested too deeply") from None


def terminal(text: str, special: Mapping[int, str]) -> str:
    """`text` for a grammar: quoted, with `special` tokens (names by id) written as their ids; empty for no text.

    Where it has `ANY_ID` or `ANY_NUMBER`, the model chooses.
    """
    for token_id, name in special.items():
        before, found, after = text.partition(name) if name else (text, "", "")
        if found:
            parts = (terminal(before, special), f"<[{token_id}]>", terminal(after, special))
            return " ".join(part for part in parts if part)
    for place, pattern in _PLACES.items():
        before, found, after = text.partition(place)
        if found:
            return _joined(terminal(before, special), pattern, terminal(after, special))
    return json.dumps(text, ensure_ascii=False) if text else ""
