"""The input and output of the engine: requests, their states, and token outputs.

All of it is plain immutable data; prompts and outputs are token ids. A request is a prompt, its steering, and one of
five kinds of work. A `match` on `Work` ends with `assert_never`, so that an unhandled kind fails type checking.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from server.engine.errors import WorkFailed
from server.engine.grammar import Grammar
from server.steering.parts import PartReader
from server.steering.plan import UNSTEERED, SteeringPlan
from vectors.vocabulary import Place, Site


class RequestState(enum.Enum):
    """The state of a request, each with its description. `TokenSequence.become` owns the transitions."""

    QUEUED = "It waits for pages and holds none (also after preemption)."
    PREFILLING = "Its known tokens are being read into the KV cache, one chunk per step."
    DECODING = "Every known token but the last is in the KV cache; each step generates one more."
    FINISHED = "It ended by itself: end token, stop, length, or all of its work is computed."
    ABORTED = "Its client left or stopped it."
    FAILED = "A step that it was part of raised."

    @property
    def is_final(self) -> bool:
        """True when no more events will come and all pages and rows are returned."""
        return self in (RequestState.FINISHED, RequestState.ABORTED, RequestState.FAILED)


class FinishReason(enum.StrEnum):
    """Why a request ended."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


class Priority(enum.IntEnum):
    """Lower runs first. Background work (scoring, capture, training) runs in what live traffic leaves."""

    LIVE = 0
    BACKGROUND = 1


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How a token is chosen from a row of logits. Every field applies to its own row of a batch.

    `temperature` below 1e-5 is greedy, as in vLLM. `top_k` 0, `top_p` 1 and `min_p` 0 filter nothing. `seed` None
    draws fresh entropy. Penalties follow OpenAI (`presence`, `frequency`: output tokens) and vLLM (`repetition`:
    prompt and output tokens). `logit_bias` maps token id to an added bias. Tokens in `stop_token_ids` and the model's
    end tokens end the request and cannot be drawn before `min_tokens`; `ignore_eos` disables only the end tokens.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    min_tokens: int = 0

    @property
    def is_greedy(self) -> bool:
        """True when the likeliest token is chosen."""
        return self.temperature < 1e-5

    @property
    def has_penalties(self) -> bool:
        """True when earlier tokens of the request change its logits."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0


@dataclass(frozen=True, slots=True)
class Generate:
    """Sample up to `max_tokens` tokens after the prompt, each an event; with 0 the prompt is only read.

    `num_logprobs` asks for the log-probability of each token and that many of the likeliest. `grammar` forbids tokens
    that it does not allow, and ends the response when it is complete. `parts` tells which part of the response each
    token belongs to; without it everything is content.
    """

    max_tokens: int
    sampling: SamplingParams = SamplingParams()
    num_logprobs: int | None = None
    grammar: Grammar | None = None
    parts: PartReader | None = None


@dataclass(frozen=True, slots=True)
class Force:
    """Read the prompt and then `response`; give the log-probabilities of these tokens from index `start` on.

    Each comes with the `num_logprobs` likeliest tokens at its place. Index 0 has none and is given as None.
    `response` is steered as content. With `keeps_rows` all log-probabilities at these places are given too.
    """

    response: tuple[int, ...] = ()
    start: int = 0
    num_logprobs: int = 0
    keeps_rows: bool = False


@dataclass(frozen=True, slots=True)
class Score:
    """Give the log-probabilities of responses that differ only in their last token: `head`, then each of `last`.

    They are steered as content.
    """

    head: tuple[int, ...]
    last: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Branch:
    """Give the logits of `token_ids` as the next token after the prompt, under each of `plans`.

    They are the model's own logits: log-probabilities up to a constant for each plan, enough to compare the tokens, and
    those of the rest of the vocabulary are not needed. The prompt's last token is computed for each plan, side by side;
    an engine may leave out the blocks below the first at which the plan differs from the request's own. The tokens
    before it are steered by the request's own plan. So `plans` may differ from it only at the last prompt token.
    """

    plans: tuple[SteeringPlan, ...]
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Capture:
    """Give the activations at each of `sites`, after steering, for each of `layers`, at `positions`.

    `positions` index the prompt's tokens; negative ones count from the end. Also the log-probabilities of `token_ids`
    as the next token after the prompt, if there are any; the work then fails where the model overflows.
    """

    layers: tuple[int, ...]
    sites: tuple[Site, ...] = ("residual",)
    positions: tuple[int, ...] = (-1,)
    token_ids: tuple[int, ...] = ()


Work = Generate | Force | Score | Branch | Capture
"""What to do with a prompt."""


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One sequence to run: `prompt`, steered by `plan`, and what to do with it.

    No two running requests may have the same `request_id`. `owner` is opaque; the owners of requests take turns.
    """

    request_id: str
    prompt: tuple[int, ...]
    work: Work
    plan: SteeringPlan = UNSTEERED
    priority: Priority = Priority.LIVE
    owner: str = ""


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probability (natural log, of the steered model, before temperature, penalties and bias) of `token_id`,
    and the likeliest tokens at the same place as (token_id, logprob), best first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class TokenReadings:
    """What the plan's probes read, in their order and their vectors' own units.

    `scores`: of the position whose logits chose the token; None for a probe that does not read it, empty in an event
    without a token. `prompt`, in the first event if a probe reads the prompt: the scores of its tokens, None for those
    that it does not read, or None for a probe that reads none. `gates`: for each of the plan's gated entries, how many
    tokens its gate has let through so far, of how many.
    """

    scores: tuple[float | None, ...]
    prompt: tuple[tuple[float | None, ...] | None, ...] | None = None
    gates: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class TokenOutput:
    """One event of a request. The last one, and only the last, has `finish_reason`.

    `token_id` None: an event without a token (no generation, abort, failure). An end or stop token is given like any
    other; `is_end` distinguishes it from text. The results of other work than generation come with the last event,
    unless it is an abort or an error: `known_logprobs` of `Force`, and `known_rows`, float32
    `[tokens, vocabulary]` (CPU), if it keeps them; `scores` of `Score`, for each of `last` the
    log-probabilities of head + last; `branch_logits` of `Branch`, float32 `[plans, token_ids]` (CPU; NaN in a row with
    a logit that is not finite); `activations` of `Capture`, `{(site, layer): float32 [positions, hidden]}` (CPU), and
    `scores`, for each of its `token_ids` its log-probability.
    `num_cached_tokens`: prompt tokens that came from the prefix cache. `seconds_queued`: how long the request waited
    for its first step; None if it had none. `readings`: None without probes. `error`: why the request failed, with
    `FinishReason.ERROR`.
    """

    request_id: str
    token_id: int | None = None
    logprobs: TokenLogprobs | None = None
    finish_reason: FinishReason | None = None
    num_cached_tokens: int = 0
    seconds_queued: float | None = None
    known_logprobs: tuple[TokenLogprobs | None, ...] | None = None
    known_rows: Tensor | None = None
    scores: tuple[tuple[float, ...], ...] | None = None
    branch_logits: Tensor | None = None
    activations: Mapping[Place, Tensor] | None = None
    error: WorkFailed | None = None
    is_end: bool = False
    readings: TokenReadings | None = None


OutputSink = Callable[[TokenOutput], None]
"""Receives the events of a request, in order, on the engine's thread; it must return at once and never raise."""
