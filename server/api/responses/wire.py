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
    """Text is one message of the user."""
    if isinstance(value, str):
        return [{"type": "message", "role": "user", "content": value}]
    if not isinstance(value, list) or not value:
        raise PydanticCustomError("invalid_type", "give a string or a list of items")
    return value


_Includable = list[Literal["message.output_text.logprobs"]] | None


def _includable(value: Any) -> Any:
    if value is None:
        return []
    if not isinstance(value, list):
        raise PydanticCustomError("invalid_type", "give a list of names")
    for index, name in enumerate(value):
        if name != LOGPROBS:
            raise PydanticCustomError(
                "unsupported_parameter",
                "{name} is not supported by this server, only {known}",
                {"name": repr(name)[:60], "known": LOGPROBS, "at": index},
            )
    return value


def _short_pairs(value: dict[str, str]) -> dict[str, str]:
    if len(value) > MAX_METADATA or any(len(key) > 64 or len(text) > 512 for key, text in value.items()):
        raise PydanticCustomError(
            "invalid_value", "at most {most} pairs of 64 and 512 characters", {"most": MAX_METADATA}
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
    """`tool_choice` of one function; also an entry of `allowed_tools`."""

    type: Literal["function"]
    name: ToolName


class AllowedFunctions(WireModel):
    """`tool_choice` of several functions."""

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
    """What the answer's text is to be."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {"verbosity": ("medium",)}

    format: Annotated[TextFormat | ObjectFormat | ResponseSchemaFormat, Field(discriminator="type")] | None = None


class ReasoningConfig(WireModel):
    """How much the model reasons."""

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
    """Text of the user, or the items of a conversation."""
    instructions: str | None = None
    """What the model is told before the conversation; not carried over to the next response."""
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    """The most tokens to generate. Default: what the context leaves."""
    tools: (
        Annotated[
            list[Annotated[ResponseTool, BeforeValidator(only_functions)]], Field(fail_fast=True, max_length=MAX_TOOLS)
        ]
        | None
    ) = None
    """The functions that the model may call."""
    tool_choice: ResponseToolChoice | None = None
    """Whether it may, must or must not call, and which. Default: `auto`."""
    parallel_tool_calls: bool | None = None
    """Whether an answer may have several calls. Default: true."""
    text: TextConfig | None = None
    """What the answer's text is to be: text, any JSON object, or JSON by a schema."""
    reasoning: ReasoningConfig | None = None
    """How much the model reasons, where its template can set that."""
    include: Annotated[list[str], BeforeValidator(_includable, json_schema_input_type=_Includable)] = Field(
        default_factory=list
    )
    """What more to tell."""
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    """How many of the likeliest tokens to tell at each place; only with log-probabilities in `include`."""
    store: bool | None = None
    """Whether the response is kept. Default: false."""
    previous_response_id: str | None = None
    """A kept response from which the conversation goes on."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Variables of the model's chat template."""
    metadata: Annotated[dict[str, str], AfterValidator(_short_pairs)] | None = None
    """Pairs that the response repeats."""
    prompt_cache_key: str | None = None
    """Changes nothing but what the response repeats: every prefix is reused."""
    prompt_cache_options: CacheOptions | None = None
    """Changes nothing."""
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None
    """Changes nothing but what the response repeats."""
    safety_identifier: str | None = None
    """Changes nothing but what the response repeats."""

    @model_validator(mode="after")
    def _check_logprobs(self) -> ResponseRequest:
        if self.top_logprobs and LOGPROBS not in self.include:
            raise InvalidRequest(
                f"top_logprobs: only with {LOGPROBS} in include", code="invalid_value", param="top_logprobs"
            )
        return self

    @property
    def num_logprobs(self) -> int | None:
        """How many likeliest tokens to tell at each place; None: no log-probabilities."""
        return (self.top_logprobs or 0) if LOGPROBS in self.include else None

    @property
    def reasoning_effort(self) -> ReasoningEffort | None:
        """How much the model is to reason, if the request says."""
        return None if self.reasoning is None else self.reasoning.effort

    @property
    def text_format(self) -> TextFormat | ObjectFormat | ResponseSchemaFormat:
        """What the answer's text is to be."""
        asked = None if self.text is None else self.text.format
        return TextFormat(type="text") if asked is None else asked

    def use(self) -> ToolUse:
        """What the request says about tools. Raises `InvalidRequest`."""
        tools = [tool.tool() for tool in self.tools or ()]
        choice = self.tool_choice
        if isinstance(choice, ChosenFunction):
            return tool_use(tools, "required", [choice.name], parallel=False)
        if isinstance(choice, AllowedFunctions):
            return tool_use(tools, choice.mode, [tool.name for tool in choice.tools], self.parallel_tool_calls)
        return tool_use(tools, choice, None, self.parallel_tool_calls)

    def answer_schema(self) -> dict[str, Any] | None:
        """What the answer's text must be valid JSON of; None: text."""
        wanted = self.text_format
        if isinstance(wanted, ResponseSchemaFormat):
            return wanted.json_schema()
        return ANY_OBJECT if isinstance(wanted, ObjectFormat) else None
