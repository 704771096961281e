"""Wire models of what clients send. Unknown fields fail by name, and so do known ones that are not supported yet.

A field that cannot change the answer (`user`, `metadata`, …) is accepted. It does not know defaults that depend on
the model, nor what becomes of a request.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    WithJsonSchema,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

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

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)
    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {}

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """The schema, with the unsupported fields and what may be said of them."""
        shown = handler(schema)
        properties = handler.resolve_ref_schema(shown).setdefault("properties", {})
        for name, neutral in cls.unsupported.items():
            properties[name] = {
                "description": "Not supported by this server: only what asks for nothing is accepted.",
                "enum": [None, *neutral],
            }
        return shown

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


UNIQUE: dict[str, Any] = {"uniqueItems": True}
"""Of a list: nothing is there twice."""

_Layers = (
    Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, json_schema_extra=UNIQUE)]
    | Annotated[str, Field(pattern=r"^\s*\d+(-\d+)?\s*(,\s*\d+(-\d+)?\s*)*$")]
    | None
)


def _layers(value: Any) -> Any:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list) and all(type(layer) is int for layer in value):
        return value
    raise PydanticCustomError("invalid_layers", "give a list of block numbers, or a text such as '12-16,20'")


_Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_LENGTH)]
_Stops = _Stop | Annotated[list[_Stop], Field(max_length=MAX_STOPS)] | None


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


_LOGIT_BIAS_SCHEMA = {
    "anyOf": [
        {
            "type": "object",
            "propertyNames": {"pattern": "^[0-9]{1,9}$"},
            "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
            "maxProperties": MAX_TOKEN_IDS,
        },
        {"type": "null"},
    ]
}


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


_TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
_Prompt = Annotated[str, Field(min_length=1)] | _TokenIds
_Prompts = _Prompt | Annotated[list[_Prompt], Field(min_length=1, max_length=MAX_PROMPTS)]


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
    """A name in the registry, or `name@revision` (at least 6 characters of the revision)."""
    scale: float | None = None
    """Multiplier on the stored direction; 0 is exactly unsteered. Default: the vector's own."""
    layers: Annotated[list[int] | str | None, BeforeValidator(_layers, json_schema_input_type=_Layers)] = None
    """Decoder blocks from 0, as a list or as text such as `12-16,20`. Default: the vector's own."""
    positions: Positions | None = None
    """Which tokens are steered. Default: the vector's own."""
    parts: Annotated[list[Part], Field(min_length=1, max_length=len(PARTS), json_schema_extra=UNIQUE)] | None = None
    """Which parts of the answer are steered. Default: the vector's own."""
    operation: Operation | None = None
    """What is done along the direction. Default: the vector's own."""
    preserve_norm: bool = False
    """Whether the steered activation gets its former length back."""


class StreamOptions(WireModel):
    """What a stream tells besides text."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {"include_obfuscation": (False,)}

    include_usage: bool = False


class CacheOptions(WireModel):
    """How prompts are cached, which this server does by itself: what it cannot promise is refused."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {
        "comparison_response_id": (),
        "mode": ("implicit",),
        "prewarm": (False,),
        "ttl": (),
    }


class SteeredFields(WireModel):
    """The model that a request names, and what steers it."""

    model: Annotated[str, Field(max_length=MAX_MODEL_NAME_LENGTH)] | None = None
    """The served model, also as `<model>+<vector>[@revision][:scale]…`. Default: the one that is served."""
    steering: Annotated[list[SteeringEntry], Field(max_length=MAX_STEERING_ENTRIES)] | None = None
    """The vectors that steer the answer; they add up."""


class GenerationFields(SteeredFields):
    """What chat and completion requests have in common."""

    stream: bool | None = None
    """Whether the answer comes as server-sent events."""
    stream_options: StreamOptions | None = None
    """Only with `stream`."""
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    """How many answers to give."""
    stop: Annotated[list[str], BeforeValidator(_stops, json_schema_input_type=_Stops)] = Field(default_factory=list)
    """Texts that end the answer, which does not show them."""
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    """The same seed gives the same answer again."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """0 takes the likeliest token."""
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    """Only the likeliest tokens that together have this probability are drawn from."""
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    """Only so many of the likeliest tokens are drawn from; 0 and -1: all."""
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    """Only tokens with at least this share of the likeliest token's probability are drawn from."""
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    """Taken from a token's logit for every time that it was generated."""
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    """Taken from the logit of every token that was generated."""
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    """Divides the logits of tokens in the prompt and the answer; 1 changes nothing."""
    logit_bias: Annotated[dict[int, float], BeforeValidator(_logit_bias), WithJsonSchema(_LOGIT_BIAS_SCHEMA)] = Field(
        default_factory=dict
    )
    """By token id, what is added to the token's logit."""
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    """How many tokens come before the answer may end."""
    ignore_eos: bool | None = None
    """Whether the answer goes on after the model's end token."""
    stop_token_ids: Annotated[list[int], Field(fail_fast=True, max_length=MAX_TOKEN_IDS)] | None = None
    """Tokens that end the answer."""
    return_token_ids: bool | None = None
    """Whether the answer has the token ids of prompts and answers."""
    user: str | None = None
    """Changes nothing."""

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
    def num_candidates(self) -> int:
        """How many answers each prompt is given, of which `num_choices` are told."""
        return self.num_choices

    @property
    def includes_usage(self) -> bool:
        """True when a stream ends with a usage chunk."""
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionRequest(GenerationFields):
    """Body of `POST /v1/completions`."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {"suffix": ()}

    prompt: Annotated[list[str | list[int]], BeforeValidator(_prompts, json_schema_input_type=_Prompts)]
    """Text, token ids, or a list of either."""
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    """The most tokens to generate; 0 generates nothing. Default: 16."""
    echo: bool | None = None
    """Whether the answer begins with the prompt."""
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    """How many of the likeliest tokens to tell at each place."""
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    """How many answers to generate, of which the `n` likeliest are given. Not with `stream`."""

    @model_validator(mode="after")
    def _check_best_of(self) -> CompletionRequest:
        if self.num_candidates < self.num_choices:
            raise InvalidRequest(
                f"best_of: {self.best_of} answers are fewer than n ({self.num_choices})",
                code="invalid_value",
                param="best_of",
            )
        if self.stream and self.chooses_best:
            raise InvalidRequest(
                "best_of: a stream cannot wait for the best answers; set it to n or leave it out",
                code="invalid_value",
                param="best_of",
            )
        return self

    @property
    def num_candidates(self) -> int:
        """How many answers each prompt is given, of which the `num_choices` likeliest are told."""
        return self.num_choices if self.best_of is None else self.best_of

    @property
    def chooses_best(self) -> bool:
        """True when fewer answers are told than generated."""
        return self.num_candidates > self.num_choices
