"""Objects of `/tokenize` and `/detokenize`."""

from __future__ import annotations

from typing_extensions import TypedDict


class Tokens(TypedDict):
    """What the model reads; `token_strs`, with `return_token_strs`, are the vocabulary's spellings."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizedText(TypedDict):
    """The text of token ids."""

    prompt: str
