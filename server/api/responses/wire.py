"""Wire models of `POST /v1/responses`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from server.answers.tools import ToolUse
from server.api.generation.tools import (
    ANY_OBJECT,
    FORM_OF_CHOICE,
    MAX_TOOLS,
    FunctionDefinition,
    ObjectFormat,
    SchemaFormat,
    TextFormat,
    ToolName,
    only_functions,
    tool_use,
)
from server.api.generation.wire import MAX_TOP_LOGPROBS, CacheOptions, GenerationFields, ReasoningEffort
from server.api.http.wire import WireModel
from server.api.responses.items import InputItem
from server.errors import InvalidRequest

LOGPROBS = "message.output_text.logprobs"
MAX_METADATA = 16


_Input = str | Annotated[list[InputItem], Field(min_length=1)]


def _input(value: Any) -> Any:
    """The items of the input; text becomes a message of the user."""
    if isinstance(value, str):
        return [{"type": "message", "role": "user", "content": value}]
    if not isinstance(value, list) or not value:
        raise PydanticCustomError("invalid_type", "expected a string or a list of items")
    return value


_Includable = list[Literal["message.output_text.logprobs"]] | None


def _includable(value: Any) -> Any:
    if value is None:
        return []
    if not isinstance(value, list):
        raise PydanticCustomError("invalid_type", "expected a list of names")
    for index, name in enumerate(value):
        if name != LOGPROBS:
            raise PydanticCustomError(
                "unsupported_parameter",
                "expected {known}, got {name}, which is not supported",
                {"name": repr(name)[:60], "known": LOGPROBS, "at": index},
            )
    return value


def _short_pairs(value: dict[str, str]) -> dict[str, str]:
    if len(value) > MAX_METADATA or any(len(key) > 64 or len(text) > 512 for key, text in value.items()):
        raise PydanticCustomError(
            "invalid_value",
            "expected at most {most} pairs, with keys of up to 64 and values of up to 512 characters",
            {"most": MAX_METADATA},
        )
    return value


class ResponseTool(FunctionDefinition):
    """An entry of `tools`."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {
        "allowed_callers": (["direct"],),
        "async": (False,),
        "defer_loading": (False,),
        "output_schema": (),
    }

    type: Literal["function"]


class ChosenFunction(WireModel):
    """A `tool_choice` of one function; also an entry of `allowed_tools`."""

    type: Literal["function"]
    name: ToolName


class AllowedFunctions(WireModel):
    """A `tool_choice` of several functions."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[
        list[Annotated[ChosenFunction, BeforeValidator(only_functions)]], Field(min_length=1, max_length=MAX_TOOLS)
    ]


class ResponseSchemaFormat(SchemaFormat):
    """`text.format` with a schema."""

    type: Literal["json_schema"]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]


class TextConfig(WireModel):
    """The format of the answer's text."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {"verbosity": ("medium",)}

    format: Annotated[TextFormat | ObjectFormat | ResponseSchemaFormat, Field(discriminator="type")] | None = None


class ReasoningConfig(WireModel):
    """The reasoning effort."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {
        "context": ("auto",),
        "generate_summary": (),
        "mode": ("standard",),
        "summary": (),
    }

    effort: ReasoningEffort | None = None


ResponseToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("mode")]
    | Annotated[ChosenFunction, Tag("function")]
    | Annotated[AllowedFunctions, Tag("allowed_tools")],
    FORM_OF_CHOICE,
    BeforeValidator(only_functions),
]


class ResponseRequest(GenerationFields):
    """Body of `POST /v1/responses`."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {
        "access_programs": (),
        "background": (False,),
        "background_options": (),
        "context_management": ([],),
        "conversation": (),
        "image": (),
        "max_tool_calls": (),
        "moderation": (),
        "n": (1,),
        "prompt": (),
        "return_token_ids": (False,),
        "service_tier": ("auto", "default"),
        "truncation": ("disabled",),
    }

    input: Annotated[list[InputItem], Field(fail_fast=True), BeforeValidator(_input, json_schema_input_type=_Input)]
    """A text of the user, or the items of a conversation."""
    instructions: str | None = None
    """A system message before the conversation. It is not carried over to the next response."""
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    """The maximum number of tokens to generate. Default: the rest of the context."""
    tools: (
        Annotated[
            list[Annotated[ResponseTool, BeforeValidator(only_functions)]], Field(fail_fast=True, max_length=MAX_TOOLS)
        ]
        | None
    ) = None
    """The functions that the model may call."""
    tool_choice: ResponseToolChoice | None = None
    """Whether the model may, must or must not call functions, and which. Default: `auto`."""
    parallel_tool_calls: bool | None = None
    """Whether an answer may contain several calls. Default: true."""
    text: TextConfig | None = None
    """The format of the answer: text, any JSON object, or JSON under a schema."""
    reasoning: ReasoningConfig | None = None
    """How much the model reasons, if its chat template supports this."""
    include: Annotated[list[str], BeforeValidator(_includable, json_schema_input_type=_Includable)] = Field(
        default_factory=list
    )
    """Additional output to return."""
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    """The number of likeliest tokens to return for each token; only with log-probabilities in `include`."""
    store: bool | None = None
    """Whether to store the response. Default: false."""
    previous_response_id: str | None = None
    """The id of a stored response whose conversation this request continues."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Variables for the model's chat template."""
    metadata: Annotated[dict[str, str], AfterValidator(_short_pairs)] | None = None
    """Key-value pairs that the response repeats."""
    prompt_cache_key: str | None = None
    """Repeated in the response, without other effect: every prefix is cached."""
    prompt_cache_options: CacheOptions | None = None
    """Accepted without effect."""
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None
    """Repeated in the response, without other effect."""
    safety_identifier: str | None = None
    """Repeated in the response, without other effect."""

    @model_validator(mode="after")
    def _check_logprobs(self) -> ResponseRequest:
        if self.top_logprobs and LOGPROBS not in self.include:
            raise InvalidRequest(
                f"top_logprobs: only allowed with {LOGPROBS} in include", code="invalid_value", param="top_logprobs"
            )
        return self

    @property
    def num_logprobs(self) -> int | None:
        """The number of likeliest tokens to return for each token; None: no log-probabilities."""
        return (self.top_logprobs or 0) if LOGPROBS in self.include else None

    @property
    def reasoning_effort(self) -> ReasoningEffort | None:
        """The reasoning effort, if the request sets one."""
        return None if self.reasoning is None else self.reasoning.effort

    @property
    def text_format(self) -> TextFormat | ObjectFormat | ResponseSchemaFormat:
        """The format of the answer's text."""
        asked = None if self.text is None else self.text.format
        return TextFormat(type="text") if asked is None else asked

    def use(self) -> ToolUse:
        """The request's tools and how it uses them. Raises `InvalidRequest`."""
        tools = [tool.tool() for tool in self.tools or ()]
        choice = self.tool_choice
        if isinstance(choice, ChosenFunction):
            return tool_use(tools, "required", [choice.name], parallel=False)
        if isinstance(choice, AllowedFunctions):
            return tool_use(tools, choice.mode, [tool.name for tool in choice.tools], self.parallel_tool_calls)
        return tool_use(tools, choice, None, self.parallel_tool_calls)

    def answer_schema(self) -> dict[str, Any] | None:
        """The JSON schema of the answer's text; None: free text."""
        wanted = self.text_format
        if isinstance(wanted, ResponseSchemaFormat):
            return wanted.json_schema()
        return ANY_OBJECT if isinstance(wanted, ObjectFormat) else None
