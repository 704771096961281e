"""Checks whether a request can be run at all, before it is queued."""

from __future__ import annotations

from collections.abc import Iterable
from typing import assert_never

from server.engine.errors import ContextTooLong, EmptyPrompt, InvalidWork, TokenOutsideVocabulary
from server.engine.protocol import ModelInfo
from server.engine.request import Branch, Capture, EngineRequest, Force, Generate, Score
from server.steering.plan import SteeringPlan


def check_request(request: EngineRequest, info: ModelInfo, max_tokens: int) -> None:
    """Raise `RequestRefused` if the model of `info` cannot run `request`; sequences may have `max_tokens` tokens."""
    if not request.prompt:
        raise EmptyPrompt
    num_to_generate = 0
    response: tuple[int, ...] = ()
    named: Iterable[int] = ()
    match request.work:
        case Generate() as work:
            num_to_generate = work.max_tokens
            named = (*work.sampling.logit_bias, *work.sampling.stop_token_ids)
        case Force() as work:
            response = work.response
        case Score() as work:
            response, named = work.head, work.last
        case Branch() as work:
            named = work.token_ids
        case Capture() as work:
            named = work.token_ids
        case _ as unknown:
            assert_never(unknown)
    num_known = len(request.prompt) + len(response)
    if num_known + num_to_generate > max_tokens:
        raise ContextTooLong(max_tokens, num_known, num_to_generate)
    if request.plan.probes and not isinstance(request.work, Generate):
        raise InvalidWork("probes are read only where text is generated")
    if isinstance(request.work, Branch) and any(plan.gated for plan in (request.plan, *request.work.plans)):
        raise InvalidWork("branches cannot be steered by entries with gates")
    tokens = (*request.prompt, *response, *named)
    if min(tokens) < 0 or max(tokens) >= info.vocab_size:
        raise TokenOutsideVocabulary(info.vocab_size)
    _check_work(request, info)


def _check_work(request: EngineRequest, info: ModelInfo) -> None:
    """Raise `InvalidWork` if the fields of the work are invalid."""
    match request.work:
        case Generate() as work:
            if work.max_tokens < 0:
                raise InvalidWork(f"max_tokens: expected at least 0, got {work.max_tokens}", "max_tokens")
            _check_ends(work, info)
        case Force() as work:
            num_known = len(request.prompt) + len(work.response)
            if not 0 <= work.start <= num_known:
                raise InvalidWork(f"start: expected an index from 0 to {num_known}, got {work.start}")
        case Score() as work:
            if not work.last:
                raise InvalidWork("a scoring request needs at least one token to score")
        case Branch() as work:
            _check_branches(work, request.plan)
        case Capture() as work:
            _check_capture(work, info, len(request.prompt))
        case _ as unknown:
            assert_never(unknown)


def _check_ends(work: Generate, info: ModelInfo) -> None:
    """Raise `InvalidWork` if end and stop tokens that `min_tokens` holds back leave no token for the first place."""
    sampling = work.sampling
    if sampling.min_tokens < 1 or work.max_tokens < 1 or work.grammar is not None:
        return
    ends = sampling.stop_token_ids if sampling.ignore_eos else sampling.stop_token_ids | info.eos_token_ids
    if len(ends) >= info.vocab_size:
        raise InvalidWork(
            f"min_tokens: expected 0 where every token of the vocabulary ends the answer, got {sampling.min_tokens}",
            "min_tokens",
        )


def _check_branches(work: Branch, plan: SteeringPlan) -> None:
    if not work.plans or not work.token_ids:
        raise InvalidWork("a branching request needs at least one plan and one token to score")
    if any(branch.prompt_fingerprint != plan.prompt_fingerprint for branch in work.plans):
        raise InvalidWork("branches must steer the tokens before the last prompt token alike")


def _check_capture(work: Capture, info: ModelInfo, num_prompt: int) -> None:
    if not (work.sites and work.layers and work.positions):
        raise InvalidWork("a capture needs at least one site, one layer and one position")
    if not set(work.sites) <= set(info.sites) or not all(0 <= layer < info.num_layers for layer in work.layers):
        raise InvalidWork("the capture names a site or layer that the model does not have")
    if not all(-num_prompt <= position < num_prompt for position in work.positions):
        raise InvalidWork("the capture names a position outside the prompt")
