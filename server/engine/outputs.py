"""Turns a step's tensors into the contents of events: log-probabilities, scores, activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import assert_never

import torch
from torch import Tensor

from server.engine.errors import WorkFailed
from server.engine.request import (
    Branch,
    Capture,
    FinishReason,
    Force,
    Generate,
    Score,
    TokenLogprobs,
    TokenOutput,
)
from server.engine.sampler import NO_TOKEN, logprobs_of
from server.engine.sequence import TokenSequence
from vectors.vocabulary import Place


def sampled_logprobs(
    logits: Tensor, sequences: Sequence[TokenSequence], tokens: Sequence[int]
) -> list[TokenLogprobs | None]:
    """For each row of `logits` `[rows, vocabulary]` with a token: the log-probabilities that its sequence wants."""
    num_top = {
        index: sequence.wanted.generate.num_logprobs
        for index, sequence in enumerate(sequences)
        if sequence.wanted.generate is not None
        and sequence.wanted.generate.num_logprobs is not None
        and tokens[index] != NO_TOKEN
    }
    logprobs: list[TokenLogprobs | None] = [None] * len(sequences)
    if num_top:
        wanting = list(num_top)
        found = logprobs_of(logits[wanting], [tokens[index] for index in wanting], list(num_top.values()))
        for index, logprob in zip(wanting, found, strict=True):
            logprobs[index] = logprob
    return logprobs


def next_scores(logits: Tensor, token_ids: Sequence[int]) -> tuple[float, ...]:
    """Log-probabilities of `token_ids` under `logits` `[vocabulary]`."""
    return tuple(torch.log_softmax(logits.to(torch.float32), dim=-1)[list(token_ids)].tolist())


def last_output(
    sequence: TokenSequence,
    reason: FinishReason,
    *,
    token: int | None = None,
    logprobs: TokenLogprobs | None = None,
    error: WorkFailed | None = None,
) -> TokenOutput:
    """The last event of a sequence that ends for `reason`, with all results of its work when it is complete."""
    output = TokenOutput(
        sequence.request.request_id,
        token,
        logprobs,
        reason,
        sequence.num_cached_tokens or 0,
        sequence.seconds_queued,
        error=error,
        is_end=token in sequence.sampler.end_token_ids,
    )
    if reason in (FinishReason.ABORT, FinishReason.ERROR):
        return output
    match sequence.request.work:
        case Generate():
            return output
        case Force():
            rows = torch.cat(sequence.known_rows) if sequence.known_rows else None
            return replace(output, known_logprobs=tuple(sequence.known_logprobs), known_rows=rows)
        case Score():
            head = [known.logprob for known in sequence.known_logprobs if known is not None]
            return replace(output, scores=tuple((*head, score) for score in sequence.next_scores))
        case Branch():
            return replace(output, branch_logits=sequence.branches.logits)
        case Capture():
            scores = tuple((score,) for score in sequence.next_scores)
            return replace(output, activations=_captured_activations(sequence), scores=scores)
        case _ as unknown:
            assert_never(unknown)


def _captured_activations(sequence: TokenSequence) -> dict[Place, Tensor]:
    """The captured activations, `{(site, layer): float32 [positions, hidden]}`, in the order asked."""
    return {
        place: torch.stack([found[position] for position in sequence.capture_positions])
        for place, found in sequence.activations.items()
    }
