"""CalibratedModel: the protocol through which calibration uses a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from torch import Tensor

from vectors.training.model_view import ModelView, Steering
from vectors.vocabulary import Site


class CalibratedModel(ModelView, Protocol):
    """A model as used by calibration: it also continues texts, and gives whole distributions.

    `fingerprint` tells its weights from others ("": unknown); `dtype` is what it is computed in. The methods raise what
    those of `ModelView` raise, and `ModelOverflowed` for a steering under which the output is not finite.
    """

    @property
    def fingerprint(self) -> str: ...
    @property
    def dtype(self) -> str: ...

    def greedy(
        self, prompts: Sequence[tuple[int, ...]], max_tokens: int, steering: tuple[Steering, ...]
    ) -> Iterator[tuple[int, tuple[int, ...]]]:
        """The greedy continuation of each prompt, steered: at most `max_tokens`, with the end token if it ends."""
        ...

    def distributions(
        self, texts: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], steering: tuple[Steering, ...]
    ) -> Iterator[tuple[int, Tensor]]:
        """Log-probabilities, float32 `[continuation, vocabulary]`, at each token of each (prompt, continuation)."""
        ...

    def token_activations(
        self, texts: Sequence[tuple[int, ...]], site: Site, layers: tuple[int, ...]
    ) -> Iterator[tuple[int, Mapping[int, Tensor]]]:
        """Unsteered activations of every token at a site, by layer: float32 `[tokens, hidden]` (CPU)."""
        ...
