"""The outputs that a sequence needs, in one form for all kinds of work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

from server.engine.request import Branch, Capture, EngineRequest, Force, Generate, Score
from server.steering.plan import SteeringPlan


@dataclass(frozen=True, slots=True)
class Wanted:
    """The outputs that a sequence needs. Its known tokens are those of the prompt and of `response`, which is given.

    `generate`: what to sample after them. `logprobs_start`: the known tokens from this index on need log-probabilities,
    each with the `num_logprobs` likeliest tokens, and with `keeps_rows` with those of the whole vocabulary.
    `next_token_ids`: the tokens to score as the next one after the known tokens, under each of `branches` if there are
    any.
    """

    generate: Generate | None = None
    response: tuple[int, ...] = ()
    logprobs_start: int | None = None
    num_logprobs: int = 0
    keeps_rows: bool = False
    next_token_ids: tuple[int, ...] = ()
    branches: tuple[SteeringPlan, ...] = ()
    capture: Capture | None = None

    @property
    def max_tokens(self) -> int:
        """The most tokens to sample."""
        return 0 if self.generate is None else self.generate.max_tokens


def wanted_by(request: EngineRequest) -> Wanted:
    """The outputs that `request` needs."""
    match request.work:
        case Generate() as work:
            return Wanted(generate=work)
        case Force() as work:
            return Wanted(
                response=work.response,
                logprobs_start=work.start,
                num_logprobs=work.num_logprobs,
                keeps_rows=work.keeps_rows,
            )
        case Score() as work:
            return Wanted(response=work.head, logprobs_start=len(request.prompt), next_token_ids=work.last)
        case Branch() as work:
            return Wanted(branches=work.plans, next_token_ids=work.token_ids)
        case Capture() as work:
            return Wanted(capture=work, next_token_ids=work.token_ids)
        case _ as unknown:
            assert_never(unknown)
