"""CallShape: the text around the names and arguments of tool calls, as one model writes it, and how it is read back."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

_NAME = r"(?P<name>[\w.-]+)"
_NAME_KEYS = ("name", "tool_name")
_ARGUMENTS_KEYS = ("arguments", "parameters")
_PLACE = "tiller_name"

ANY_ID = "\x02"
"""Where the model writes an id of its own."""

ANY_NUMBER = "\x03"
"""Where the model writes the number of the call."""

NAMED_CALL = {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}}
"""How a response template makes a call of a name in the delimiter and arguments after it."""


@dataclass(frozen=True, slots=True)
class TaggedArguments:
    """Arguments that are not JSON: `opening key middle value closing`, joined by `separator`.

    `quote` surrounds strings and nothing else; without one, every value is bare.
    """

    opening: str
    middle: str
    closing: str
    separator: str
    quote: str = ""


@dataclass(frozen=True, slots=True)
class CallShape:
    """`begin`, one call or several with `separator` between them, `end`.

    A call is `opening name middle arguments closing`. The arguments are JSON, or as `tags` says. The texts may contain
    `ANY_ID` and `ANY_NUMBER`. `repeats`: an answer may have several calls.
    """

    opening: str
    middle: str
    closing: str
    separator: str
    begin: str = ""
    end: str = ""
    tags: TaggedArguments | None = None
    repeats: bool = True

    @property
    def markers(self) -> tuple[str, str] | None:
        """The text before and after the JSON value that contains the name; None if the name is outside of JSON."""
        if self.tags is not None:
            return None
        text = f"{self.begin}{self.opening}{_PLACE}{self.middle}{{}}{self.closing}{self.end}"
        for start in (found.start() for found in re.finditer(r"[\[{]", text)):
            try:
                value, end = json.JSONDecoder().raw_decode(text, start)
            except ValueError:
                continue
            call = value[0] if isinstance(value, list) and value else value
            if _is_call(call):
                return text[:start].strip(), text[end:].strip()
        return None

    @property
    def is_whole(self) -> bool:
        """True when calls of this shape can be told from text and from each other."""
        if "tiller_" in self.delimiters:
            return False
        if self.is_python:
            return bool(self.begin.strip(" [") and self.end.strip(" ]"))
        if self.markers is None:
            return bool(self.opening.strip() and (self.middle.strip() or self.tags))
        is_within = bool(self.opening.partition("{")[0].strip()) or self._is_list or not self.begin.strip()
        return is_within or not self.repeats

    @property
    def is_python(self) -> bool:
        """True when the calls are a list of calls in Python."""
        return self.tags is not None and self.middle == "(" and not self.opening.strip(" [")

    @property
    def is_bare(self) -> bool:
        """True when nothing but its JSON tells a call from an answer."""
        return self.markers is not None and not self.markers[0]

    @property
    def head(self) -> str:
        """The text from where a call is certain up to the name."""
        return (self.begin + self.opening).lstrip()

    @property
    def delimiters(self) -> str:
        """All of its texts, for finding the tokens among them."""
        texts = [self.begin, self.opening, self.middle, self.closing, self.separator, self.end]
        if self.tags is not None:
            texts += [self.tags.opening, self.tags.middle, self.tags.closing, self.tags.separator, self.tags.quote]
        return "\n".join(texts)

    def field(self) -> dict[str, Any]:
        """The field of a response template that reads such calls."""
        markers = self.markers
        if self.is_python:
            before, after = self.begin.strip().removesuffix("["), self.end.strip().removeprefix("]")
            return {"open": before.strip(), "close": after.strip(), "repeats": True}
        if markers is None:
            return self._named_field()
        before, after = markers
        if not before:
            keys = "|".join(_NAME_KEYS)
            return {"open_pattern": rf'(?=\{{\s*"(?:{keys})"\s*:\s*")', "close_pattern": r"\Z", "content": "json"}
        field: dict[str, Any] = {"content": "json", "repeats": True}
        is_alone = not (self.begin.strip() or self.end.strip()) or self._is_list
        if is_alone and after:
            return {"open": before, "close": after, **field}
        if self._is_list or not after:
            return {"open": before, "close_pattern": rf"\Z|(?={_loose(before)})", **field}
        opening, closing = self.opening.partition("{")[0], self.closing.rpartition("}")[2]
        return {"open_pattern": self._with_begin(opening), "close_pattern": self._with_end(closing), **field}

    @property
    def _is_list(self) -> bool:
        markers = self.markers
        return markers is not None and self.begin.rstrip().endswith("[")

    def _named_field(self) -> dict[str, Any]:
        field = {
            "open_pattern": rf"{self._with_begin(self.opening)}{_NAME}\s*{_loose(self.middle)}",
            "close_pattern": self._with_end(self.closing),
            "repeats": True,
            "transform": NAMED_CALL,
        }
        if self.tags is None:
            return field | {"content": "json"}
        return field | {"content": "xml-inline", "content_args": _tag_arguments(self.tags)}

    def _with_begin(self, opening: str) -> str:
        begin = f"(?:{_loose(self.begin)}\\s*)?" if self.begin.strip() else ""
        return begin + _loose(opening)

    def _with_end(self, closing: str) -> str:
        if not (closing + self.end).strip():
            return rf"\Z|(?={_loose(self.head)})"
        end = rf"(?:\s*{_loose(self.end)})?" if closing.strip() and self.end.strip() else _loose(self.end)
        return _loose(closing) + end


def _tag_arguments(tags: TaggedArguments) -> dict[str, Any]:
    opening, middle = _loose(tags.opening), _loose(tags.middle)
    if not tags.quote:
        middle, closing = _tight(tags.middle), _tight(tags.closing)
        return {"tag_pattern": rf"{opening}(?P<key>[^<>\s]+?){middle}(?P<value>.*?){closing}"}
    quote = re.escape(tags.quote)
    if tags.quote in ("'", '"'):
        value = r'"(?:\\.|[^"\\])*"|' + r"'(?:\\.|[^'\\])*'|\[.*?\]|\{.*?\}|[^,()\[\]{}]+"
        parser = {"name": "json", "args": {"allow_non_json": True}}
        return {"tag_pattern": rf"{opening}(?P<key>\w+){middle}(?P<value>{value})", "value_parser": parser}
    value = rf"{quote}.*?{quote}|\[.*?\]|\{{.*?\}}|[^,{{}}]+"
    parser = {
        "name": "json",
        "args": {"allow_non_json": True, "string_delims": [[tags.quote] * 2], "unquoted_keys": True},
    }
    return {"tag_pattern": rf"{opening}(?P<key>\w+){middle}(?P<value>{value})", "value_parser": parser}


def _loose(text: str) -> str:
    """A pattern of `text` with any white space, also none, where it has some, and none around it."""
    pattern = r"\s*".join(map(re.escape, text.split()))
    return pattern.replace(re.escape(ANY_ID), r"[\w-]*").replace(re.escape(ANY_NUMBER), r"\d+")


def _tight(text: str) -> str:
    """A pattern of `text` in which only a line break may be missing."""
    return re.escape(text).replace("\\\n", r"\n?").replace("\n", r"\n?")


def _is_call(value: Any) -> bool:
    call = value.get("function", value) if isinstance(value, dict) else None
    return (
        isinstance(call, dict)
        and any(call.get(key) == _PLACE for key in _NAME_KEYS)
        and any(call.get(key) == {} for key in _ARGUMENTS_KEYS)
    )
