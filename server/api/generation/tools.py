"""Wire models of tools, tool calls and answers under a schema.

What several endpoints spell alike is here; what differs between them is theirs.
"""

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
    """The schema, unless it cannot be that of an arguments object."""
    if schema is not None and schema.get("type", "object") != "object":
        raise PydanticCustomError("invalid_value", "the arguments of a function are an object")
    return schema


class FunctionDefinition(WireModel):
    """A function that the model may call."""

    name: ToolName
    description: str | None = None
    parameters: Annotated[dict[str, Any] | None, AfterValidator(_object_schema)] = None
    strict: bool | None = None

    def tool(self) -> Tool:
        """The tool that it describes."""
        return Tool(self.name, self.description, self.parameters, bool(self.strict))


def only_functions(value: Any) -> Any:
    """Refuse, by its name, a tool or choice of a type that this server lacks."""
    kind = value.get("type") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind not in ("function", "allowed_tools"):
        raise PydanticCustomError(
            "unsupported_parameter",
            "tools of type {kind} are not supported, only functions",
            {"kind": repr(kind)[:60], "at": "type"},
        )
    return value


def _form_of_choice(value: Any) -> str:
    return str(value.get("type", "function")) if isinstance(value, dict) else "mode"


FORM_OF_CHOICE = Discriminator(
    _form_of_choice,
    custom_error_type="invalid_value",
    custom_error_message="give none, auto, required, or an object of the type function or allowed_tools",
)
"""Tells the forms of `tool_choice` apart, so that errors are about the form that was given."""


class FunctionTool(WireModel):
    """An entry of a chat's `tools`."""

    type: Literal["function"]
    function: FunctionDefinition


class FunctionName(WireModel):
    """Names a function."""

    name: ToolName


class NamedTool(WireModel):
    """`tool_choice` of one function; also an entry of `allowed_tools`."""

    type: Literal["function"]
    function: FunctionName


class AllowedTools(WireModel):
    """Which tools may be called, and whether one must be."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1, max_length=MAX_TOOLS)]


class AllowedToolChoice(WireModel):
    """`tool_choice` of several functions."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


class CalledFunction(WireModel):
    """What an earlier answer called; `arguments` is JSON text."""

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


def parsed_arguments(arguments: str, param: str) -> dict[str, Any]:
    """The arguments object of an earlier call, which chat templates want parsed. Raises `InvalidRequest`."""
    try:
        value = json.loads(arguments) if arguments.strip() else {}
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InvalidRequest(f"{param}: the arguments of a call are a JSON object", code="invalid_value", param=param)
    return value


def tool_use(
    tools: Sequence[Tool],
    choice: Literal["none", "auto", "required"] | None,
    allowed: Sequence[str] | None,
    parallel: bool | None,
) -> ToolUse:
    """What a request says about calling its tools; without a choice it is the model's own.

    Raises `InvalidRequest` for a name given twice, and for a choice of what is not there.
    """
    names = [tool.name for tool in tools]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise InvalidRequest(
                f"tools.{index}: there are two tools {name!r}", code="invalid_value", param=f"tools.{index}"
            )
    if not tools:
        if choice in (None, "none", "auto") and allowed is None:
            return NO_TOOLS
        raise InvalidRequest(
            "tool_choice: there are no tools to choose from", code="invalid_value", param="tool_choice"
        )
    unknown = [name for name in allowed or () if name not in names]
    if unknown:
        raise InvalidRequest(
            f"tool_choice: there is no tool {unknown[0]!r} in tools", code="invalid_value", param="tool_choice"
        )
    return ToolUse(
        tuple(tools),
        choice or "auto",
        None if allowed is None else frozenset(allowed),
        parallel=parallel is None or parallel,
    )


class SchemaFormat(WireModel):
    """A JSON schema by which an answer goes; enforced whether `strict` or not."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    description: str | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None

    def json_schema(self) -> dict[str, Any]:
        """The schema; any object when none is given."""
        return {"type": "object"} if self.schema_ is None else self.schema_


class TextFormat(WireModel):
    """Text without a schema."""

    type: Literal["text"]


class ObjectFormat(WireModel):
    """Any JSON object."""

    type: Literal["json_object"]


ANY_OBJECT: dict[str, Any] = {"type": "object"}
"""The schema of `json_object`."""
