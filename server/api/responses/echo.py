"""The fields of a request that its response repeats."""

from __future__ import annotations

from typing import Literal

from server.api.generation.tools import ObjectFormat, TextFormat
from server.api.responses.objects import (
    AllowedFunctionsEcho,
    FunctionChoiceEcho,
    FunctionToolEcho,
    RequestEcho,
    SchemaFormatEcho,
    TextFormatEcho,
)
from server.api.responses.wire import ChosenFunction, ResponseRequest, ResponseSchemaFormat, ResponseTool


def echo_of(request: ResponseRequest) -> RequestEcho:
    """The fields that a response repeats, with defaults for absent ones."""
    return {
        "background": False,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "metadata": request.metadata or {},
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "previous_response_id": request.previous_response_id,
        "prompt_cache_key": request.prompt_cache_key,
        "prompt_cache_retention": request.prompt_cache_retention,
        "reasoning": {"effort": request.reasoning_effort, "summary": None},
        "safety_identifier": request.safety_identifier,
        "service_tier": "default",
        "text": {"format": _format_echo(request.text_format), "verbosity": "medium"},
        "tool_choice": _tool_choice_echo(request),
        "tools": [_tool_echo(tool) for tool in request.tools or ()],
        "top_logprobs": request.top_logprobs or 0,
        "truncation": "disabled",
        "user": request.user,
    }


def _format_echo(given: TextFormat | ObjectFormat | ResponseSchemaFormat) -> TextFormatEcho | SchemaFormatEcho:
    if not isinstance(given, ResponseSchemaFormat):
        return {"type": given.type}
    return {
        "type": given.type,
        "name": given.name,
        "description": given.description,
        "schema": given.schema_,
        "strict": given.strict,
    }


def _tool_choice_echo(
    request: ResponseRequest,
) -> Literal["none", "auto", "required"] | FunctionChoiceEcho | AllowedFunctionsEcho:
    choice = request.tool_choice
    if choice is None:
        return "auto"
    if isinstance(choice, str):
        return choice
    if isinstance(choice, ChosenFunction):
        return _function_echo(choice)
    return {"type": choice.type, "mode": choice.mode, "tools": [_function_echo(tool) for tool in choice.tools]}


def _function_echo(function: ChosenFunction) -> FunctionChoiceEcho:
    return {"type": function.type, "name": function.name}


def _tool_echo(tool: ResponseTool) -> FunctionToolEcho:
    return {
        "type": tool.type,
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.parameters,
        "strict": bool(tool.strict),
    }
