"""ModelView: the protocol through which training uses a model. Any engine can implement it.

Training needs three things: the activations at a text's last token, the probabilities of certain next tokens under many
steerings of one prompt, and the probabilities of whole continuations. Texts are token ids.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from vectors.data.items import Message
from vectors.vector import SteeringVector
from vectors.vocabulary import Site


@dataclass(frozen=True, slots=True)
class Steering:
    """A vector at a scale, added at the vector's own layers and positions."""

    vector: SteeringVector
    scale: float


@dataclass(frozen=True, slots=True)
class Continuations:
    """A prompt, the token sequences that may follow it, and the steering under which they are scored (or None)."""

    prompt: tuple[int, ...]
    choices: tuple[tuple[int, ...], ...]
    steering: tuple[Steering, ...] = ()


class ModelView(Protocol):
    """A model as used by training. Iterators yield `(index of the input, result)` in any order, each index once.

    `max_length` counts tokens. Every iterator may raise `vectors.cancellation.Cancelled`, and `ModelFailed`.
    """

    @property
    def model_id(self) -> str: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def sites(self) -> tuple[str, ...]: ...
    @property
    def max_length(self) -> int: ...
    @property
    def has_chat_template(self) -> bool: ...

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of raw text, with the special tokens that the tokenizer adds at the beginning."""
        ...

    def encode_chat(self, messages: Sequence[Message], reply: str = "") -> tuple[int, ...]:
        """Token ids of a chat for the assistant to continue, with the beginning of its reply."""
        ...

    def activations(
        self, prompts: Iterable[tuple[int, ...]], sites: Sequence[Site]
    ) -> Iterator[tuple[int, Mapping[Site, Tensor]]]:
        """Unsteered activations at each prompt's last token: float32 `[layers, hidden]` (CPU) by site."""
        ...

    def answers(
        self, prompts: Sequence[tuple[int, ...]], token_ids: Sequence[tuple[int, ...]], sites: Sequence[Site]
    ) -> Iterator[tuple[int, tuple[Tensor, Mapping[Site, Tensor]]]]:
        """What `next_token_logits` gives unsteered, float32 `[tokens]`, with what `activations` gives, in one pass."""
        ...

    def next_token_logits(
        self,
        prompts: Sequence[tuple[int, ...]],
        token_ids: Sequence[tuple[int, ...]],
        steerings: Sequence[tuple[Steering, ...]],
    ) -> Iterator[tuple[int, Tensor]]:
        """Logits, float32 `[steerings, tokens]`, of `token_ids[i]` after `prompts[i]` under each steering.

        They are log-probabilities up to a constant for each steering, which is enough to compare the tokens. A row
        with a NaN is of a steering under which the model overflows. The empty steering is the unsteered model.
        Steerings that begin at the prompt's last token (positions `response`) share everything before it, so each costs
        one token at most.
        """
        ...

    def continuation_logprobs(
        self, queries: Iterable[Continuations]
    ) -> Iterator[tuple[int, tuple[tuple[float, ...], ...]]]:
        """Log-probability of every token of every choice of each query."""
        ...
