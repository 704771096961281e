"""Conventions: what a chat template wants of earlier tool calls, beyond what the API says of them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from server.answers.json_text import is_json_text

IdForm = Literal["any", "nine", "counted"]
"""`nine`: nine letters and digits. `counted`: `functions.name:number`, from which the template takes the name."""

TextBesideCalls = Literal["together", "apart", "lost"]
"""How text and calls of one turn are kept: in that turn, in a turn for each, or not, since the template drops one."""

_NINE = re.compile(r"[A-Za-z0-9]{9}")


@dataclass(frozen=True, slots=True)
class Conventions:
    """How calls are passed to a chat template.

    `arguments_as_text`: as JSON text instead of an object. `empty_content`: a turn that consists of calls has the
    content `""`, not null. `text`: how a turn is passed that consists of text and calls.
    """

    ids: IdForm = "any"
    arguments_as_text: bool = False
    empty_content: bool = True
    text: TextBesideCalls = "together"

    def adapted(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """`messages`, in which the arguments of calls are objects (or text that is not one), as the template wants.

        Raises `ValueError` for a turn with text and calls of which the template would drop one.
        """
        ids: dict[str, str] = {}
        return [self._adapted(part, ids) for message in messages for part in self._parts(message)]

    def _parts(self, message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """The turns that `message` is passed as."""
        if self.text == "together" or not message.get("tool_calls"):
            return [message]
        text = message.get("content")
        if not text or (isinstance(text, str) and text.isspace()):
            return [{**message, "content": ""}]
        if self.text == "lost":
            raise ValueError(
                "it writes either the text or the tool calls of an assistant message, not both; "
                "send messages with tool_calls without content"
            )
        said = {name: value for name, value in message.items() if name != "tool_calls"}
        return [said, {"role": message["role"], "content": "", "tool_calls": message["tool_calls"]}]

    def _adapted(self, message: Mapping[str, Any], ids: dict[str, str]) -> dict[str, Any]:
        adapted = dict(message)
        if "tool_call_id" in adapted:
            adapted["tool_call_id"] = ids.get(adapted["tool_call_id"], adapted["tool_call_id"])
        if not adapted.get("tool_calls"):
            return adapted
        if not adapted.get("content") and not self.empty_content:
            adapted["content"] = None
        adapted["tool_calls"] = [self._call(call, ids) for call in adapted["tool_calls"]]
        return adapted

    def _call(self, call: Mapping[str, Any], ids: dict[str, str]) -> dict[str, Any]:
        function = dict(call["function"])
        adapted = {**call, "function": function}
        if "id" in call:
            adapted["id"] = ids[call["id"]] = self._id(call["id"], function["name"], len(ids))
        if self.arguments_as_text and not isinstance(function["arguments"], str):
            function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
        return adapted

    def _id(self, call_id: str, name: str, number: int) -> str:
        if self.ids == "counted":
            return f"functions.{name}:{number}"
        if self.ids == "nine" and not _NINE.fullmatch(call_id):
            return hashlib.sha256(call_id.encode("utf-8", "replace")).hexdigest()[:9]
        return call_id


USUAL = Conventions()
"""What most templates want: the messages as they are."""


def without_cut_arguments(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """`messages`, in which calls have no arguments instead of the text of an object that was cut short."""
    return [
        dict(message, tool_calls=[_without_cut(call) for call in message["tool_calls"]])
        if message.get("tool_calls")
        else dict(message)
        for message in messages
    ]


def _without_cut(call: Mapping[str, Any]) -> dict[str, Any]:
    arguments = call["function"]["arguments"]
    if isinstance(arguments, str) and not is_json_text(arguments):
        return {**call, "function": {**call["function"], "arguments": {}}}
    return dict(call)
