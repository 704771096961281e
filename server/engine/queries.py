"""Scoring and activation capture, put as generation requests that generate nothing.

They need only `submit`, so every engine behind the protocol can have them. It does not know how requests are run.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from torch import Tensor

from server.engine.request import (
    CaptureSpec,
    FinishReason,
    GenerationRequest,
    OutputSink,
    Priority,
    TokenOutput,
)
from server.errors import InvalidRequest, Unavailable
from server.steering.plan import SteeringPlan
from vectors.vocabulary import Place

Submit = Callable[[GenerationRequest, OutputSink], None]


def score(
    submit: Submit, prompt: Sequence[int], choices: Sequence[Sequence[int]], plan: SteeringPlan, priority: Priority
) -> Future[list[list[float]]]:
    """Log-probabilities of each choice's tokens after `prompt`; see `protocol.Engine.score`."""
    result: Future[list[list[float]]] = _uncancellable()
    scores: list[list[float]] = [[] for _ in choices]
    requests = score_requests(prompt, choices, plan, priority)
    num_missing = len(requests)
    for request, indices in requests:

        def receive(output: TokenOutput, indices: list[int] = indices) -> None:
            nonlocal num_missing
            if result.done():
                return
            if output.finish_reason in (FinishReason.ERROR, FinishReason.ABORT):
                result.set_exception(Unavailable(output.error or "the scoring was aborted"))
                return
            for index, logprobs in zip(indices, choice_logprobs(output), strict=True):
                scores[index] = logprobs
            num_missing -= 1
            if num_missing == 0:
                result.set_result(scores)

        submit(request, receive)
    if not choices:
        result.set_result([])
    return result


def score_requests(
    prompt: Sequence[int], choices: Sequence[Sequence[int]], plan: SteeringPlan, priority: Priority
) -> list[tuple[GenerationRequest, list[int]]]:
    """The requests that score `choices` after `prompt`, each with the indices of its choices.

    Choices that differ in their last token only share one request. Raises `InvalidRequest` for an empty choice.
    """
    heads: dict[tuple[int, ...], list[int]] = {}
    for index, choice in enumerate(choices):
        if not choice:
            raise InvalidRequest("an empty choice has no probability", code="invalid_choice", param="choices")
        heads.setdefault(tuple(choice[:-1]), []).append(index)
    return [
        (
            GenerationRequest(
                request_id=f"score-{uuid.uuid4().hex}",
                prompt=tuple(prompt),
                forced=head,
                max_tokens=0,
                plan=plan,
                logprobs_start=len(prompt),
                num_logprobs=0,
                score_token_ids=tuple(choices[index][-1] for index in indices),
                priority=priority,
            ),
            indices,
        )
        for head, indices in heads.items()
    ]


def choice_logprobs(output: TokenOutput) -> list[list[float]]:
    """What the last event of one of `score_requests` says: the log-probabilities of each choice's tokens."""
    shared = [known.logprob for known in output.known_logprobs or () if known is not None]
    return [[*shared, last] for last in output.scores or ()]


def score_branches(
    submit: Submit,
    prompt: Sequence[int],
    token_ids: Sequence[int],
    branches: Sequence[SteeringPlan],
    priority: Priority,
) -> Future[Tensor]:
    """Log-probabilities of next tokens under each plan; see `protocol.Engine.score_branches`."""
    result: Future[Tensor] = _uncancellable()

    def receive(output: TokenOutput) -> None:
        if output.branch_scores is None:
            result.set_exception(Unavailable(output.error or "the scoring was aborted"))
        else:
            result.set_result(output.branch_scores)

    request = GenerationRequest(
        request_id=f"branches-{uuid.uuid4().hex}",
        prompt=tuple(prompt),
        max_tokens=0,
        plan=branches[0],
        branches=tuple(branches),
        score_token_ids=tuple(token_ids),
        priority=priority,
    )
    submit(request, receive)
    return result


def capture(
    submit: Submit, prompt: Sequence[int], spec: CaptureSpec, plan: SteeringPlan, priority: Priority
) -> Future[dict[Place, Tensor]]:
    """Activations of `prompt` as `spec` says; see `protocol.Engine.capture`."""
    result: Future[dict[Place, Tensor]] = _uncancellable()

    def receive(output: TokenOutput) -> None:
        if output.activations is None:
            result.set_exception(Unavailable(output.error or "the capture was aborted"))
        else:
            result.set_result(dict(output.activations))

    request = GenerationRequest(
        request_id=f"capture-{uuid.uuid4().hex}",
        prompt=tuple(prompt),
        max_tokens=0,
        plan=plan,
        capture=spec,
        priority=priority,
    )
    submit(request, receive)
    return result


def _uncancellable() -> Future[Any]:
    """A future whose `cancel` does nothing: what was submitted will be computed."""
    result: Future[Any] = Future()
    result.set_running_or_notify_cancel()
    return result
