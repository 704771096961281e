"""Wire models of the input of decisions: text, or messages with tool calls and outputs, as turns of a chat.

Images are refused. Tool calls and outputs become text, so that every chat template shows them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from server.api.http.wire import WireModel
from vectors.data.items import Message

MAX_JSON_DEPTH = 32
MAX_JSON_VALUES = 10_000
MAX_JSON_BYTES = 256 << 10


class CacheBreakpoint(WireModel):
    """Where a reusable prefix ends. Accepted without effect: every prefix is cached."""

    mode: Literal["explicit"]


class PlainTextPart(WireModel):
    """A text part of a question's instructions."""

    type: Literal["input_text"]
    text: str

    def as_text(self) -> str:
        """The text that the model reads."""
        return self.text


class TextPart(PlainTextPart):
    """A text part of a message."""

    prompt_cache_breakpoint: CacheBreakpoint | None = None


class OutputTextPart(WireModel):
    """A text part of an assistant message."""

    type: Literal["output_text"]
    text: str

    def as_text(self) -> str:
        """The text that the model reads."""
        return self.text


class RefusalPart(WireModel):
    """An assistant's refusal to answer."""

    type: Literal["refusal"]
    refusal: str

    def as_text(self) -> str:
        """The text that the model reads."""
        return self.refusal


def _compact_json(value: Any) -> str:
    """`value` as compact JSON, checked against the API's limits."""
    if not isinstance(value, dict) and not (isinstance(value, list) and all(isinstance(item, dict) for item in value)):
        raise PydanticCustomError("invalid_type", "expected an object or a list of objects")
    num_values = 0
    level: list[Any] = [value]
    for _ in range(MAX_JSON_DEPTH):
        inner = [child for item in level for child in (item.values() if isinstance(item, dict) else item)]
        num_values += len(inner)
        if num_values > MAX_JSON_VALUES:
            raise PydanticCustomError("invalid_value", "expected at most {most} values", {"most": MAX_JSON_VALUES})
        level = [child for child in inner if isinstance(child, dict | list)]
        if not level:
            break
    else:
        raise PydanticCustomError("invalid_value", "expected at most {most} nested levels", {"most": MAX_JSON_DEPTH})
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    if len(text.encode()) > MAX_JSON_BYTES:
        raise PydanticCustomError("invalid_value", "expected at most {most} bytes of JSON", {"most": MAX_JSON_BYTES})
    return text


_Json = dict[str, Any] | list[dict[str, Any]]


class JsonPart(WireModel):
    """An object or a list of objects, which the model reads as compact JSON."""

    type: Literal["input_json"]
    data: Annotated[str, BeforeValidator(_compact_json, json_schema_input_type=_Json)]

    def as_text(self) -> str:
        """The text that the model reads."""
        return self.data


class ImagePart(WireModel):
    """An image, which is always refused: the model only reads text."""

    type: Annotated[Literal["input_image"], Field(json_schema_extra={"not": {}})]

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, data: Any) -> Any:
        raise PydanticCustomError("unsupported_parameter", "images are not supported by this server")

    def as_text(self) -> str:
        """Never called: images are refused by validation."""
        raise AssertionError


def _text_or_parts(value: Any) -> str:
    return "text" if isinstance(value, str) else "parts"


_Text = Annotated[str, Tag("text")]
_TextOrParts = Discriminator(_text_or_parts)
_UserPart = Annotated[TextPart | ImagePart | JsonPart, Field(discriminator="type")]
_AssistantPart = Annotated[OutputTextPart | RefusalPart, Field(discriminator="type")]
_OutputPart = Annotated[TextPart | ImagePart, Field(discriminator="type")]
_QuestionPart = Annotated[PlainTextPart | ImagePart | JsonPart, Field(discriminator="type")]
_Parts = Field(fail_fast=True, min_length=1)
UserContent = Annotated[_Text | Annotated[list[_UserPart], _Parts, Tag("parts")], _TextOrParts]
SystemContent = Annotated[_Text | Annotated[list[TextPart], _Parts, Tag("parts")], _TextOrParts]
AssistantContent = Annotated[_Text | Annotated[list[_AssistantPart], _Parts, Tag("parts")], _TextOrParts]
OutputContent = Annotated[_Text | Annotated[list[_OutputPart], _Parts, Tag("parts")], _TextOrParts]
_QuestionText = Annotated[str, Field(json_schema_extra={"pattern": r"\S"}), Tag("text")]
QuestionContent = Annotated[_QuestionText | Annotated[list[_QuestionPart], _Parts, Tag("parts")], _TextOrParts]
_Status = Literal["in_progress", "completed", "incomplete"]


def text_of(content: str | Sequence[Any]) -> str:
    """The text of a message's content; parts are joined as lines."""
    parts = (content,) if isinstance(content, str) else content
    return "\n".join(part if isinstance(part, str) else part.as_text() for part in parts)


class UserMessage(WireModel):
    """A message of the user."""

    role: Literal["user"]
    content: UserContent
    type: Literal["message"] | None = None

    def turn(self) -> Message:
        """The message as a turn of a chat."""
        return Message("user", text_of(self.content))


class SystemMessage(WireModel):
    """A message of the developer, which chat templates know by the older role `system`."""

    role: Literal["system", "developer"]
    content: SystemContent
    type: Literal["message"] | None = None

    def turn(self) -> Message:
        """The message as a turn of a chat."""
        return Message("system", text_of(self.content))


class AssistantMessage(WireModel):
    """A message of the assistant. `phase` is accepted without effect: chat templates do not support it."""

    role: Literal["assistant"]
    content: AssistantContent
    phase: Literal["commentary", "final_answer"] | None = None
    type: Literal["message"] | None = None

    def turn(self) -> Message:
        """The message as a turn of a chat."""
        return Message("assistant", text_of(self.content))


class _AnyToolCall(WireModel):
    name: str
    call_id: str
    id: str | None = None
    namespace: str | None = None
    status: _Status | None = None

    def _turn(self, given: str) -> Message:
        """The call as a turn of the assistant."""
        name = self.name if self.namespace is None else f"{self.namespace}.{self.name}"
        return Message("assistant", f"Call {self.call_id}: {name}({given})")


class FunctionCall(_AnyToolCall):
    """A function call of the assistant."""

    type: Literal["function_call"]
    arguments: str

    def turn(self) -> Message:
        """The call as a turn of a chat."""
        return self._turn(self.arguments)


class CustomToolCall(_AnyToolCall):
    """A custom tool call of the assistant."""

    type: Literal["custom_tool_call"]
    input: str

    def turn(self) -> Message:
        """The call as a turn of a chat."""
        return self._turn(self.input)


class ToolOutput(WireModel):
    """The output of a call."""

    type: Literal["function_call_output", "custom_tool_call_output"]
    call_id: str
    output: OutputContent
    id: str | None = None
    status: _Status | None = None

    @property
    def call_type(self) -> str:
        """The type of the call with this output."""
        return self.type.removesuffix("_output")

    def turn(self) -> Message:
        """The output as a turn of the user."""
        return Message("user", f"Output of call {self.call_id}: {text_of(self.output)}")


_TAG_OF_ROLE = {"user": "user", "system": "system", "developer": "system", "assistant": "assistant"}
_TAG_OF_TYPE = {
    "function_call": "function_call",
    "custom_tool_call": "custom_tool_call",
    "function_call_output": "output",
    "custom_tool_call_output": "output",
}


def _tag_of_item(value: Any) -> str | None:
    if not isinstance(value, dict):
        return None
    kind, role = value.get("type"), value.get("role")
    if kind is None or kind == "message":
        return _TAG_OF_ROLE.get(role) if isinstance(role, str) else None
    return _TAG_OF_TYPE.get(kind) if isinstance(kind, str) else None


InputItem = Annotated[
    Annotated[UserMessage, Tag("user")]
    | Annotated[SystemMessage, Tag("system")]
    | Annotated[AssistantMessage, Tag("assistant")]
    | Annotated[FunctionCall, Tag("function_call")]
    | Annotated[CustomToolCall, Tag("custom_tool_call")]
    | Annotated[ToolOutput, Tag("output")],
    Discriminator(
        _tag_of_item,
        custom_error_type="invalid_value",
        custom_error_message="expected a message of the user, developer, system or assistant, or a tool call or output",
    ),
]

DecisionInput = Annotated[_Text | Annotated[list[InputItem], _Parts, Tag("parts")], _TextOrParts]
