"""Constrained decoding as the engine sees it: a mask over the vocabulary of the tokens that may come next."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from server.engine.errors import WorkFailed


class GrammarState(Protocol):
    """Which tokens may come next in one sequence. Used only by the engine's thread."""

    @property
    def is_complete(self) -> bool:
        """True when only an end token may come."""
        ...

    def fill_mask(self, words: Tensor) -> None:
        """Set bit `t % 32` of word `t // 32` of `words` (int32, CPU, contiguous) for each token that may come.

        Raises `GrammarFailed`.
        """
        ...

    def accept(self, token_id: int) -> None:
        """Advance by one token. Raises `GrammarFailed`."""
        ...


class Grammar(Protocol):
    """What a response may look like, token by token; immutable, so all choices of a request share it."""

    def start(self) -> GrammarState:
        """The state before the first response token."""
        ...


class GrammarFailed(WorkFailed):
    """A grammar exceeded its limits, or received a token that it forbids."""


def allowed_tokens(state: GrammarState, vocab_size: int) -> Tensor:
    """Bool `[vocab_size]` (CPU): the tokens that may come next. Raises `GrammarFailed`."""
    words = new_mask(vocab_size)
    state.fill_mask(words)
    return unpack_mask(words, vocab_size)


def new_mask(vocab_size: int) -> Tensor:
    """A mask for `GrammarState.fill_mask`, with no bit set."""
    return torch.zeros(-(-vocab_size // 32), dtype=torch.int32)


def unpack_mask(words: Tensor, vocab_size: int) -> Tensor:
    """Bool `[vocab_size]`: the bits of a mask."""
    bits = np.unpackbits(words.numpy().view(np.uint8), count=vocab_size, bitorder="little")
    return torch.from_numpy(bits.view(np.bool_))
