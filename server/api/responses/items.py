"""Wire models of a response's input: messages, reasoning, function calls and their outputs.

Also what they become: messages as chat templates know them, and items as the API gives them back.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, NotRequired

from pydantic import BeforeValidator, Discriminator, Field, Tag, TypeAdapter
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from server.api.generation.content import texts_of
from server.api.generation.tools import parsed_arguments
from server.api.http.wire import WireModel
from server.api.responses.objects import (
    FunctionCallItem,
    FunctionCallOutputItem,
    InputMessage,
    ItemStatus,
    KeptItem,
    OutputMessage,
    ReasoningItem,
)
from server.errors import InvalidRequest

ItemType = Literal["message", "reasoning", "function_call", "function_call_output"]

_DIRECT = {"type": "direct"}
_ID_PREFIXES: Mapping[ItemType, str] = {
    "message": "msg",
    "reasoning": "rs",
    "function_call": "fc",
    "function_call_output": "fco",
}


def new_item_id(kind: ItemType) -> str:
    """An id for an item of that type."""
    return f"{_ID_PREFIXES[kind]}_{uuid.uuid4().hex}"


class GivenTextPart(TypedDict):
    """Text of whoever asks, or of what a call gave."""

    type: Literal["input_text"]
    text: str
    prompt_cache_breakpoint: NotRequired[Any]


_Given = str | Annotated[list[GivenTextPart], Field(min_length=1)]


def _said(value: Any) -> Any:
    return "\n".join(texts_of(value, ("input_text",))) if isinstance(value, list) else value


class AskedMessage(WireModel):
    """A message of whoever asks; its content's parts become the lines of one text."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {"phase": ()}

    type: Literal["message"] = "message"
    role: Literal["user", "system", "developer"]
    content: Annotated[str, BeforeValidator(_said, json_schema_input_type=_Given)]
    id: str | None = None
    status: ItemStatus | None = None

    def as_item(self) -> InputMessage:
        """The item as the API gives it back."""
        return {
            "id": new_item_id("message"),
            "type": "message",
            "status": "completed",
            "role": self.role,
            "content": [{"type": "input_text", "text": self.content}],
        }


class AnsweredTextPart(TypedDict):
    """Text of an earlier answer; what else it carries changes nothing."""

    type: Literal["output_text"]
    text: str
    annotations: NotRequired[Any]
    logprobs: NotRequired[Any]


_Answered = str | Annotated[list[AnsweredTextPart | GivenTextPart], Field(min_length=1)]


def _answered(value: Any) -> Any:
    return "".join(texts_of(value, ("output_text", "input_text"))) if isinstance(value, list) else value


class AnswerMessage(WireModel):
    """A message of the model."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {"phase": ()}

    type: Literal["message"] = "message"
    role: Literal["assistant"]
    content: Annotated[str, BeforeValidator(_answered, json_schema_input_type=_Answered)]
    id: str | None = None
    status: ItemStatus | None = None

    def as_item(self) -> OutputMessage:
        """The item as the API gives it back."""
        return {
            "id": new_item_id("message"),
            "type": "message",
            "status": "completed",
            "role": "assistant",
            "content": [{"type": "output_text", "text": self.content, "annotations": [], "logprobs": []}],
        }


class GivenReasoningText(WireModel):
    """What the model thought, as text."""

    type: Literal["reasoning_text"]
    text: str


class GivenReasoning(WireModel):
    """What the model thought before an answer or a call."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {"summary": ([],), "encrypted_content": ()}

    type: Literal["reasoning"]
    content: Annotated[list[GivenReasoningText], Field(fail_fast=True)] | None = None
    id: str | None = None
    status: ItemStatus | None = None

    @property
    def text(self) -> str:
        """All of the reasoning."""
        return "".join(part.text for part in self.content or ())

    def as_item(self) -> ReasoningItem:
        """The item as the API gives it back."""
        return {
            "id": new_item_id("reasoning"),
            "type": "reasoning",
            "status": "completed",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": self.text}],
        }


class GivenCall(WireModel):
    """A call that the model made; `arguments` is JSON text."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {"caller": (_DIRECT,), "namespace": (), "async": (False,)}

    type: Literal["function_call"]
    call_id: Annotated[str, Field(min_length=1, max_length=256)]
    name: str
    arguments: str
    id: str | None = None
    status: ItemStatus | None = None

    def as_item(self) -> FunctionCallItem:
        """The item as the API gives it back."""
        return {
            "id": new_item_id("function_call"),
            "type": "function_call",
            "status": "completed",
            "call_id": self.call_id,
            "name": self.name,
            "arguments": self.arguments,
        }


class GivenCallOutput(WireModel):
    """What a call gave."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {"caller": (_DIRECT,), "namespace": ()}

    type: Literal["function_call_output"]
    call_id: Annotated[str, Field(min_length=1, max_length=256)]
    output: Annotated[str, BeforeValidator(_said, json_schema_input_type=_Given)]
    name: str | None = None
    id: str | None = None
    status: ItemStatus | None = None

    def as_item(self) -> FunctionCallOutputItem:
        """The item as the API gives it back."""
        item: FunctionCallOutputItem = {
            "id": new_item_id("function_call_output"),
            "type": "function_call_output",
            "status": "completed",
            "call_id": self.call_id,
            "output": self.output,
        }
        if self.name is not None:
            item["name"] = self.name
        return item


def _kind_of(value: Any) -> str:
    """The tag of the model that reads an item."""
    kind = value.get("type") if isinstance(value, dict) else value.type
    if kind not in (None, "message"):
        return str(kind)
    role = value.get("role") if isinstance(value, dict) else value.role
    return "answer" if role == "assistant" else "message"


def _only_known(value: Any) -> Any:
    """Refuse, by its type, an item that this server cannot give to a model."""
    if not isinstance(value, dict):
        raise PydanticCustomError("invalid_type", "an item is an object")
    kind = value.get("type")
    if kind is None and "role" not in value and "id" in value:
        kind = "item_reference"
    if kind is not None and not isinstance(kind, str):
        raise PydanticCustomError("invalid_type", "the type of an item is a string", {"at": "type"})
    if kind is not None and kind not in _ID_PREFIXES:
        raise PydanticCustomError(
            "unsupported_parameter",
            "items of type {kind} are not supported, only messages, reasoning, function calls and their outputs",
            {"kind": repr(kind)[:60], "at": "type"},
        )
    return value


InputItem = Annotated[
    Annotated[AskedMessage, Tag("message")]
    | Annotated[AnswerMessage, Tag("answer")]
    | Annotated[GivenReasoning, Tag("reasoning")]
    | Annotated[GivenCall, Tag("function_call")]
    | Annotated[GivenCallOutput, Tag("function_call_output")],
    Discriminator(_kind_of),
    BeforeValidator(_only_known),
]

_ITEMS: TypeAdapter[list[InputItem]] = TypeAdapter(list[InputItem])


def items_of(conversation: Sequence[KeptItem]) -> list[InputItem]:
    """The models of items that this server gave."""
    return _ITEMS.validate_python(list(conversation))


class Conversation:
    """Items, earliest first, while they become messages as chat templates know them."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self._turn: dict[str, Any] | None = None
        self._call_ids: set[str] = set()

    def instruct(self, instructions: str) -> None:
        """Begin with a system message."""
        self.messages.append({"role": "system", "content": instructions})

    def add(self, item: InputItem, param: str) -> None:
        """Go on with an item. Raises `InvalidRequest`, naming `param`.

        Reasoning, a message and calls that follow each other in this order are one turn of the assistant.
        """
        match item:
            case AskedMessage():
                role = "system" if item.role == "developer" else item.role
                self._add({"role": role, "content": item.content})
            case GivenReasoning():
                self._turn_with("reasoning_content", "content", "tool_calls")["reasoning_content"] = item.text
            case AnswerMessage():
                self._turn_with("content", "tool_calls")["content"] = item.content
            case GivenCall():
                self._call_ids.add(item.call_id)
                self._turn_with().setdefault("tool_calls", []).append(_call_of(item, f"{param}.arguments"))
            case GivenCallOutput():
                if item.call_id not in self._call_ids:
                    raise InvalidRequest(
                        f"{param}.call_id: there is no function call {item.call_id[:80]!r} before its output",
                        code="invalid_value",
                        param=f"{param}.call_id",
                    )
                name = {} if item.name is None else {"name": item.name}
                self._add({"role": "tool", "content": item.output, "tool_call_id": item.call_id} | name)

    def _add(self, message: dict[str, Any]) -> None:
        self.messages.append({"content": ""} | message)
        self._turn = None

    def _turn_with(self, *absent: str) -> dict[str, Any]:
        """The assistant's turn to add to: the current one if it has nothing of `absent` yet, else a new one."""
        if self._turn is None or any(self._turn.get(part) for part in absent):
            self._turn = {"role": "assistant", "content": ""}
            self.messages.append(self._turn)
        return self._turn


def _call_of(item: GivenCall, param: str) -> dict[str, Any]:
    function = {"name": item.name, "arguments": parsed_arguments(item.arguments, param)}
    return {"id": item.call_id, "type": "function", "function": function}
