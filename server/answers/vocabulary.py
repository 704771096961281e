"""Reads a tokenizer's vocabulary for llguidance, so that text is text and delimiters are tokens.

llguidance's own reader turns forced text that spells an added token into that token, and takes every added token in
angle brackets for a control token, which a grammar's text then refuses.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from transformers import PreTrainedTokenizerFast

from server.answers.matching import Vocabulary
from server.detokenizer import byte_symbols

_UNWRITTEN = "\x01"
"""A character that occurs neither in JSON nor in any model's markers."""


def read_vocabulary(
    tokenizer: PreTrainedTokenizerFast,
    vocab_size: int,
    end_token_ids: Collection[int],
    marker_ids: Collection[int] = (),
) -> Vocabulary:
    """The vocabulary of a model with `vocab_size` tokens.

    No text spells a control token, nor one of `marker_ids`: a grammar names them by id. Every other token is its text.
    Tokens that only the tokenizer has are kept, because a grammar may name them.
    """
    data = json.loads(tokenizer.backend_tokenizer.to_str())
    data |= {"padding": None, "truncation": None}
    controls, names, spellings = [], {}, {}
    is_spelled = isinstance(data["model"]["vocab"], dict)
    is_byte_level = "ByteLevel" in json.dumps(data.get("decoder"))
    for token in data["added_tokens"]:
        name = token["content"]
        if token["special"] or token["id"] in marker_ids or (name.startswith("<") and not is_spelled):
            names[name] = _UNWRITTEN + name
            controls.append(token | {"content": names[name], "special": True})
        elif is_spelled:
            spellings[byte_symbols(name) if is_byte_level else name.replace(" ", "\u2581")] = token["id"]
        else:
            controls.append(token)
    data["added_tokens"] = controls
    _rename(data["model"], names)
    if is_spelled:
        _spell(data["model"]["vocab"], spellings)
    return Vocabulary(json.dumps(data), _size_with(tokenizer, vocab_size), tuple(sorted(end_token_ids)), vocab_size)


def _size_with(tokenizer: PreTrainedTokenizerFast, vocab_size: int) -> int:
    """The number of ids that the model or the tokenizer has."""
    return max(vocab_size, 1 + max(tokenizer.get_vocab().values(), default=0))


def _spell(vocabulary: dict[str, int], spellings: dict[str, int]) -> None:
    """Make added tokens ordinary ones, in place. A token that the vocabulary already has stays as it is."""
    ids = set(vocabulary.values())
    for name, token_id in spellings.items():
        if token_id not in ids:
            vocabulary[name if name not in vocabulary else _UNWRITTEN + name] = token_id


def _rename(model: dict[str, Any], names: dict[str, str]) -> None:
    """Rename tokens of a tokenizer's model, in place."""
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(name, name): token_id for name, token_id in vocabulary.items()}
    else:
        model["vocab"] = [[names.get(name, name), score] for name, score in vocabulary]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
