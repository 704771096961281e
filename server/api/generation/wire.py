"""Wire models that requests share: the model, the steering, the sampling.

Fields that cannot change the answer (`user`, `metadata`, …) are accepted.
"""

from __future__ import annotations

import re
import sys
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    Field,
    PlainValidator,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from server.api.http.wire import UNIQUE, WireModel
from server.errors import InvalidRequest
from server.steering.inline import PLACE_PATTERN
from vectors.errors import InvalidPositions
from vectors.positions import POSITIONS_SCHEMA, Positions, checked_positions
from vectors.vocabulary import LAYERS_PATTERN, MAX_LAYER, NAME_PATTERN, PARTS, Latch, Operation, Part

MAX_CHOICES = 128
MAX_STOPS = 16
MAX_STOP_LENGTH = 1024
MAX_STEERING_ENTRIES = 64
MAX_MODEL_NAME_LENGTH = 4096
MAX_TOKEN_IDS = 4096
MAX_TOP_LOGPROBS = 20

SHARE_PATTERN = r"[+-]?\d{1,4}(\.\d{1,6})?%"
"""A scale as a share of the safe range."""

_LARGEST = sys.float_info.max


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
    raise PydanticCustomError("invalid_layers", "expected a list of block numbers, or text such as '12-16,20'")


_Scale = float | Annotated[str, Field(pattern=f"^{SHARE_PATTERN}$")] | None


def _scale(value: Any) -> Any:
    if value is None or (isinstance(value, str) and re.fullmatch(SHARE_PATTERN, value)):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and -_LARGEST <= value <= _LARGEST:
        return float(value)
    code = "invalid_value" if isinstance(value, str | float) else "invalid_type"
    raise PydanticCustomError(code, "expected a finite number, or a share of the safe range such as '50%'")


def _positions(value: Any) -> Positions | None:
    try:
        return None if value is None else checked_positions(value)
    except InvalidPositions as error:
        raise PydanticCustomError("invalid_positions", "{reason}", {"reason": str(error)}) from None


_Positions = Annotated[
    Any, PlainValidator(_positions), WithJsonSchema({"anyOf": [*POSITIONS_SCHEMA["anyOf"], {"type": "null"}]})
]

_Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_LENGTH)]
_Stops = _Stop | Annotated[list[_Stop], Field(max_length=MAX_STOPS)] | None


def _stops(value: Any) -> Any:
    stops = [value] if isinstance(value, str) else value
    if stops is None:
        return []
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise PydanticCustomError("invalid_type", "expected a string or a list of strings")
    if len(stops) > MAX_STOPS:
        raise PydanticCustomError("invalid_value", "expected at most {most} stop strings", {"most": MAX_STOPS})
    if not all(0 < len(stop) <= MAX_STOP_LENGTH for stop in stops):
        raise PydanticCustomError(
            "invalid_value", "expected stop strings of 1 to {most} characters", {"most": MAX_STOP_LENGTH}
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
        raise PydanticCustomError("invalid_type", "expected an object from token ids to numbers")
    if len(value) > MAX_TOKEN_IDS:
        raise PydanticCustomError("invalid_value", "expected at most {most} tokens", {"most": MAX_TOKEN_IDS})
    biases: dict[int, float] = {}
    for token, bias in value.items():
        if not (isinstance(token, str) and token.isascii() and token.isdigit() and len(token) <= 9):
            raise PydanticCustomError(
                "invalid_value", "expected a token id, got {token}", {"token": repr(token)[:40], "at": str(token)[:40]}
            )
        if isinstance(bias, bool) or not isinstance(bias, int | float) or not -100 <= bias <= 100:
            raise PydanticCustomError(
                "invalid_value", "expected a bias from -100 to 100 for token {token}", {"token": token, "at": token}
            )
        biases[int(token)] = float(bias)
    return biases


_Directions = Annotated[
    dict[str, str] | None,
    WithJsonSchema(
        {
            "anyOf": [
                {
                    "type": "object",
                    "propertyNames": {"pattern": f"^{PLACE_PATTERN}$"},
                    "additionalProperties": {"type": "string", "contentEncoding": "base64"},
                    "minProperties": 1,
                },
                {"type": "null"},
            ]
        }
    ),
]


def _check_one_vector(entry: SteeringEntry | ProbeEntry) -> None:
    if entry.vector is None and entry.directions is None:
        raise PydanticCustomError("missing_required_parameter", "missing required parameter", {"at": "vector"})
    if entry.vector is not None and entry.directions is not None:
        raise PydanticCustomError("invalid_value", "expected vector or directions, got both", {"at": "directions"})


VECTOR_NAME_SCHEMA: dict[str, Any] = {"type": "string", "pattern": f"^{NAME_PATTERN}$"}
"""The name of a vector."""


class GateEntry(WireModel):
    """`when` of an entry: on which tokens it acts."""

    probe: str
    """The vector that is read: a name in the registry, or `name@revision`."""
    layer: Annotated[int, Field(ge=0, le=MAX_LAYER)] | None = None
    """The decoder block where it is read, not after the entry's. Default: the vector's own, if it has only one."""
    above: float | None = None
    """The entry acts where the score is above this, in the probe's own unit."""
    below: float | None = None
    """The entry acts where the score is below this. Either `above` or `below` is required."""
    sharpness: Annotated[float, Field(gt=0)] | None = None
    """With k: the entry acts at the strength sigmoid(k · distance from the threshold), not wholly or not at all."""
    latch: Latch = "token"
    """`token`: each token is judged alone. `rest`: the gate stays open to the end once it has opened."""

    @model_validator(mode="after")
    def _check_threshold(self) -> GateEntry:
        if (self.above is None) == (self.below is None):
            raise PydanticCustomError("invalid_value", "expected either above or below", {"at": "above"})
        return self


class SteeringEntry(WireModel):
    """An entry of `steering`: one vector and how to apply it."""

    vector: str | None = None
    """A name in the registry, or `name@revision` with at least the first 6 characters of the revision."""
    directions: _Directions = None
    """Instead of `vector`: directions by place, such as `residual.4`, each as many numbers as the model's hidden size,
    as base64 of little-endian float32."""
    scale: Annotated[float | str | None, BeforeValidator(_scale, json_schema_input_type=_Scale)] = None
    """Multiplier of the stored direction; 0 is exactly unsteered. As text such as `50%`, a share of the vector's safe
    range. Default: the vector's own."""
    layers: Annotated[list[int] | str | None, BeforeValidator(_layers, json_schema_input_type=_Layers)] = None
    """Decoder blocks from 0, as a list or as text such as `12-16,20`. Default: the vector's own."""
    positions: _Positions = None
    """Which tokens are steered. Default: the vector's own."""
    parts: Annotated[list[Part], Field(min_length=1, max_length=len(PARTS), json_schema_extra=UNIQUE)] | None = None
    """Which parts of the answer are steered. Default: the vector's own."""
    operation: Operation | None = None
    """The operation along the direction. Default: the vector's own."""
    preserve_norm: bool = False
    """Whether to rescale the steered activation to its original norm."""
    min: float | None = None
    """For `cap`: the least that is left of what the vector reads, in its own unit. Default: the vector's own."""
    max: float | None = None
    """For `cap`: the most that is left of it. If only one of both is given, the other end is open."""
    when: GateEntry | None = None
    """On which tokens it acts, by what a probe reads of them. Default: on all in its positions and parts."""

    @model_validator(mode="after")
    def _check_vector(self) -> SteeringEntry:
        _check_one_vector(self)
        return self


class ProbeEntry(WireModel):
    """An entry of `probes`: a vector that is read while the model writes, and changes nothing."""

    vector: str | None = None
    """A name in the registry, or `name@revision` with at least the first 6 characters of the revision."""
    directions: _Directions = None
    """Instead of `vector`: directions as in `steering`. They need a `name`."""
    layers: Annotated[list[int] | str | None, BeforeValidator(_layers, json_schema_input_type=_Layers)] = None
    """Decoder blocks from 0, as a list or as text such as `12-16,20`. Default: the vector's own."""
    positions: _Positions = None
    """Which tokens are read. Default: `response`."""
    before: bool = False
    """Whether to read the activation before the steering at that place, not after it."""
    threshold: float | None = None
    """The score above which a token counts as `above`. Default: the vector's own."""
    name: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    """The key of its scores. Default: the vector's name, with `.` and the layer if it is read at several."""

    @model_validator(mode="after")
    def _check_vector(self) -> ProbeEntry:
        _check_one_vector(self)
        if self.directions is not None and self.name is None:
            raise PydanticCustomError("missing_required_parameter", "missing required parameter", {"at": "name"})
        return self


ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
"""How much a model reasons before it answers."""


class StreamOptions(WireModel):
    """Options of a stream."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {"include_obfuscation": (False,)}

    include_usage: bool = False
    """Whether the stream ends with a chunk that has the usage."""
    continuous_usage_stats: bool = False
    """With `include_usage`: whether every chunk has the usage so far."""


class CacheOptions(WireModel):
    """Options of the prompt cache. This server always caches; options that it cannot guarantee are refused."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {
        "comparison_response_id": (),
        "mode": ("implicit",),
        "prewarm": (False,),
        "ttl": (),
    }


class SteeredFields(WireModel):
    """The model and the steering of a request."""

    model: Annotated[str, Field(max_length=MAX_MODEL_NAME_LENGTH)] | None = None
    """The served model, optionally with vectors: `<model>+<vector>[@revision][:scale]…`. Default: the served model."""
    steering: Annotated[list[SteeringEntry], Field(max_length=MAX_STEERING_ENTRIES)] | None = None
    """The vectors that steer the answer; their effects add up."""


class SteeringVariant(WireModel):
    """One of `variants`: the same request with other steering. What it leaves out is the request's own."""

    steering: Annotated[list[SteeringEntry], Field(max_length=MAX_STEERING_ENTRIES)] | None = None
    """The vectors that steer this variant's answers, in place of the request's; `[]`: none of these."""


class GenerationFields(SteeredFields):
    """The common fields of requests that generate."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {
        "allowed_token_ids": (),
        "bad_words": ([],),
        "cache_prompt": (True,),
        "cache_salt": (),
        "early_stopping": (False,),
        "guided_choice": (),
        "guided_decoding_backend": (),
        "guided_grammar": (),
        "guided_json": (),
        "guided_regex": (),
        "guided_whitespace_pattern": (),
        "include_stop_str_in_output": (False,),
        "kv_transfer_params": (),
        "length_penalty": (1, 1.0),
        "priority": (0,),
        "prompt_logprobs": (),
        "request_id": (),
        "return_tokens_as_token_ids": (False,),
        "skip_special_tokens": (True,),
        "spaces_between_special_tokens": (True, False),
        "structured_outputs": (),
        "truncate_prompt_tokens": (),
        "use_beam_search": (False,),
        "vllm_xargs": ({},),
    }
    instead: ClassVar[dict[str, str]] = {
        "enable_thinking": "chat_template_kwargs",
        "guided_choice": "response_format with an enum",
        "guided_json": "response_format",
        "request_id": "the header x-request-id",
        "structured_outputs": "response_format",
    }

    probes: Annotated[list[ProbeEntry], Field(max_length=MAX_STEERING_ENTRIES)] | None = None
    """Vectors that are read at every token, whose scores are returned with the answer."""
    stream: bool | None = None
    """Whether to send the answer as server-sent events."""
    stream_options: StreamOptions | None = None
    """Options of the stream; only with `stream`."""
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    """The number of answers."""
    stop: Annotated[list[str], BeforeValidator(_stops, json_schema_input_type=_Stops)] = Field(default_factory=list)
    """Texts that end the answer. They are not included in it."""
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    """The same seed gives the same answer."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """The sampling temperature; 0 always chooses the likeliest token."""
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    """Sample only from the likeliest tokens that together have this probability."""
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    """Sample only from this many of the likeliest tokens; 0 and -1: from all."""
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    """Sample only from tokens with at least this fraction of the likeliest token's probability."""
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    """Subtracted from a token's logit for each time that it was generated."""
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    """Subtracted from the logit of every token that was generated."""
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    """Penalizes tokens of the prompt and the answer by dividing their logits; 1 has no effect."""
    logit_bias: Annotated[dict[int, float], BeforeValidator(_logit_bias), WithJsonSchema(_LOGIT_BIAS_SCHEMA)] = Field(
        default_factory=dict
    )
    """Token ids, each with a number that is added to the token's logit."""
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    """The number of tokens before the answer may end."""
    ignore_eos: bool | None = None
    """Whether to continue after the model's end token."""
    stop_token_ids: Annotated[list[int], Field(fail_fast=True, max_length=MAX_TOKEN_IDS)] | None = None
    """Ids of tokens that end the answer."""
    return_token_ids: bool | None = None
    """Whether to return the token ids of prompts and answers."""
    user: str | None = None
    """Accepted without effect."""

    @model_validator(mode="after")
    def _check_stream_options(self) -> GenerationFields:
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest(
                "stream_options: only allowed with stream: true", code="invalid_value", param="stream_options"
            )
        return self

    @property
    def num_choices(self) -> int:
        """The number of answers to return per prompt."""
        return self.n if self.n is not None else 1

    @property
    def num_candidates(self) -> int:
        """The number of answers to generate per prompt, of which `num_choices` are returned."""
        return self.num_choices

    @property
    def includes_usage(self) -> bool:
        """True when a stream ends with a usage chunk."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def counts_usage(self) -> bool:
        """True when every chunk of a stream has the usage so far."""
        return self.includes_usage and self.stream_options is not None and self.stream_options.continuous_usage_stats
