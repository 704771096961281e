"""Wire model of `POST /v1/completions`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from server.api.generation.wire import MAX_CHOICES, MAX_TOP_LOGPROBS, GenerationFields
from server.errors import InvalidRequest

MAX_PROMPTS = 2048

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
