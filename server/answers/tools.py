"""Tools that a model may call, and what a request says about calling them. It does not know the wire or a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the client runs. `parameters`: JSON schema of its arguments object; `strict`: calls obey it."""

    name: str
    description: str | None = None
    parameters: Mapping[str, Any] | None = None
    strict: bool = False

    @property
    def schema(self) -> Mapping[str, Any]:
        """The schema of the arguments; without parameters there are none to give."""
        if self.parameters is None:
            return {"type": "object", "properties": {}, "additionalProperties": False}
        return self.parameters

    def for_template(self) -> dict[str, Any]:
        """The tool as chat templates know it."""
        function: dict[str, Any] = {"name": self.name}
        if self.description is not None:
            function["description"] = self.description
        return {"type": "function", "function": function | {"parameters": dict(self.schema)}}


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The tools of a request. `mode`: `none` calls nothing, `auto` is the model's choice, `required` must call.

    `allowed`: names that may be called, None for all; the model sees all of them either way. `parallel`: more than
    one call in an answer.
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
        """True when calls must be kept to a grammar: one is required, or the answer may not be the model's own way."""
        return self.mode == "required" or (
            self.mode == "auto"
            and (self.allowed is not None or not self.parallel or any(tool.strict for tool in self.callable))
        )


NO_TOOLS = ToolUse()
"""The tools of a request without any."""
