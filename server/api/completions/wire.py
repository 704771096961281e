"""Wire model of `POST /v1/completions`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from server.api.generation.wire import MAX_CHOICES, MAX_TOP_LOGPROBS, GenerationFields, SteeringVariant
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
        raise PydanticCustomError("invalid_type", "expected a string, a list of token ids, or a list of such prompts")
    if all(type(token) is int for token in value):
        return [value]
    if len(value) > MAX_PROMPTS:
        raise PydanticCustomError("invalid_value", "expected at most {most} prompts", {"most": MAX_PROMPTS})
    for index, prompt in enumerate(value):
        is_tokens = isinstance(prompt, list) and len(prompt) > 0 and all(type(token) is int for token in prompt)
        if not isinstance(prompt, str) and not is_tokens:
            raise PydanticCustomError(
                "invalid_type",
                "expected a string or a list of token ids as prompt {index}",
                {"index": index, "at": index},
            )
    return value


class CompletionRequest(GenerationFields):
    """Body of `POST /v1/completions`."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {"suffix": ()}

    prompt: Annotated[list[str | list[int]], BeforeValidator(_prompts, json_schema_input_type=_Prompts)]
    """A text, a list of token ids, or a list of these."""
    variants: Annotated[list[SteeringVariant], Field(min_length=1, max_length=MAX_CHOICES)] | None = None
    """Continuations with other steering: for each prompt, `n` choices for each variant, in order."""
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    """The maximum number of tokens to generate; 0 generates none. Default: 16."""
    add_special_tokens: bool | None = None
    """Whether texts get the special tokens that the tokenizer adds, such as one for the beginning. Default: true."""
    echo: bool | None = None
    """Whether the answer starts with the prompt."""
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    """The number of likeliest tokens to return for each token."""
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    """The number of answers to generate, of which the `n` likeliest are returned. Not with `stream`."""

    @model_validator(mode="after")
    def _check_best_of(self) -> CompletionRequest:
        if self.num_candidates < self.num_choices:
            raise InvalidRequest(
                f"best_of: expected at least n ({self.num_choices}), got {self.best_of}",
                code="invalid_value",
                param="best_of",
            )
        if self.stream and self.chooses_best:
            raise InvalidRequest(
                "best_of: not supported with stream, unless it equals n",
                code="invalid_value",
                param="best_of",
            )
        return self

    @property
    def num_candidates(self) -> int:
        """The number of answers to generate per prompt, of which the `num_choices` likeliest are returned."""
        return self.num_choices if self.best_of is None else self.best_of

    @property
    def chooses_best(self) -> bool:
        """True when fewer answers are returned than generated."""
        return self.num_candidates > self.num_choices
