"""Wire models of tools, tool calls and answer formats that several endpoints share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from server.answers.tools import NO_TOOLS, Tool, ToolUse
from server.api.http.wire import WireModel
from server.errors import InvalidRequest

MAX_TOOLS = 128
MAX_CALLS = 1024

ToolName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


def _object_schema(schema: dict[str, Any] | None) -> dict[str, Any] | None:
    """The schema, if it can describe an object of arguments."""
    if schema is not None and schema.get("type", "object") != "object":
        raise PydanticCustomError("invalid_value", "expected the schema of an object")
    return schema


class FunctionDefinition(WireModel):
    """A function that the model may call."""

    name: ToolName
    description: str | None = None
    parameters: Annotated[dict[str, Any] | None, AfterValidator(_object_schema)] = None
    strict: bool | None = None

    def tool(self) -> Tool:
        """The described tool."""
        return Tool(self.name, self.description, self.parameters, bool(self.strict))


def only_functions(value: Any) -> Any:
    """Refuse a tool or choice of a type that this server does not support."""
    kind = value.get("type") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind not in ("function", "allowed_tools"):
        raise PydanticCustomError(
            "unsupported_parameter",
            "expected the type function, got {kind}, which is not supported",
            {"kind": repr(kind)[:60], "at": "type"},
        )
    return value


def _form_of_choice(value: Any) -> str:
    return str(value.get("type", "function")) if isinstance(value, dict) else "mode"


FORM_OF_CHOICE = Discriminator(
    _form_of_choice,
    custom_error_type="invalid_value",
    custom_error_message="expected none, auto, required, or an object of type function or allowed_tools",
)
"""Distinguishes the forms of `tool_choice`, so that errors are about the given form."""


class FunctionTool(WireModel):
    """An entry of a chat's `tools`."""

    type: Literal["function"]
    function: FunctionDefinition


class FunctionName(WireModel):
    """The name of a function."""

    name: ToolName


class NamedTool(WireModel):
    """A `tool_choice` of one function; also an entry of `allowed_tools`."""

    type: Literal["function"]
    function: FunctionName


class AllowedTools(WireModel):
    """The tools that may be called, and whether a call is required."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1, max_length=MAX_TOOLS)]


class AllowedToolChoice(WireModel):
    """A `tool_choice` of several functions."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


class CalledFunction(WireModel):
    """A function that an earlier answer called; `arguments` is JSON text."""

    name: str
    arguments: str


class MessageToolCall(WireModel):
    """A call in an earlier answer."""

    id: Annotated[str, Field(min_length=1, max_length=256)]
    type: Literal["function"] = "function"
    function: CalledFunction


ChatTool = Annotated[FunctionTool, BeforeValidator(only_functions)]
ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("mode")]
    | Annotated[NamedTool, Tag("function")]
    | Annotated[AllowedToolChoice, Tag("allowed_tools")],
    FORM_OF_CHOICE,
    BeforeValidator(only_functions),
]


def parsed_arguments(arguments: str, param: str) -> dict[str, Any] | str:
    """The arguments of an earlier call as chat templates expect: an object, or the text of one that was cut short.

    Raises `InvalidRequest` for anything else.
    """
    text = arguments.strip()
    try:
        value = json.loads(text) if text else {}
    except RecursionError:
        value = None
    except ValueError:
        value = arguments if text.startswith("{") else None
    if not isinstance(value, dict | str):
        raise InvalidRequest(f"{param}: expected a JSON object as text", code="invalid_value", param=param)
    return value


def tool_use(
    tools: Sequence[Tool],
    choice: Literal["none", "auto", "required"] | None,
    allowed: Sequence[str] | None,
    parallel: bool | None,
) -> ToolUse:
    """The tools of a request and how they may be called; without a choice the model decides.

    Raises `InvalidRequest` for a duplicate name, and for a choice of a missing tool.
    """
    names = [tool.name for tool in tools]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise InvalidRequest(
                f"tools.{index}: the tool {name!r} is given more than once",
                code="invalid_value",
                param=f"tools.{index}",
            )
    if not tools:
        if choice in (None, "none", "auto") and allowed is None:
            return NO_TOOLS
        raise InvalidRequest("tool_choice: only allowed with tools", code="invalid_value", param="tool_choice")
    unknown = [name for name in allowed or () if name not in names]
    if unknown:
        raise InvalidRequest(
            f"tool_choice: expected a name from tools, got {unknown[0]!r}", code="invalid_value", param="tool_choice"
        )
    return ToolUse(
        tuple(tools),
        choice or "auto",
        None if allowed is None else frozenset(allowed),
        parallel=parallel is None or parallel,
    )


class SchemaFormat(WireModel):
    """A JSON schema for the answer. It is always enforced, whatever `strict` is."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    description: str | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None

    def json_schema(self) -> dict[str, Any]:
        """The schema; that of any object if none is given."""
        return {"type": "object"} if self.schema_ is None else self.schema_


class TextFormat(WireModel):
    """Free text."""

    type: Literal["text"]


class ObjectFormat(WireModel):
    """Any JSON object."""

    type: Literal["json_object"]


ANY_OBJECT: dict[str, Any] = {"type": "object"}
"""The schema of `json_object`."""
