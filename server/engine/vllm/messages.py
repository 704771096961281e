"""What the engine tells the workers of a step, and what they answer.

Both ride on vLLM's own messages of a step, so they come in the order of the steps: the engine's on the scheduler's
output, the workers' on the model runner's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from torch import Tensor

from server.engine.request import SamplingParams, TokenLogprobs
from vectors.operations import PlaceChange
from vectors.vocabulary import Place

Row = Mapping[Place, PlaceChange]
"""What one row of the workers' banks does at each place where it does something."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """How a request's tokens are drawn, told once."""

    prompt: tuple[int, ...]
    sampling: SamplingParams
    eos_token_ids: frozenset[int]
    num_logprobs: int | None


@dataclass(frozen=True, slots=True)
class KnownTokens:
    """Tokens whose log-probabilities are wanted: `tokens[i]` comes after the chunk's token `first + i`.

    Each with the `num_top` likeliest at its place.
    """

    first: int
    tokens: tuple[int, ...]
    num_top: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """What a step does for one request.

    `rows`: int64 `[tokens]`, the row of each of its tokens, or None when none is steered. `draws`: the next token is
    drawn, where `mask`, int32 words as in `server.engine.grammar`, allows. `scored`: tokens whose log-probabilities as
    the next one are wanted; `compared`: tokens whose logits are. `captured`: indices of its tokens to capture.
    """

    rows: npt.NDArray[np.int64] | None = None
    draws: bool = False
    mask: bytes | None = None
    known: KnownTokens | None = None
    scored: tuple[int, ...] = ()
    compared: tuple[int, ...] = ()
    captured: tuple[int, ...] = ()


@dataclass(slots=True)
class StepOrders:
    """A step: rows to write first, requests that begin to draw, and the chunks that do more than being read."""

    rows: dict[int, Row] = field(default_factory=dict)
    drawings: dict[str, Drawing] = field(default_factory=dict)
    chunks: dict[str, Chunk] = field(default_factory=dict)


@dataclass(slots=True)
class Answer:
    """What a step gave for one chunk.

    `is_finite`: False when wanted logits have NaN or infinity; then nothing else is there. `token` None though one was
    to be drawn: no token is allowed. `captured`: float32 `[captured, hidden]` of each place.
    """

    is_finite: bool = True
    token: int | None = None
    logprobs: TokenLogprobs | None = None
    known: list[TokenLogprobs] = field(default_factory=list)
    scores: tuple[float, ...] = ()
    logits: tuple[float, ...] = ()
    captured: dict[Place, Tensor] = field(default_factory=dict)
