"""Finds out from a chat template how calls are written: renders conversations with known calls and reads the result."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product, takewhile
from typing import Any

from server.answers.call_shape import ANY_ID, ANY_NUMBER, CallShape, TaggedArguments
from server.answers.conventions import USUAL, Conventions, IdForm, TextBesideCalls

Render = Callable[..., str]
"""`(messages, *, tools=(), add_generation_prompt=False)` -> text; raises whatever the template raises."""

QUESTION: dict[str, Any] = {"role": "user", "content": "tiller asks"}

_NAMES = ("tiller_probe_one", "tiller_probe_two")
_TEXTS = {"tiller_a": "tiller_value", "tiller_b": "tiller_text"}
_ARGUMENTS: dict[str, Any] = _TEXTS | {"tiller_c": 7}
_SAID = "tiller said"
_PIECES = re.compile(r"<[^<>\s]*>|\[/?[A-Z_]+\]|\w+|.", re.DOTALL)
_ID_IN_JSON = re.compile(rf'("(?:tool_call_)?id"\s*:\s*"?(?:{ANY_ID}|\d)"?\s*,\s*)|(\s*,\s*"id"\s*:\s*"{ANY_ID}")')
_NUMBER = re.compile("|".join(f"(?<={name}:)[01]" for name in _NAMES))


@dataclass(frozen=True, slots=True)
class FoundCalls:
    """What a chat template shows of calls: how it wants them, and their shape if it could be read."""

    conventions: Conventions
    shape: CallShape | None


@dataclass(frozen=True, slots=True)
class _Written:
    """The text of a rendered conversation, in pieces around names and arguments; `tags` as in `CallShape`."""

    before: str
    middles: tuple[str, ...]
    betweens: tuple[str, ...]
    after: str
    tags: TaggedArguments | None


def _tool(name: str) -> dict[str, Any]:
    properties = {"tiller_a": {"type": "string"}, "tiller_b": {"type": "string"}, "tiller_c": {"type": "integer"}}
    schema = {"type": "object", "properties": properties, "required": [*properties]}
    return {"type": "function", "function": {"name": name, "description": name, "parameters": schema}}


_ID_FORMS: tuple[IdForm, ...] = ("any", "nine", "counted")
_WAYS = [
    (False, False, 2),
    (False, False, 1),
    (False, True, 2),
    (False, True, 1),
    (True, False, 2),
    (True, False, 1),
]
"""The ways to write calls, the likeliest first: arguments as text or not, tags or not, how many calls."""

_TOOLS = [_tool(name) for name in _NAMES]


def takes_tools(render: Render) -> bool:
    """True when the template shows tools to the model."""
    try:
        return _NAMES[0] in render([QUESTION], tools=_TOOLS)
    except Exception:  # a template is the model author's program and may raise anything
        return False


def find_calls(render: Render) -> FoundCalls:
    """How the template wants and writes calls. Without evidence: the usual conventions, and no shape."""
    for as_text, allows_tags, num_calls in _WAYS:
        for ids, has_empty in product(_ID_FORMS, (True, False)):
            conventions = Conventions(ids, as_text, has_empty)
            written = _rendered(render, conventions, num_calls, "", allows_tags=allows_tags)
            if written is not None:
                shape = _shape(render, conventions, written, allows_tags=allows_tags)
                return FoundCalls(replace(conventions, text=_text_beside(render, conventions, num_calls)), shape)
    return FoundCalls(USUAL, None)


def _conversation(conventions: Conventions, num_calls: int, said: str) -> list[dict[str, Any]]:
    calls = [
        {"id": f"call_{index:024}", "type": "function", "function": {"name": name, "arguments": dict(_ARGUMENTS)}}
        for index, name in enumerate(_NAMES[:num_calls])
    ]
    return conventions.adapted([QUESTION, {"role": "assistant", "content": said, "tool_calls": calls}])


def _text_beside(render: Render, conventions: Conventions, num_calls: int) -> TextBesideCalls:
    """How the text beside calls is kept."""
    if _keeps_all(render, conventions, num_calls, _SAID):
        return "together"
    apart = replace(conventions, text="apart")
    if not _keeps_all(render, apart, num_calls, _SAID):
        return "lost"
    # two turns in a row may be too many for a template that counts them; it notices later
    if _keeps_all(render, conventions, num_calls, "", goes_on=True):
        return "apart" if _keeps_all(render, apart, num_calls, _SAID, goes_on=True) else "lost"
    return "apart"


def _keeps_all(render: Render, conventions: Conventions, num_calls: int, said: str, *, goes_on: bool = False) -> bool:
    """True when the template writes what is `said`, and all calls; `goes_on`: also with their results and an answer."""
    later: list[dict[str, Any]] = []
    conversation = _conversation(conventions, num_calls, said)
    if goes_on:
        results = [
            {"role": "tool", "tool_call_id": call["id"], "content": "7"} for call in conversation[-1]["tool_calls"]
        ]
        later = [*results, {"role": "assistant", "content": "8"}, {"role": "user", "content": "9"}]
    try:
        text = render([*conversation, *later], tools=_TOOLS)
    except Exception:  # as above
        return False
    return said in text and text.count(_TEXTS["tiller_a"]) >= num_calls


def _rendered(
    render: Render, conventions: Conventions, num_calls: int, said: str, *, allows_tags: bool
) -> _Written | None:
    try:
        conversation = _conversation(conventions, num_calls, said)
        text = _turn(render(conversation, tools=_TOOLS), [call["id"] for call in conversation[-1]["tool_calls"]])
    except Exception:  # as above
        return None
    found = list(_json_arguments(text))
    if len(found) == num_calls:
        return _in_pieces(text, found, None)
    if not allows_tags or found:
        return None
    tagged = list(_tagged_arguments(text))
    if len(tagged) != num_calls or len({tags for _, _, tags in tagged}) != 1:
        return None
    return _in_pieces(text, [(start, end) for start, end, _ in tagged], tagged[0][2])


def _turn(text: str, ids: Sequence[str] = ()) -> str:
    """What follows the question in a rendered conversation, with placeholders for the ids and numbers of calls."""
    text = text.rpartition(QUESTION["content"])[2]
    for call_id in ids:
        if not call_id.startswith("functions."):
            text = text.replace(call_id, ANY_ID)
    return _NUMBER.sub(ANY_NUMBER, _ID_IN_JSON.sub("", text))


def _in_pieces(text: str, arguments: Sequence[tuple[int, int]], tags: TaggedArguments | None) -> _Written | None:
    starts, middles, last = [], [], 0
    for name, (start, end) in zip(_NAMES, arguments, strict=False):
        at = text.rfind(name, last, start)
        if at < 0:
            return None
        starts.append((at, end))
        middles.append(text[at + len(name) : start])
        last = end
    betweens = [text[end:at] for (_, end), (at, _) in pairwise(starts)]
    return _Written(text[: starts[0][0]], tuple(middles), tuple(betweens), text[last:], tags)


def _json_arguments(text: str) -> Iterator[tuple[int, int]]:
    """Where the arguments are written as JSON."""
    for found in re.finditer(r'\{\s*"tiller_a"', text):
        try:
            value, end = json.JSONDecoder().raw_decode(text, found.start())
        except ValueError:
            continue
        if value == _ARGUMENTS:
            yield found.start(), end


def _tagged_arguments(text: str) -> Iterator[tuple[int, int, TaggedArguments]]:
    """Where the arguments are written in another form, and in which."""
    a, b, c = (re.escape(name) for name in _ARGUMENTS)
    gap = r"((?:(?!tiller_).){1,120}?)"
    pattern = re.compile(rf"{a}{gap}tiller_value{gap}{b}{gap}tiller_text{gap}{c}{gap}7", re.DOTALL)
    for found in pattern.finditer(text):
        middle, between, other_middle, other_between, number_middle = found.groups()
        if (middle, between) != (other_middle, other_between):
            continue
        quote = middle[len(number_middle) :] if middle.startswith(number_middle) else None
        if quote is None or not between.startswith(quote):
            continue
        opening, closing = _around_keys(text, found, between.removeprefix(quote))
        if opening.endswith("'"):  # a mapping as Python prints it: the template does not expect one
            continue
        separator = between.removeprefix(quote)[len(closing) : len(between) - len(quote) - len(opening)]
        end = found.end() + len(closing)
        yield found.start() - len(opening), end, TaggedArguments(opening, number_middle, closing, separator, quote)


def _around_keys(text: str, found: re.Match[str], between: str) -> tuple[str, str]:
    """The text that precedes every key, and that which follows every value."""
    closing = common_start(between, text[found.end() :])
    opening = _common_end(between[len(closing) :], text[: found.start()])
    return opening.lstrip(), closing


def _shape(render: Render, conventions: Conventions, alone: _Written, *, allows_tags: bool) -> CallShape | None:
    num_calls = len(alone.middles)
    after_text = _rendered(render, conventions, num_calls, _SAID, allows_tags=allows_tags)
    first = _first_opening(render, alone, after_text)
    if first is None:
        return None
    if len({*alone.middles}) != 1:
        return None
    tail = alone.after.removesuffix(_common_end(alone.after, _end_of_turn(render))).rstrip()
    between = alone.betweens[0] if alone.betweens else ""
    opening = _common_end(first, between) if between else first
    rest = between[: len(between) - len(opening)]
    closing = common_start(rest, tail).rstrip() if between else tail
    shape = CallShape(
        opening,
        alone.middles[0],
        closing,
        rest[len(closing) :],
        begin=first[: len(first) - len(opening)],
        end=tail[len(closing) :],
        tags=alone.tags,
        repeats=bool(between),
    )
    return shape if shape.is_whole else None


def _first_opening(render: Render, alone: _Written, after_text: _Written | None) -> str | None:
    """The text between what the assistant says and the name of its first call."""
    first = None
    if after_text is not None and _SAID in after_text.before:
        first = _common_end(alone.before, after_text.before.rpartition(_SAID)[2]).lstrip()
    try:
        prompt = _turn(render([QUESTION], tools=_TOOLS, add_generation_prompt=True))
    except Exception:  # as above
        return first
    rest = alone.before[len(common_start(alone.before, prompt)) :].lstrip()
    return rest if first is None or first.endswith(rest) else first


def answer_header(render: Render) -> str:
    """What precedes the text of an answer; empty if the template raises."""
    try:
        text = render([QUESTION, {"role": "assistant", "content": _SAID}])
    except Exception:  # as above
        return ""
    return text.rpartition(_SAID)[0].rpartition(QUESTION["content"])[2]


def _end_of_turn(render: Render) -> str:
    """What follows the text of an answer."""
    try:
        return render([QUESTION, {"role": "assistant", "content": _SAID}], tools=_TOOLS).rpartition(_SAID)[2]
    except Exception:  # as above
        return ""


def common_start(one: str, other: str) -> str:
    """What both begin with, in whole tags and words."""
    return "".join(_common(_PIECES.findall(one), _PIECES.findall(other)))


def _common_end(one: str, other: str) -> str:
    """What both end with, in whole tags and words."""
    return "".join(_common(_PIECES.findall(one)[::-1], _PIECES.findall(other)[::-1])[::-1])


def _common(one: Sequence[str], other: Sequence[str]) -> list[str]:
    return [a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))]
