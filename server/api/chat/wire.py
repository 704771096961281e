"""Wire models of `POST /v1/chat/completions`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, NotRequired

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from server.answers.tools import ToolUse
from server.api.generation.content import texts_of
from server.api.generation.tools import (
    ANY_OBJECT,
    MAX_CALLS,
    MAX_TOOLS,
    AllowedToolChoice,
    ChatTool,
    MessageToolCall,
    NamedTool,
    ObjectFormat,
    SchemaFormat,
    TextFormat,
    ToolChoice,
    parsed_arguments,
    tool_use,
)
from server.api.generation.wire import MAX_TOP_LOGPROBS, CacheOptions, GenerationFields, ReasoningEffort
from server.api.http.wire import WireModel
from server.errors import InvalidRequest


class ContentPart(TypedDict):
    """A text part of a message's content. Parts of other types are refused."""

    type: Literal["text"]
    text: str
    prompt_cache_breakpoint: NotRequired[Any]


_Content = str | Annotated[list[ContentPart], Field(min_length=1)] | None


def content_text(value: Any) -> Any:
    """Text, or a list of text parts, which are joined as lines of one text."""
    return value if isinstance(value, str) or value is None else "\n".join(texts_of(value, ("text",)))


class ChatMessage(WireModel):
    """A message of a chat. `name` and `reasoning_content` are passed to the chat template."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {
        "function_call": (),
        "audio": (),
        "refusal": (),
        "annotations": ([],),
    }

    role: Literal["system", "developer", "user", "assistant", "tool"]
    """The author of the message; `developer` is the newer name of `system`."""
    content: Annotated[str | None, BeforeValidator(content_text, json_schema_input_type=_Content)] = None
    """Text, or text parts, which are joined as lines. Optional for an assistant message with tool calls."""
    name: str | None = None
    """The name of the author, for chat templates that show it."""
    tool_calls: Annotated[list[MessageToolCall], Field(max_length=MAX_CALLS)] | None = None
    """The tool calls of an assistant message."""
    tool_call_id: str | None = None
    """The id of the call that a tool message answers."""
    reasoning_content: str | None = None
    """The reasoning of an assistant before its answer."""

    @model_validator(mode="after")
    def _check_role(self) -> ChatMessage:
        for name in ("tool_calls", "reasoning_content"):
            if self.role != "assistant" and getattr(self, name):
                raise PydanticCustomError("invalid_value", "only allowed in assistant messages", {"at": name})
        if (self.role == "tool") != (self.tool_call_id is not None):
            raise PydanticCustomError(
                "invalid_value", "required in tool messages, and only allowed there", {"at": "tool_call_id"}
            )
        if self.content is None and not self.tool_calls:
            raise PydanticCustomError("missing", "missing required parameter", {"at": "content"})
        return self

    def for_template(self, param: str) -> dict[str, Any]:
        """The message in the form of chat templates, which know `developer` as `system`.

        Raises `InvalidRequest`, naming `param`, for calls whose arguments are not a JSON object.
        """
        role = "system" if self.role == "developer" else self.role
        message: dict[str, Any] = {"role": role, "content": self.content or ""}
        for name in ("name", "tool_call_id", "reasoning_content"):
            if (value := getattr(self, name)) is not None:
                message[name] = value
        if self.tool_calls:
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {
                        "name": call.function.name,
                        "arguments": parsed_arguments(
                            call.function.arguments, f"{param}.tool_calls.{index}.function.arguments"
                        ),
                    },
                }
                for index, call in enumerate(self.tool_calls)
            ]
        return message


class ChatSchemaFormat(WireModel):
    """`response_format` with a schema."""

    type: Literal["json_schema"]
    json_schema: SchemaFormat


class ChatRequest(GenerationFields):
    """Body of `POST /v1/chat/completions`."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {
        "functions": ([],),
        "function_call": ("none",),
        "verbosity": ("medium",),
        "audio": (),
        "modalities": (["text"],),
        "moderation": (),
        "prediction": (),
        "web_search_options": (),
        "store": (False,),
        "service_tier": ("auto", "default"),
    }

    messages: Annotated[list[ChatMessage], Field(fail_fast=True, min_length=1)]
    """The messages of the chat so far."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """The older name of `max_completion_tokens`."""
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    """The maximum number of tokens to generate. Default: the rest of the context."""
    logprobs: bool | None = None
    """Whether to return the log-probabilities of the answer's tokens."""
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    """The number of likeliest tokens to return for each token; only with `logprobs`."""
    tools: Annotated[list[ChatTool], Field(max_length=MAX_TOOLS)] | None = None
    """The functions that the model may call."""
    tool_choice: ToolChoice | None = None
    """Whether the model may, must or must not call functions, and which. Default: `auto` if there are tools."""
    parallel_tool_calls: bool | None = None
    """Whether an answer may contain several calls. Default: true."""
    response_format: Annotated[TextFormat | ObjectFormat | ChatSchemaFormat, Field(discriminator="type")] | None = None
    """The format of the answer: text, any JSON object, or JSON under a schema."""
    reasoning_effort: ReasoningEffort | None = None
    """How much the model reasons, if its chat template supports this."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Variables for the model's chat template."""
    metadata: dict[str, str] | None = None
    """Accepted without effect."""
    prompt_cache_key: str | None = None
    """Accepted without effect: every prefix is cached."""
    prompt_cache_options: CacheOptions | None = None
    """Accepted without effect."""
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None
    """Accepted without effect."""
    safety_identifier: str | None = None
    """Accepted without effect."""

    @model_validator(mode="after")
    def _check_pairs(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequest(
                "top_logprobs: only allowed with logprobs: true", code="invalid_value", param="top_logprobs"
            )
        both = (self.max_tokens, self.max_completion_tokens)
        if None not in both and self.max_tokens != self.max_completion_tokens:
            raise InvalidRequest(
                "expected either max_tokens or max_completion_tokens, got different values for both",
                code="invalid_value",
                param="max_tokens",
            )
        return self

    @property
    def asked_tokens(self) -> int | None:
        """The maximum number of tokens to generate, if the request sets one."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def num_logprobs(self) -> int | None:
        """The number of likeliest tokens to return for each token; None: no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None

    def use(self) -> ToolUse:
        """The request's tools and how it uses them. Raises `InvalidRequest`."""
        tools = [entry.function.tool() for entry in self.tools or ()]
        choice = self.tool_choice
        if isinstance(choice, NamedTool):
            return tool_use(tools, "required", [choice.function.name], parallel=False)
        if isinstance(choice, AllowedToolChoice):
            names = [tool.function.name for tool in choice.allowed_tools.tools]
            return tool_use(tools, choice.allowed_tools.mode, names, self.parallel_tool_calls)
        return tool_use(tools, choice, None, self.parallel_tool_calls)

    def answer_schema(self) -> dict[str, Any] | None:
        """The JSON schema of the answer's text; None: free text."""
        if isinstance(self.response_format, ChatSchemaFormat):
            return self.response_format.json_schema.json_schema()
        return ANY_OBJECT if isinstance(self.response_format, ObjectFormat) else None
