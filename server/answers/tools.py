"""Tools that a model may call, and how a request lets it call them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the client runs. `parameters`: JSON schema of its arguments; `strict`: enforce the schema."""

    name: str
    description: str | None = None
    parameters: Mapping[str, Any] | None = None
    strict: bool = False

    @property
    def schema(self) -> Mapping[str, Any]:
        """The schema of the arguments; without parameters, that of an empty object."""
        if self.parameters is None:
            return {"type": "object", "properties": {}, "additionalProperties": False}
        return self.parameters

    def for_template(self) -> dict[str, Any]:
        """The tool in the form that chat templates expect."""
        function: dict[str, Any] = {"name": self.name}
        if self.description is not None:
            function["description"] = self.description
        return {"type": "function", "function": function | {"parameters": dict(self.schema)}}


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The tools of a request. `mode`: `none` forbids calls, `auto` leaves them to the model, `required` demands one.

    `allowed`: the names that may be called, None for all; the model sees all tools either way. `parallel`: an answer
    may have several calls.
    """

    tools: tuple[Tool, ...] = ()
    mode: Literal["none", "auto", "required"] = "none"
    allowed: frozenset[str] | None = None
    parallel: bool = True

    @property
    def callable(self) -> tuple[Tool, ...]:
        """The tools that may be called."""
        if self.mode == "none":
            return ()
        return tuple(tool for tool in self.tools if self.allowed is None or tool.name in self.allowed)

    @property
    def is_constrained(self) -> bool:
        """True when a grammar must enforce the calls: the model alone might not keep to the request."""
        return self.mode == "required" or (
            self.mode == "auto"
            and (self.allowed is not None or not self.parallel or any(tool.strict for tool in self.callable))
        )


NO_TOOLS = ToolUse()
"""The tools of a request without any."""
