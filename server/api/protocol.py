"""Wire models of what clients send. Unknown fields fail by name, and so do known ones that are not supported yet.

A field that cannot change the answer (`user`, `metadata`, …) is accepted. It does not know defaults that depend on
the model, nor what becomes of a request.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from server.errors import InvalidRequest
from vectors.vector import PARTS, Operation, Part, Positions

MAX_CHOICES = 128
MAX_PROMPTS = 2048
MAX_STOPS = 16
MAX_STOP_LENGTH = 1024
MAX_STEERING_ENTRIES = 64
MAX_MODEL_NAME_LENGTH = 4096
MAX_TOKEN_IDS = 4096
MAX_TOP_LOGPROBS = 20


class WireModel(BaseModel):
    """A JSON object from a client: strict types, finite numbers, no unknown fields.

    `unsupported` maps fields that the API has and this server lacks to the values that ask for nothing.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not cls.unsupported:
            return data
        for name, neutral in cls.unsupported.items():
            value = data.get(name)
            if value is not None and not any(value == other and type(value) is type(other) for other in neutral):
                raise PydanticCustomError("unsupported_parameter", "not supported yet by this server", {"at": name})
        return {name: value for name, value in data.items() if name not in cls.unsupported}


def _layers(value: Any) -> Any:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list) and all(type(layer) is int for layer in value):
        return value
    raise PydanticCustomError("invalid_layers", "give a list of block numbers, or a text such as '12-16,20'")


def _stops(value: Any) -> Any:
    stops = [value] if isinstance(value, str) else value
    if stops is None:
        return []
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise PydanticCustomError("invalid_type", "give a string or a list of strings")
    if len(stops) > MAX_STOPS:
        raise PydanticCustomError("invalid_value", "at most {most} stop strings", {"most": MAX_STOPS})
    if not all(0 < len(stop) <= MAX_STOP_LENGTH for stop in stops):
        raise PydanticCustomError(
            "invalid_value", "a stop string has 1 to {most} characters", {"most": MAX_STOP_LENGTH}
        )
    return stops


def _logit_bias(value: Any) -> Any:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise PydanticCustomError("invalid_type", "give an object of token ids and numbers")
    if len(value) > MAX_TOKEN_IDS:
        raise PydanticCustomError("invalid_value", "at most {most} tokens", {"most": MAX_TOKEN_IDS})
    biases: dict[int, float] = {}
    for token, bias in value.items():
        if not (isinstance(token, str) and token.isascii() and token.isdigit() and len(token) <= 9):
            raise PydanticCustomError(
                "invalid_value", "{token} is no token id", {"token": repr(token)[:40], "at": str(token)[:40]}
            )
        if isinstance(bias, bool) or not isinstance(bias, int | float) or not -100 <= bias <= 100:
            raise PydanticCustomError(
                "invalid_value", "the bias of token {token} is not in -100 to 100", {"token": token, "at": token}
            )
        biases[int(token)] = float(bias)
    return biases


def _prompts(value: Any) -> Any:
    """A string, token ids, or a list of either -> a list of strings and lists of token ids."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise PydanticCustomError("invalid_type", "give a string, a list of token ids, or a list of such prompts")
    if all(type(token) is int for token in value):
        return [value]
    if len(value) > MAX_PROMPTS:
        raise PydanticCustomError("invalid_value", "at most {most} prompts", {"most": MAX_PROMPTS})
    for index, prompt in enumerate(value):
        is_tokens = isinstance(prompt, list) and len(prompt) > 0 and all(type(token) is int for token in prompt)
        if not isinstance(prompt, str) and not is_tokens:
            raise PydanticCustomError(
                "invalid_type",
                "prompt {index} is neither a string nor a list of token ids",
                {"index": index, "at": index},
            )
    return value


class SteeringEntry(WireModel):
    """One entry of `steering`."""

    vector: str
    scale: float | None = None
    layers: Annotated[list[int] | str | None, BeforeValidator(_layers)] = None
    positions: Positions | None = None
    parts: Annotated[list[Part], Field(min_length=1, max_length=len(PARTS))] | None = None
    operation: Operation | None = None
    preserve_norm: bool = False


class StreamOptions(WireModel):
    """What a stream tells besides text."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {"include_obfuscation": (False,)}

    include_usage: bool = False


class GenerationFields(WireModel):
    """What chat and completion requests have in common."""

    model: Annotated[str, Field(max_length=MAX_MODEL_NAME_LENGTH)] | None = None
    steering: Annotated[list[SteeringEntry], Field(max_length=MAX_STEERING_ENTRIES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stop: Annotated[list[str], BeforeValidator(_stops)] = Field(default_factory=list)
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    logit_bias: Annotated[dict[int, float], BeforeValidator(_logit_bias)] = Field(default_factory=dict)
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    ignore_eos: bool | None = None
    stop_token_ids: Annotated[list[int], Field(fail_fast=True, max_length=MAX_TOKEN_IDS)] | None = None
    return_token_ids: bool | None = None
    user: str | None = None

    @model_validator(mode="after")
    def _check_stream_options(self) -> GenerationFields:
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest("stream_options: only with stream: true", code="invalid_value", param="stream_options")
        return self

    @property
    def num_choices(self) -> int:
        """How many answers each prompt gets."""
        return self.n if self.n is not None else 1

    @property
    def includes_usage(self) -> bool:
        """True when a stream ends with a usage chunk."""
        return self.stream_options is not None and self.stream_options.include_usage


def _content(value: Any) -> Any:
    """Text, or a list of text parts, which become the lines of one text."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise PydanticCustomError("invalid_type", "give a string or a list of content parts")
    texts = []
    for index, part in enumerate(value):
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(kind, str):
            raise PydanticCustomError(
                "invalid_type", "part {index} is no content part with a type", {"index": index, "at": index}
            )
        if kind != "text":
            raise PydanticCustomError(
                "unsupported_parameter",
                "part {index}: {kind} is not supported by this server, only text",
                {"index": index, "at": index, "kind": repr(kind)[:40]},
            )
        if not isinstance(part.get("text"), str) or set(part) != {"type", "text"}:
            raise PydanticCustomError(
                "invalid_value",
                "part {index}: a text part has type and text, nothing else",
                {"index": index, "at": index},
            )
        texts.append(part["text"])
    return "\n".join(texts)


class ChatMessage(WireModel):
    """One message of a chat. `name` goes to the chat template."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {
        "tool_calls": ([],),
        "tool_call_id": (),
        "function_call": (),
        "audio": (),
        "refusal": (),
        "annotations": ([],),
    }

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_content)]
    name: str | None = None

    def for_template(self) -> dict[str, str]:
        """The message as chat templates know it: they have no `developer`, which is the newer word for `system`."""
        message = {"role": "system" if self.role == "developer" else self.role, "content": self.content}
        return message if self.name is None else message | {"name": self.name}


class ChatRequest(GenerationFields):
    """Body of `POST /v1/chat/completions`."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {
        "tools": ([],),
        "tool_choice": ("none",),
        "functions": ([],),
        "function_call": ("none",),
        "response_format": ({"type": "text"},),
        "reasoning_effort": (),
        "verbosity": (),
        "audio": (),
        "modalities": (["text"],),
        "moderation": (),
        "prediction": (),
        "web_search_options": (),
        "store": (False,),
        "service_tier": ("auto", "default"),
    }

    messages: Annotated[list[ChatMessage], Field(fail_fast=True, min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    metadata: dict[str, str] | None = None
    parallel_tool_calls: bool | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: str | None = None
    safety_identifier: str | None = None

    @model_validator(mode="after")
    def _check_pairs(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequest("top_logprobs: only with logprobs: true", code="invalid_value", param="top_logprobs")
        both = (self.max_tokens, self.max_completion_tokens)
        if None not in both and self.max_tokens != self.max_completion_tokens:
            raise InvalidRequest(
                "max_tokens and max_completion_tokens differ; give one", code="invalid_value", param="max_tokens"
            )
        return self

    @property
    def asked_tokens(self) -> int | None:
        """The most tokens to generate, if the request says."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def num_logprobs(self) -> int | None:
        """How many likeliest tokens to tell at each place; None: no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(GenerationFields):
    """Body of `POST /v1/completions`."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {"suffix": ()}

    prompt: Annotated[list[str | list[int]], BeforeValidator(_prompts)]
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None

    @model_validator(mode="after")
    def _check_best_of(self) -> CompletionRequest:
        if self.best_of is not None and self.best_of != self.num_choices:
            raise InvalidRequest(
                "best_of: choosing the best of several answers is not supported; leave it out or set it to n",
                code="unsupported_parameter",
                param="best_of",
            )
        return self


class CreateVectorRequest(WireModel):
    """Body of `POST /v1/steering/vectors`."""

    name: str
    directions: dict[str, Any]
    site: str | None = None
    default_scale: float | None = None
    operation: str | None = None
    positions: str | None = None
    parts: list[str] | None = None
    description: str | None = None
    metadata: dict[str, Any] | None = None


class PatchVectorRequest(WireModel):
    """Body of `PATCH /v1/steering/vectors/{name}`: what is given changes, what is not given stays."""

    default_scale: float | None = None
    operation: str | None = None
    positions: str | None = None
    parts: list[str] | None = None
    description: str | None = None
    metadata: dict[str, Any] | None = None


class RollbackRequest(WireModel):
    """Body of `POST /v1/steering/vectors/{name}/rollback`."""

    revision: str
