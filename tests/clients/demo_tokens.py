"""Sampling parameters with which the embedded model, which never saw JSON, comes to an end when it must write some."""

from __future__ import annotations

import functools

from server.demo import MODEL_DIR
from server.text import load_text

_BIASES = {'"': 16, "}": 10, "-": -100}
"""Strings and objects are closed, and numbers are not negative."""


@functools.cache
def json_that_ends() -> dict[str, int]:
    """The `logit_bias` for that."""
    text = load_text(MODEL_DIR)
    biases = {}
    for symbol, bias in _BIASES.items():
        (token_id,) = text.encode(symbol, add_special_tokens=False)
        biases[str(token_id)] = bias
    return biases
