"""Scoring, branches, continuations and capture as functions over an engine's `submit`.

They return a `Query`, a future.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Sequence
from concurrent.futures import Future
from typing import TypeVar

import torch
from torch import Tensor

from server.engine.errors import InvalidWork, OutputNotFinite, WorkFailed
from server.engine.protocol import Engine
from server.engine.request import (
    Branch,
    Capture,
    EngineRequest,
    FinishReason,
    Force,
    Generate,
    OutputSink,
    Priority,
    SamplingParams,
    Score,
    TokenOutput,
    Work,
)
from server.steering.plan import UNSTEERED, SteeringPlan
from vectors.vocabulary import Place

_Result = TypeVar("_Result")

Activations = dict[Place, Tensor]
"""`{(site, layer): float32 [positions, hidden]}` (CPU)."""

_NAME, _numbers = f"query-{uuid.uuid4().hex}", itertools.count()
"""Of the requests of this process, each with a number of its own."""


class Query(Future[_Result]):
    """A result that requests to `engine` will give. `cancel` has no effect; `abort` ends the requests."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self._engine = engine
        self._request_ids: list[str] = []
        self.set_running_or_notify_cancel()

    def submit(self, request: EngineRequest, sink: OutputSink) -> None:
        """Submit one of the requests. Raises what `Engine.submit` raises."""
        self._request_ids.append(request.request_id)
        self._engine.submit(request, sink)

    def abort(self) -> None:
        """End the requests that are under way; the result is `WorkFailed` then."""
        for request_id in self._request_ids:
            self._engine.abort(request_id)


def score(
    engine: Engine,
    prompt: Sequence[int],
    choices: Sequence[Sequence[int]],
    *,
    plan: SteeringPlan = UNSTEERED,
    priority: Priority = Priority.BACKGROUND,
) -> Query[list[tuple[float, ...]]]:
    """Log-probabilities of the tokens of each choice as a continuation of `prompt`, steered by `plan`.

    Raises what `Engine.submit` raises, and `InvalidWork` for an empty choice; the future raises `WorkFailed`.
    """
    result: Query[list[tuple[float, ...]]] = Query(engine)
    scores: list[tuple[float, ...]] = [()] * len(choices)
    works = share_heads(choices)
    num_missing = len(works)
    for work, indices in works:

        def receive(output: TokenOutput, indices: list[int] = indices) -> None:
            nonlocal num_missing
            if result.done():
                return
            if output.scores is None:
                result.set_exception(output.error or WorkFailed("the scoring was aborted"))
                return
            for index, logprobs in zip(indices, output.scores, strict=True):
                scores[index] = logprobs
            num_missing -= 1
            if num_missing == 0:
                result.set_result(scores)

        result.submit(_request(prompt, work, plan, priority), receive)
    if not choices:
        result.set_result([])
    return result


def share_heads(choices: Sequence[Sequence[int]]) -> list[tuple[Score, list[int]]]:
    """The work that scores `choices`, each with the indices of its choices, which differ only in their last token.

    Raises `InvalidWork` for an empty choice.
    """
    heads: dict[tuple[int, ...], list[int]] = {}
    for index, choice in enumerate(choices):
        if not choice:
            raise InvalidWork("expected choices of at least one token, got an empty one")
        heads.setdefault(tuple(choice[:-1]), []).append(index)
    return [
        (Score(head, last=tuple(choices[index][-1] for index in indices)), indices) for head, indices in heads.items()
    ]


def next_logprobs(
    engine: Engine,
    prompt: Sequence[int],
    token_ids: Sequence[int],
    *,
    plan: SteeringPlan = UNSTEERED,
    priority: Priority = Priority.BACKGROUND,
) -> Query[Tensor]:
    """Log-probabilities, float32 `[tokens]` (CPU), of `token_ids` as the next after `prompt` under `plan`.

    NaN if the model overflows. It takes a step less than `branch`, since the last token is computed with the others.
    Raises what `Engine.submit` raises; the future raises `WorkFailed`.
    """
    result: Query[Tensor] = Query(engine)

    def receive(output: TokenOutput) -> None:
        if output.scores is not None:
            result.set_result(torch.tensor([logprob for (logprob,) in output.scores]))
        elif isinstance(output.error, OutputNotFinite):
            result.set_result(torch.full((len(token_ids),), torch.nan))
        else:
            result.set_exception(output.error or WorkFailed("the scoring was aborted"))

    result.submit(_request(prompt, Score((), tuple(token_ids)), plan, priority), receive)
    return result


def branch(
    engine: Engine,
    prompt: Sequence[int],
    token_ids: Sequence[int],
    branches: Sequence[SteeringPlan],
    *,
    priority: Priority = Priority.BACKGROUND,
) -> Query[Tensor]:
    """Logits, float32 `[branches, tokens]` (CPU), of `token_ids` as the next after `prompt` under each plan.

    They are log-probabilities up to a constant for each plan. There is at least one plan, and all steer the tokens
    before the last prompt token alike. A plan that makes the model overflow gives NaN. Raises what `Engine.submit`
    raises; the future raises `WorkFailed`.
    """
    result: Query[Tensor] = Query(engine)

    def receive(output: TokenOutput) -> None:
        if output.branch_logits is None:
            result.set_exception(output.error or WorkFailed("the scoring was aborted"))
        else:
            result.set_result(output.branch_logits)

    # branches skip the blocks below their first difference from the request's own plan, so that is unsteered if it can
    own = branches[0] if branches[0].prompt_fingerprint else UNSTEERED
    result.submit(_request(prompt, Branch(tuple(branches), tuple(token_ids)), own, priority), receive)
    return result


def continuation(
    engine: Engine,
    prompt: Sequence[int],
    max_tokens: int,
    *,
    plan: SteeringPlan = UNSTEERED,
    priority: Priority = Priority.BACKGROUND,
) -> Query[tuple[int, ...]]:
    """At most `max_tokens` greedy tokens after `prompt`, steered by `plan`, with the end token if they end.

    Raises what `Engine.submit` raises; the future raises `WorkFailed`.
    """
    result: Query[tuple[int, ...]] = Query(engine)
    found: list[int] = []

    def receive(output: TokenOutput) -> None:
        if output.token_id is not None:
            found.append(output.token_id)
        if output.finish_reason in (FinishReason.ABORT, FinishReason.ERROR):
            result.set_exception(output.error or WorkFailed("the generation was aborted"))
        elif output.finish_reason is not None:
            result.set_result(tuple(found))

    result.submit(_request(prompt, Generate(max_tokens, SamplingParams(temperature=0.0)), plan, priority), receive)
    return result


def distributions(
    engine: Engine,
    prompt: Sequence[int],
    response: Sequence[int],
    *,
    plan: SteeringPlan = UNSTEERED,
    priority: Priority = Priority.BACKGROUND,
) -> Query[Tensor]:
    """Log-probabilities, float32 `[response, vocabulary]` (CPU), at the place of each token of `response`, which is
    steered by `plan` as the continuation of `prompt`.

    Raises what `Engine.submit` raises; the future raises `WorkFailed`.
    """
    result: Query[Tensor] = Query(engine)

    def receive(output: TokenOutput) -> None:
        if output.known_rows is None:
            result.set_exception(output.error or WorkFailed("the scoring was aborted"))
        else:
            result.set_result(output.known_rows)

    work = Force(tuple(response), len(prompt), keeps_rows=True)
    result.submit(_request(prompt, work, plan, priority), receive)
    return result


def capture(
    engine: Engine,
    prompt: Sequence[int],
    work: Capture,
    *,
    plan: SteeringPlan = UNSTEERED,
    priority: Priority = Priority.BACKGROUND,
) -> Query[Activations]:
    """Activations `{(site, layer): float32 [positions, hidden]}` (CPU) of `prompt` as `work` says, steered by `plan`.

    Raises what `Engine.submit` raises; the future raises `WorkFailed`.
    """
    result: Query[Activations] = Query(engine)

    def receive(output: TokenOutput) -> None:
        if output.activations is None:
            result.set_exception(output.error or WorkFailed("the capture was aborted"))
        else:
            result.set_result(dict(output.activations))

    result.submit(_request(prompt, work, plan, priority), receive)
    return result


def capture_and_score(
    engine: Engine,
    prompt: Sequence[int],
    work: Capture,
    *,
    plan: SteeringPlan = UNSTEERED,
    priority: Priority = Priority.BACKGROUND,
) -> Query[tuple[Activations, Tensor]]:
    """What `capture` gives, and in the same pass the log-probabilities, float32 `[tokens]` (CPU), of the tokens that
    `work` names. All are NaN if the model overflows.

    Raises what `Engine.submit` raises; the future raises `WorkFailed`.
    """
    result: Query[tuple[Activations, Tensor]] = Query(engine)

    def receive(output: TokenOutput) -> None:
        if isinstance(output.error, OutputNotFinite):
            unknown = torch.full((len(work.positions), engine.info.hidden_size), torch.nan)
            found: Activations = {(site, layer): unknown for site in work.sites for layer in work.layers}
            result.set_result((found, torch.full((len(work.token_ids),), torch.nan)))
        elif output.activations is None:
            result.set_exception(output.error or WorkFailed("the capture was aborted"))
        else:
            logprobs = torch.tensor([logprob for (logprob,) in output.scores or ()])
            result.set_result((dict(output.activations), logprobs))

    result.submit(_request(prompt, work, plan, priority), receive)
    return result


def _request(prompt: Sequence[int], work: Work, plan: SteeringPlan, priority: Priority) -> EngineRequest:
    return EngineRequest(f"{_NAME}-{next(_numbers)}", tuple(prompt), work, plan, priority)
