"""What the SDK's types say about chats, checked to the letter."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from openai import BaseModel
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionMessage
from openai.types.chat.chat_completion import Choice
from openai.types.chat.chat_completion_chunk import Choice as ChunkChoice
from openai.types.chat.chat_completion_chunk import ChoiceDelta

OURS: dict[type[BaseModel], set[str]] = {
    ChatCompletion: {"steering", "prompt_token_ids"},
    ChatCompletionChunk: {"steering", "prompt_token_ids"},
    Choice: {"token_ids"},
    ChunkChoice: {"token_ids"},
    ChatCompletionMessage: {"reasoning_content"},
    ChoiceDelta: {"reasoning_content"},
}
"""What our answers have beyond the SDK's types."""


def exactly(kind: type[BaseModel], payload: dict[str, Any]) -> Any:
    """`payload` as a type of the SDK: every type strictly, and nothing that the type does not know but `OURS`."""
    model = kind.model_validate(payload, strict=True)
    for part in models_within(model):
        extra = set(part.model_extra or {})
        assert extra <= OURS.get(type(part), set()), (type(part), extra)
    return model


def models_within(value: Any) -> Iterable[BaseModel]:
    """A model and every model in its fields."""
    if isinstance(value, BaseModel):
        yield value
        value = [getattr(value, name) for name in type(value).model_fields]
    if isinstance(value, list):
        for item in value:
            yield from models_within(item)
