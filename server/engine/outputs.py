"""What a step's tensors come to in the events of requests: log-probabilities, scores, activations.

It does not know how tokens are chosen or events travel.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from server.engine.request import TokenLogprobs
from server.engine.runner import ChunkResult
from server.engine.sampler import logprobs_of
from server.engine.sequence import TokenSequence
from vectors.vocabulary import Place


def sampled_logprobs(
    logits: Tensor, sequences: Sequence[TokenSequence], tokens: Sequence[int]
) -> list[TokenLogprobs | None]:
    """For each row of `logits` `[rows, vocabulary]`: what its sequence wants to know of the sampled token."""
    wanting = [index for index, sequence in enumerate(sequences) if sequence.request.num_logprobs is not None]
    logprobs: list[TokenLogprobs | None] = [None] * len(sequences)
    if wanting:
        num_top = [sequences[index].request.num_logprobs or 0 for index in wanting]
        found = logprobs_of(logits[wanting], [tokens[index] for index in wanting], num_top)
        for index, logprob in zip(wanting, found, strict=True):
            logprobs[index] = logprob
    return logprobs


def next_scores(result: ChunkResult) -> tuple[float, ...] | None:
    """Log-probabilities of the tokens that the request scores as the next; None when it scores none."""
    token_ids = result.chunk.sequence.request.score_token_ids
    if not token_ids or result.next_logits is None:
        return None
    logprobs = torch.log_softmax(result.next_logits.to(torch.float32), dim=-1)
    return tuple(float(value) for value in logprobs[list(token_ids)].tolist())


def branch_scores(logits: Tensor, token_ids: Sequence[int]) -> Tensor:
    """Log-probabilities of `token_ids`, float32 `[branches, tokens]` (CPU), from `logits` `[branches, vocabulary]`."""
    logprobs = torch.log_softmax(logits.to(torch.float32), dim=-1)
    return logprobs[:, list(token_ids)].cpu()


def captured_activations(sequence: TokenSequence) -> dict[Place, Tensor]:
    """The captured activations, `{(site, layer): float32 [positions, hidden]}`, positions as they were asked for."""
    return {
        place: torch.stack([found[position] for position in sequence.capture_positions])
        for place, found in sequence.activations.items()
    }
