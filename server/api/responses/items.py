"""Wire models of a response's input: messages, reasoning, function calls and their outputs.

They are converted to messages for chat templates, and to the items that the API returns.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, NotRequired

from pydantic import BeforeValidator, Discriminator, Field, Tag, TypeAdapter
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from server.api.generation.content import AnsweredRefusal, texts_of
from server.api.generation.tools import IGNORED_IN_CALLS, CallArguments, parsed_arguments
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
    """A new id for an item of that type."""
    return f"{_ID_PREFIXES[kind]}_{uuid.uuid4().hex}"


class GivenTextPart(TypedDict):
    """Text of a user or developer, or of a call's output."""

    type: Literal["input_text"]
    text: str
    prompt_cache_breakpoint: NotRequired[Any]


_Given = str | Annotated[list[GivenTextPart], Field(min_length=1)]


def _said(value: Any) -> Any:
    return "\n".join(texts_of(value, ("input_text",))) if isinstance(value, list) else value


def _returned(value: Any) -> Any:
    """What a function gave back, which may be nothing."""
    if isinstance(value, list):
        return "\n".join(texts_of(value, ("input_text",), may_be_empty=True))
    return "" if value is None else value


class AskedMessage(WireModel):
    """A message of a user or developer; the parts of its content are joined as lines."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {"phase": ()}

    type: Literal["message"] = "message"
    role: Literal["user", "system", "developer"]
    content: Annotated[str, BeforeValidator(_said, json_schema_input_type=_Given)]
    id: str | None = None
    status: ItemStatus | None = None

    def as_item(self) -> InputMessage:
        """The item as the API returns it."""
        return {
            "id": new_item_id("message"),
            "type": "message",
            "status": "completed",
            "role": self.role,
            "content": [{"type": "input_text", "text": self.content}],
        }


class AnsweredTextPart(TypedDict):
    """Text of an earlier answer; its other fields are ignored."""

    type: Literal["output_text"]
    text: str
    annotations: NotRequired[Any]
    logprobs: NotRequired[Any]
    parsed: NotRequired[Any]


_Answered = str | list[AnsweredTextPart | AnsweredRefusal | GivenTextPart] | None


def _answered(value: Any) -> Any:
    if isinstance(value, list):
        return "".join(texts_of(value, ("output_text", "refusal", "input_text"), may_be_empty=True))
    return "" if value is None else value


class AnswerMessage(WireModel):
    """A message of the assistant."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {"phase": ()}
    ignored = ("provider_specific_fields",)

    type: Literal["message"] = "message"
    role: Literal["assistant"]
    content: Annotated[str, BeforeValidator(_answered, json_schema_input_type=_Answered)] = ""
    id: str | None = None
    status: ItemStatus | None = None

    def as_item(self) -> OutputMessage:
        """The item as the API returns it."""
        return {
            "id": new_item_id("message"),
            "type": "message",
            "status": "completed",
            "role": "assistant",
            "content": [{"type": "output_text", "text": self.content, "annotations": [], "logprobs": []}],
        }


class GivenReasoningText(WireModel):
    """Reasoning text."""

    type: Literal["reasoning_text"]
    text: str


class GivenReasoning(WireModel):
    """The model's reasoning before an answer or a call."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {"summary": ([],), "encrypted_content": ()}

    type: Literal["reasoning"]
    content: Annotated[list[GivenReasoningText], Field(fail_fast=True)] | None = None
    id: str | None = None
    status: ItemStatus | None = None

    @property
    def text(self) -> str:
        """The whole reasoning."""
        return "".join(part.text for part in self.content or ())

    def as_item(self) -> ReasoningItem:
        """The item as the API returns it."""
        return {
            "id": new_item_id("reasoning"),
            "type": "reasoning",
            "status": "completed",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": self.text}],
        }


class GivenCall(WireModel):
    """A function call of the model; `arguments` is JSON text. Text that is not an object is shown as it is."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {
        "caller": (_DIRECT,),
        "namespace": (),
        "async": (False,),
        "async_": (False,),
    }
    ignored = (*IGNORED_IN_CALLS, "parsed_arguments")

    type: Literal["function_call"]
    call_id: Annotated[str, Field(min_length=1, max_length=256)]
    name: str
    arguments: CallArguments = ""
    id: str | None = None
    status: ItemStatus | None = None

    def as_item(self) -> FunctionCallItem:
        """The item as the API returns it."""
        return {
            "id": new_item_id("function_call"),
            "type": "function_call",
            "status": "completed",
            "call_id": self.call_id,
            "name": self.name,
            "arguments": self.arguments,
        }


class GivenCallOutput(WireModel):
    """The output of a function call."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {"caller": (_DIRECT,), "namespace": ()}

    type: Literal["function_call_output"]
    call_id: Annotated[str, Field(min_length=1, max_length=256)]
    output: Annotated[str, BeforeValidator(_returned, json_schema_input_type=_Given | None)]
    name: str | None = None
    id: str | None = None
    status: ItemStatus | None = None

    def as_item(self) -> FunctionCallOutputItem:
        """The item as the API returns it."""
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
    """The tag of the wire model for an item."""
    kind = value.get("type") if isinstance(value, dict) else value.type
    if kind not in (None, "message"):
        return str(kind)
    role = value.get("role") if isinstance(value, dict) else value.role
    return "answer" if role == "assistant" else "message"


def _only_known(value: Any) -> Any:
    """Refuse an item of a type that this server does not support."""
    if not isinstance(value, dict):
        raise PydanticCustomError("invalid_type", "expected an object")
    kind = value.get("type")
    if kind is None and "role" not in value and "id" in value:
        kind = "item_reference"
    if kind is not None and not isinstance(kind, str):
        raise PydanticCustomError("invalid_type", "expected a string", {"at": "type"})
    if kind is not None and kind not in _ID_PREFIXES:
        raise PydanticCustomError(
            "unsupported_parameter",
            "expected one of message, reasoning, function_call, function_call_output, got {kind}",
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
    """The wire models of items that this server returned."""
    return _ITEMS.validate_python(list(conversation))


class Conversation:
    """Converts items, earliest first, into messages for chat templates."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self._turn: dict[str, Any] | None = None
        self._call_ids: set[str] = set()

    def instruct(self, instructions: str) -> None:
        """Add the instructions as a system message."""
        self.messages.append({"role": "system", "content": instructions})

    def add(self, item: InputItem, param: str) -> None:
        """Add an item. Raises `InvalidRequest`, naming `param`.

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
                self._turn_with().setdefault("tool_calls", []).append(_call_of(item))
            case GivenCallOutput():
                if item.call_id not in self._call_ids:
                    raise InvalidRequest(
                        f"{param}.call_id: expected the id of an earlier function call, got {item.call_id[:80]!r}",
                        code="invalid_value",
                        param=f"{param}.call_id",
                    )
                name = {} if item.name is None else {"name": item.name}
                self._add({"role": "tool", "content": item.output, "tool_call_id": item.call_id} | name)

    def _add(self, message: dict[str, Any]) -> None:
        self.messages.append({"content": ""} | message)
        self._turn = None

    def _turn_with(self, *absent: str) -> dict[str, Any]:
        """The assistant's turn to extend: the current one if it has none of `absent` yet, else a new one."""
        if self._turn is None or any(self._turn.get(part) for part in absent):
            self._turn = {"role": "assistant", "content": ""}
            self.messages.append(self._turn)
        return self._turn


def _call_of(item: GivenCall) -> dict[str, Any]:
    function = {"name": item.name, "arguments": parsed_arguments(item.arguments)}
    return {"id": item.call_id, "type": "function", "function": function}
