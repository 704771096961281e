"""A view of a model whose activations and answers are drawn from its prompts: training without a model."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from vectors.data import Message
from vectors.training.model_view import Continuations, Steering
from vectors.vocabulary import Site

_TOKENS = re.compile(r" [A-C]\b|.", re.DOTALL)


class HashProbe:
    """A model whose activations and answers are drawn from its prompts, and which directions do move."""

    model_id = "hash"
    num_layers = 3
    hidden_size = 4
    sites = ("residual", "mlp")
    max_length = 100_000
    has_chat_template = False

    def __init__(self) -> None:
        self.num_searched = 0

    def encode(self, text: str) -> tuple[int, ...]:
        return (1, *(200 + ord(token[1]) if len(token) > 1 else ord(token) for token in _TOKENS.findall(text)))

    def encode_chat(self, messages: Sequence[Message], reply: str = "") -> tuple[int, ...]:
        raise NotImplementedError

    def activations(
        self, prompts: Iterable[tuple[int, ...]], sites: Sequence[Site]
    ) -> Iterator[tuple[int, Mapping[Site, Tensor]]]:
        self.num_searched += 1
        for index, prompt in enumerate(prompts):
            yield index, {site: drawn(prompt, site, self.num_layers, self.hidden_size) for site in sites}

    def answers(
        self, prompts: Sequence[tuple[int, ...]], token_ids: Sequence[tuple[int, ...]], sites: Sequence[Site]
    ) -> Iterator[tuple[int, tuple[Tensor, Mapping[Site, Tensor]]]]:
        found = dict(self.activations(prompts, sites))
        self.num_searched -= 1  # a search also reads the texts that depend on the answers
        for index, logits in self.next_token_logits(prompts, token_ids, [()]):
            yield index, (logits[0], found[index])

    def next_token_logits(
        self,
        prompts: Sequence[tuple[int, ...]],
        token_ids: Sequence[tuple[int, ...]],
        steerings: Sequence[tuple[Steering, ...]],
    ) -> Iterator[tuple[int, Tensor]]:
        shifts = torch.zeros(len(steerings), 300)
        for shift, steering in zip(shifts, steerings, strict=True):
            for entry in steering:
                for layer, direction in entry.vector.directions.items():
                    shift += entry.scale * drawn((layer,), "head", 300, self.hidden_size) @ direction
        for index, (prompt, tokens) in enumerate(zip(prompts, token_ids, strict=True)):
            yield index, (drawn(prompt, "logits", 1, 300) + shifts)[:, list(tokens)]

    def continuation_logprobs(
        self, queries: Iterable[Continuations]
    ) -> Iterator[tuple[int, tuple[tuple[float, ...], ...]]]:
        raise NotImplementedError


@functools.lru_cache(maxsize=4096)
def drawn(prompt: tuple[int, ...], purpose: str, *shape: int) -> Tensor:
    seed = int.from_bytes(hashlib.sha256(f"{prompt} {purpose}".encode()).digest()[:6], "big")
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class TextProbe(HashProbe):
    """Also scores texts, which training asks for at its end."""

    def continuation_logprobs(
        self, queries: Iterable[Continuations]
    ) -> Iterator[tuple[int, tuple[tuple[float, ...], ...]]]:
        for index, query in enumerate(queries):
            yield index, tuple(tuple(-1.0 for _ in choice) for choice in query.choices)
