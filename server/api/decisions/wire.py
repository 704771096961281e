"""Wire models of `POST /v1/decisions`, as the official SDK types them."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from server.api.decisions.input import (
    CustomToolCall,
    DecisionInput,
    FunctionCall,
    QuestionContent,
    ToolOutput,
    text_of,
)
from server.api.decisions.multiple_choice import Question
from server.api.generation.wire import CacheOptions, SteeredFields
from server.api.http.wire import WireModel
from server.errors import InvalidRequest
from vectors.data.items import Message

MAX_QUESTIONS = 400
MAX_OPTIONS = 255


class _AnyQuestion(WireModel):
    name: str | None = None
    instructions: QuestionContent

    @model_validator(mode="after")
    def _check_instructions(self) -> _AnyQuestion:
        if not text_of(self.instructions).strip():
            raise PydanticCustomError("invalid_value", "expected text, got only white space", {"at": "instructions"})
        return self


class Predicate(_AnyQuestion):
    """Asks how likely a statement about the input is."""

    type: Literal["predicate"]

    def question(self) -> Question:
        """The question as asked; the first option is yes."""
        return Question(f"Is this true? {text_of(self.instructions).strip()}", ("yes", "no"))


class ChoiceOption(WireModel):
    """An option to choose from."""

    value: str | bool
    description: str | None = None


class Choice(_AnyQuestion):
    """Asks which of the options applies; all of them must differ."""

    type: Literal["choice"]
    choices: Annotated[list[ChoiceOption], Field(fail_fast=True, min_length=2, max_length=MAX_OPTIONS)]

    @model_validator(mode="after")
    def _check_unique(self) -> Choice:
        seen = set()
        for index, option in enumerate(self.choices):
            key = (type(option.value), option.value)
            if key in seen:
                raise PydanticCustomError(
                    "invalid_value", "the option is given more than once", {"at": f"choices.{index}.value"}
                )
            seen.add(key)
        return self

    def question(self) -> Question:
        """The question as asked; if there are booleans, texts are quoted."""
        is_quoted = any(isinstance(option.value, bool) for option in self.choices)
        shown = [
            option.value if isinstance(option.value, str) and not is_quoted else json.dumps(option.value)
            for option in self.choices
        ]
        options = (_described(text, option.description) for text, option in zip(shown, self.choices, strict=True))
        return Question(text_of(self.instructions).strip(), tuple(options))


class ScoreLevel(WireModel):
    """A level of a scale."""

    label: str
    description: str | None = None


class Score(_AnyQuestion):
    """Asks which of the levels applies, which are ordered from the lowest."""

    type: Literal["score"]
    levels: Annotated[list[ScoreLevel], Field(fail_fast=True, min_length=2, max_length=MAX_OPTIONS)]

    def question(self) -> Question:
        """The question as asked."""
        options = (_described(level.label, level.description) for level in self.levels)
        return Question(text_of(self.instructions).strip(), tuple(options))


def _described(text: str, description: str | None) -> str:
    return text if description is None else f"{text} ({description})"


AskedQuestion = Annotated[Predicate | Choice | Score, Field(discriminator="type")]


class DecisionRequest(SteeredFields):
    """Body of `POST /v1/decisions`."""

    input: DecisionInput
    """A text, or messages with tool calls and outputs."""
    questions: Annotated[list[AskedQuestion], Field(fail_fast=True, min_length=1, max_length=MAX_QUESTIONS)]
    """The questions about the input, each asked by itself."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Variables for the model's chat template."""
    prompt_cache_key: str | None = None
    """Accepted without effect: every prefix is cached."""
    prompt_cache_options: CacheOptions | None = None
    """Accepted without effect."""
    safety_identifier: str | None = None
    """Accepted without effect."""

    @model_validator(mode="after")
    def _check_calls(self) -> DecisionRequest:
        calls: dict[str, str] = {}
        for index, item in enumerate(() if isinstance(self.input, str) else self.input):
            if isinstance(item, FunctionCall | CustomToolCall):
                calls[item.call_id] = item.type
            elif isinstance(item, ToolOutput) and calls.get(item.call_id) != item.call_type:
                raise InvalidRequest(
                    f"input.{index}.call_id: expected the id of an earlier {item.call_type}, got {item.call_id[:80]!r}",
                    code="invalid_value",
                    param=f"input.{index}.call_id",
                )
        return self

    def turns(self) -> list[Message]:
        """The input as the turns of a chat."""
        return [Message("user", self.input)] if isinstance(self.input, str) else [item.turn() for item in self.input]
