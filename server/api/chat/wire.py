"""Wire models of `POST /v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any, ClassVar, Literal, NotRequired

from pydantic import BeforeValidator, Field, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from server.answers.tools import ToolUse
from server.api.generation.content import AnsweredRefusal, texts_of
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
from server.api.generation.wire import (
    MAX_CHOICES,
    MAX_TOP_LOGPROBS,
    CacheOptions,
    GenerationFields,
    ReasoningEffort,
    SteeringVariant,
)
from server.api.http.wire import WireModel
from server.errors import InvalidRequest


class ContentPart(TypedDict):
    """A text part of a message's content. Parts of other types are refused."""

    type: Literal["text"]
    text: str
    prompt_cache_breakpoint: NotRequired[Any]


_Content = str | list[ContentPart | AnsweredRefusal] | None


def _content_text(value: Any, info: ValidationInfo) -> Any:
    """Text, or a list of text parts, which are joined as lines of one text."""
    if isinstance(value, str) or value is None:
        return value
    role = info.data.get("role")
    is_answer = role == "assistant"
    kinds = ("text", "refusal") if is_answer else ("text",)
    return "\n".join(texts_of(value, kinds, is_answer=is_answer, may_be_empty=role in ("assistant", "tool")))


_IGNORED_ANYWHERE = ("cache_control", "id")
_IGNORED_BY_ROLE: Mapping[str, tuple[str, ...]] = {
    "assistant": (
        "annotations",
        "citations",
        "extra_content",
        "index",
        "parsed",
        "provider_specific_fields",
        "status",
        "stop_reason",
    ),
    "tool": ("artifact", "provider_specific_fields", "status"),
}


_OF_ASSISTANT = ("tool_calls", "refusal", "reasoning_content", "reasoning", "reasoning_details", "thinking_blocks")


class ChatMessage(WireModel):
    """A message of a chat. `name` and the reasoning are passed to the chat template.

    The ignored fields are those that answers of this and other servers have; except `cache_control`, `id` and nulls,
    they are only accepted in messages of the assistant, and some in those of tools.
    """

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {
        "audio": (),
        "function_call": (),
        "images": ([],),
        "prefix": (False,),
    }
    instead: ClassVar[dict[str, str]] = {"function_call": "tool_calls"}
    ignored = tuple(sorted({*_IGNORED_ANYWHERE, *(name for names in _IGNORED_BY_ROLE.values() for name in names)}))

    role: Literal["system", "developer", "user", "assistant", "tool"]
    """The author of the message; `developer` is the newer name of `system`."""
    content: Annotated[str | None, BeforeValidator(_content_text, json_schema_input_type=_Content)] = None
    """Text, or text parts, which are joined as lines. Optional for messages of the assistant and of tools."""
    name: str | None = None
    """The name of the author, for chat templates that show it."""
    tool_calls: Annotated[list[MessageToolCall], Field(max_length=MAX_CALLS)] | None = None
    """The tool calls of an assistant message."""
    tool_call_id: str | None = None
    """The id of the call that a tool message answers."""
    refusal: str | None = None
    """A refusal of the assistant. It is added to the content."""
    reasoning_content: str | None = None
    """The reasoning of an assistant before its answer."""
    reasoning: str | None = None
    """Another name of `reasoning_content`."""
    reasoning_details: list[Any] | None = None
    """The reasoning in parts, as OpenRouter returns it. Read where the reasoning is not given as text."""
    thinking_blocks: list[Any] | None = None
    """The reasoning in parts, as LiteLLM returns it. Read where the reasoning is not given as text."""

    @classmethod
    def ignored_in(cls, data: Mapping[str, Any]) -> Collection[str]:
        """The ignored fields that this role may have, and those that are null."""
        role = data.get("role")
        allowed = (*_IGNORED_ANYWHERE, *_IGNORED_BY_ROLE.get(role if isinstance(role, str) else "", ()))
        return [name for name in super().ignored_in(data) if name in allowed or data[name] is None]

    @model_validator(mode="after")
    def _check_role(self) -> ChatMessage:
        for name in _OF_ASSISTANT:
            if self.role != "assistant" and getattr(self, name):
                raise PydanticCustomError("invalid_value", "only allowed in assistant messages", {"at": name})
        if (self.role == "tool") != (self.tool_call_id is not None):
            raise PydanticCustomError(
                "invalid_value", "required in tool messages, and only allowed there", {"at": "tool_call_id"}
            )
        if self.content is None and self.role not in ("assistant", "tool"):
            raise PydanticCustomError("missing", "missing required parameter", {"at": "content"})
        return self

    @property
    def reasoning_text(self) -> str | None:
        """The reasoning, in whichever form it is given."""
        for text in (self.reasoning_content, self.reasoning):
            if text:
                return text
        parts = [*(self.reasoning_details or ()), *(self.thinking_blocks or ())]
        texts = [part.get("text", part.get("thinking")) for part in parts if isinstance(part, dict)]
        return "".join(text for text in texts if isinstance(text, str)) or self.reasoning_content

    def for_template(self) -> dict[str, Any]:
        """The message in the form of chat templates, which know `developer` as `system`."""
        role = "system" if self.role == "developer" else self.role
        text = "\n".join(part for part in (self.content, self.refusal) if part)
        message: dict[str, Any] = {"role": role, "content": text}
        given = {"name": self.name, "tool_call_id": self.tool_call_id, "reasoning_content": self.reasoning_text}
        message |= {name: value for name, value in given.items() if value is not None}
        if self.tool_calls:
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {
                        "name": call.function.name,
                        "arguments": parsed_arguments(call.function.arguments),
                    },
                }
                for call in self.tool_calls
            ]
        return message


class ChatSchemaFormat(WireModel):
    """`response_format` with a schema."""

    type: Literal["json_schema"]
    json_schema: SchemaFormat


_Messages = Annotated[list[ChatMessage], Field(fail_fast=True, min_length=1)]


class ChatVariant(SteeringVariant):
    """One of `variants`: the same request with other steering or after another chat."""

    messages: _Messages | None = None
    """The chat that this variant answers, in place of the request's."""


class ChatRequest(GenerationFields):
    """Body of `POST /v1/chat/completions`."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {
        "functions": ([],),
        "add_generation_prompt": (True,),
        "add_special_tokens": (False,),
        "chat_template": (),
        "continue_final_message": (False,),
        "documents": ([],),
        "echo": (False,),
        "enable_thinking": (),
        "function_call": ("none", "auto"),
        "include_reasoning": (True,),
        "mm_processor_kwargs": ({},),
        "thinking_token_budget": (),
        "verbosity": ("medium",),
        "audio": (),
        "modalities": (["text"],),
        "moderation": (),
        "prediction": (),
        "web_search_options": (),
        "store": (False,),
        "service_tier": ("auto", "default"),
    }

    messages: _Messages
    """The messages of the chat so far."""
    variants: Annotated[list[ChatVariant], Field(min_length=1, max_length=MAX_CHOICES)] | None = None
    """Answers to the same request with other steering: `n` choices for each variant, in order."""
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
