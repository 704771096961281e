"""Wire models of what decisions are about: text, or messages with tools' calls and outputs, as turns of a chat.

Images are refused by name. A tool's call and output become text, so that every chat template shows them.
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
    """Where a reusable prefix ends. Changes no answer: every prefix is reused here."""

    mode: Literal["explicit"]


class PlainTextPart(WireModel):
    """A part of a question's instructions."""

    type: Literal["input_text"]
    text: str

    def as_text(self) -> str:
        """As the model reads it."""
        return self.text


class TextPart(PlainTextPart):
    """A part of what is said."""

    prompt_cache_breakpoint: CacheBreakpoint | None = None


class OutputTextPart(WireModel):
    """A part of what an assistant said."""

    type: Literal["output_text"]
    text: str

    def as_text(self) -> str:
        """As the model reads it."""
        return self.text


class RefusalPart(WireModel):
    """What an assistant said instead of an answer."""

    type: Literal["refusal"]
    refusal: str

    def as_text(self) -> str:
        """As the model reads it."""
        return self.refusal


def _compact_json(value: Any) -> str:
    """`value` as compact JSON within the API's limits."""
    if not isinstance(value, dict) and not (isinstance(value, list) and all(isinstance(item, dict) for item in value)):
        raise PydanticCustomError("invalid_type", "give an object or a list of objects")
    num_values = 0
    level: list[Any] = [value]
    for _ in range(MAX_JSON_DEPTH):
        inner = [child for item in level for child in (item.values() if isinstance(item, dict) else item)]
        num_values += len(inner)
        if num_values > MAX_JSON_VALUES:
            raise PydanticCustomError("invalid_value", "at most {most} values", {"most": MAX_JSON_VALUES})
        level = [child for child in inner if isinstance(child, dict | list)]
        if not level:
            break
    else:
        raise PydanticCustomError("invalid_value", "at most {most} levels deep", {"most": MAX_JSON_DEPTH})
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    if len(text.encode()) > MAX_JSON_BYTES:
        raise PydanticCustomError("invalid_value", "at most {most} bytes of JSON", {"most": MAX_JSON_BYTES})
    return text


_Json = dict[str, Any] | list[dict[str, Any]]


class JsonPart(WireModel):
    """An object or a list of objects; the model reads it as compact JSON."""

    type: Literal["input_json"]
    data: Annotated[str, BeforeValidator(_compact_json, json_schema_input_type=_Json)]

    def as_text(self) -> str:
        """As the model reads it."""
        return self.data


class ImagePart(WireModel):
    """Always refused: the model reads text."""

    type: Annotated[Literal["input_image"], Field(json_schema_extra={"not": {}})]

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, data: Any) -> Any:
        raise PydanticCustomError("unsupported_parameter", "images are not supported by this server")

    def as_text(self) -> str:
        """There is none: an image is refused before it exists."""
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
    """The text of a content: itself, or its parts as the lines of one text."""
    parts = (content,) if isinstance(content, str) else content
    return "\n".join(part if isinstance(part, str) else part.as_text() for part in parts)


class UserMessage(WireModel):
    """What a user says."""

    role: Literal["user"]
    content: UserContent
    type: Literal["message"] | None = None

    def turn(self) -> Message:
        """The message as a turn of a chat."""
        return Message("user", text_of(self.content))


class SystemMessage(WireModel):
    """What a developer says; chat templates know the older word for it."""

    role: Literal["system", "developer"]
    content: SystemContent
    type: Literal["message"] | None = None

    def turn(self) -> Message:
        """The message as a turn of a chat."""
        return Message("system", text_of(self.content))


class AssistantMessage(WireModel):
    """What an assistant says. `phase` is not shown to the model: chat templates have no place for it."""

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
        """The call as what the assistant said."""
        name = self.name if self.namespace is None else f"{self.namespace}.{self.name}"
        return Message("assistant", f"Call {self.call_id}: {name}({given})")


class FunctionCall(_AnyToolCall):
    """An assistant's call of a function."""

    type: Literal["function_call"]
    arguments: str

    def turn(self) -> Message:
        """The call as a turn of a chat."""
        return self._turn(self.arguments)


class CustomToolCall(_AnyToolCall):
    """An assistant's call of a custom tool."""

    type: Literal["custom_tool_call"]
    input: str

    def turn(self) -> Message:
        """The call as a turn of a chat."""
        return self._turn(self.input)


class ToolOutput(WireModel):
    """What came of a call."""

    type: Literal["function_call_output", "custom_tool_call_output"]
    call_id: str
    output: OutputContent
    id: str | None = None
    status: _Status | None = None

    @property
    def call_type(self) -> str:
        """The type of the call that it answers."""
        return self.type.removesuffix("_output")

    def turn(self) -> Message:
        """The output as it is told to the assistant."""
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
        custom_error_message="neither a message of a user, developer, system or assistant, nor a tool's call or output",
    ),
]

DecisionInput = Annotated[_Text | Annotated[list[InputItem], _Parts, Tag("parts")], _TextOrParts]
