"""Wire models of what requests that generate have in common: the model, the steering, the sampling.

A field that cannot change the answer (`user`, `metadata`, …) is accepted.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    Field,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from server.api.http.wire import UNIQUE, WireModel
from server.errors import InvalidRequest
from vectors.vocabulary import LAYERS_PATTERN, MAX_LAYER, NAME_PATTERN, PARTS, Operation, Part, Positions

MAX_CHOICES = 128
MAX_STOPS = 16
MAX_STOP_LENGTH = 1024
MAX_STEERING_ENTRIES = 64
MAX_MODEL_NAME_LENGTH = 4096
MAX_TOKEN_IDS = 4096
MAX_TOP_LOGPROBS = 20


_Layers = (
    Annotated[list[Annotated[int, Field(ge=0, le=MAX_LAYER)]], Field(min_length=1, json_schema_extra=UNIQUE)]
    | Annotated[str, Field(pattern=f"^{LAYERS_PATTERN}$")]
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


VECTOR_NAME_SCHEMA: dict[str, Any] = {"type": "string", "pattern": f"^{NAME_PATTERN}$"}
"""The name of a vector."""


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


ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
"""How long a model thinks before it answers."""


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
