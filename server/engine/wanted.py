"""What the steps of a sequence must give, whatever its kind of work: the form in which the batch engine asks it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

from server.engine.request import Branch, Capture, EngineRequest, Force, Generate, Score
from server.steering.plan import SteeringPlan


@dataclass(frozen=True, slots=True)
class Wanted:
    """The known tokens are the prompt's and those of `response`, which are given and not sampled.

    `generate`: what is sampled after them. `logprobs_start`: the known tokens from this index on are wanted with their
    log-probabilities and `num_logprobs` of the likeliest. `next_token_ids`: the tokens scored as the next after the
    known ones, under each of `branches` where there are any.
    """

    generate: Generate | None = None
    response: tuple[int, ...] = ()
    logprobs_start: int | None = None
    num_logprobs: int = 0
    next_token_ids: tuple[int, ...] = ()
    branches: tuple[SteeringPlan, ...] = ()
    capture: Capture | None = None

    @property
    def max_tokens(self) -> int:
        """How many tokens may be sampled."""
        return 0 if self.generate is None else self.generate.max_tokens


def wanted_by(request: EngineRequest) -> Wanted:
    """What the steps of `request` must give."""
    match request.work:
        case Generate() as work:
            return Wanted(generate=work)
        case Force() as work:
            return Wanted(response=work.response, logprobs_start=work.start, num_logprobs=work.num_logprobs)
        case Score() as work:
            return Wanted(response=work.head, logprobs_start=len(request.prompt), next_token_ids=work.last)
        case Branch() as work:
            return Wanted(branches=work.plans, next_token_ids=work.token_ids)
        case Capture() as work:
            return Wanted(capture=work)
        case _ as unknown:
            assert_never(unknown)
