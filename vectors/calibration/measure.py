"""What a steering does to a model's texts: how far it moves the next token, and whether what it writes is fluent."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from vectors.calibration.view import CalibratedModel
from vectors.errors import ModelOverflowed
from vectors.training.model_view import Continuations, Steering

NUM_MOVED = 20
"""Greedy tokens after each prompt whose distributions are compared."""

NUM_WRITTEN = 48
"""The most tokens of a text whose fluency is judged."""

PERCENTILE = 0.95


@dataclass(frozen=True, slots=True)
class Fluency:
    """Of what a steering writes: the perplexity under the unsteered model, and the share of distinct pairs of tokens.

    The share is that of different pairs of neighbouring tokens among all pairs of a text (distinct-2, Li et al. 2016,
    arXiv:1510.03055), pooled over the texts.
    """

    perplexity: float
    distinct: float


class Reference:
    """What the unsteered model writes after `prompts`, and what a steering is compared with.

    The tokens compared are those that the unsteered model writes, so that they are the same for every scale. Raises
    what `view` raises.
    """

    def __init__(self, view: CalibratedModel, prompts: Sequence[tuple[int, ...]]) -> None:
        self._view = view
        self.prompts = tuple(prompts)
        self.texts = _in_order(view.greedy(self.prompts, NUM_WRITTEN, ()), len(self.prompts))
        self._moved = [
            (prompt, text[:NUM_MOVED]) for prompt, text in zip(self.prompts, self.texts, strict=True) if text
        ]
        self._rows = dict(view.distributions(self._moved, ()))
        self.fluency = self._fluency_of(self.texts)

    def divergence(self, steering: tuple[Steering, ...]) -> float:
        """The 95th percentile, in nats, of KL(steered ‖ unsteered) over all tokens compared; inf if it overflows."""
        try:
            rows = self._view.distributions(self._moved, steering)
            found = [divergences(own, self._rows[index]) for index, own in rows]
        except ModelOverflowed:
            return math.inf
        return float(torch.cat(found).quantile(PERCENTILE))

    def written(self, steering: tuple[Steering, ...]) -> tuple[tuple[int, ...], ...] | None:
        """What the steered model writes, greedily; None if it overflows."""
        try:
            return _in_order(self._view.greedy(self.prompts, NUM_WRITTEN, steering), len(self.prompts))
        except ModelOverflowed:
            return None

    def fluency_under(self, steering: tuple[Steering, ...]) -> Fluency | None:
        """The fluency of what the steered model writes; None if it overflows."""
        texts = self.written(steering)
        return None if texts is None else self._fluency_of(texts)

    def _fluency_of(self, texts: Sequence[tuple[int, ...]]) -> Fluency:
        asked = [Continuations(prompt, (text,)) for prompt, text in zip(self.prompts, texts, strict=True) if text]
        logprobs = [value for _, (one,) in self._view.continuation_logprobs(asked) for value in one]
        mean = sum(logprobs) / len(logprobs) if logprobs else -math.inf
        return Fluency(math.exp(min(-mean, 700.0)), distinct_pairs(texts))


def divergences(steered: Tensor, unsteered: Tensor) -> Tensor:
    """KL(steered ‖ unsteered) in nats of each row of log-probabilities `[tokens, vocabulary]`: float64 `[tokens]`."""
    steered, unsteered = steered.double(), unsteered.double()
    terms = steered.exp() * (steered - unsteered)
    return terms.where(steered > -math.inf, 0.0).sum(-1).clamp_min(0.0)


def distinct_pairs(texts: Sequence[tuple[int, ...]]) -> float:
    """The share of different pairs of neighbouring tokens; 1 where no text has a pair."""
    pairs = [list(pairwise(text)) for text in texts]
    total = sum(map(len, pairs))
    return sum(len(set(one)) for one in pairs) / total if total else 1.0


def _in_order(found: Iterable[tuple[int, tuple[int, ...]]], count: int) -> tuple[tuple[int, ...], ...]:
    by_index = dict(found)
    return tuple(by_index[index] for index in range(count))
