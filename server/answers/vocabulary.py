"""Reads a tokenizer's vocabulary for llguidance, with control tokens renamed so that no text can spell them.

llguidance's own reader turns forced text that spells a control token into that token, which the grammar then refuses.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from llguidance import LLTokenizer
from transformers import PreTrainedTokenizerFast

_UNWRITTEN = "\x01"
"""A character that occurs neither in JSON nor in any model's markers."""


def read_vocabulary(tokenizer: PreTrainedTokenizerFast, vocab_size: int, end_token_ids: Collection[int]) -> LLTokenizer:
    """The vocabulary of a model with `vocab_size` tokens. Raises `ValueError` when it cannot be read."""
    data = json.loads(tokenizer.backend_tokenizer.to_str())
    data |= {"padding": None, "truncation": None}
    names = {token["content"]: _UNWRITTEN + token["content"] for token in data["added_tokens"] if token["special"]}
    for token in data["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    _rename(data["model"], names)
    return LLTokenizer(json.dumps(data), n_vocab=vocab_size, eos_token=sorted(end_token_ids))


def _rename(model: dict[str, Any], names: dict[str, str]) -> None:
    """Rename tokens of a tokenizer's model, in place."""
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(name, name): token_id for name, token_id in vocabulary.items()}
    else:
        model["vocab"] = [[names.get(name, name), score] for name, score in vocabulary]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
