"""Drawer: what a worker computes from a step's logits, with the sampler of tiller's own engine.

So tokens, penalties, filters, seeds and log-probabilities mean the same on both engines, and forced tokens, scores and
branches need nothing that vLLM would have to offer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from server.engine.grammar import unpack_mask
from server.engine.outputs import next_scores
from server.engine.request import TokenLogprobs
from server.engine.sampler import NO_TOKEN, RowSampler, logprobs_of, sample
from server.engine.vllm.messages import Answer, Chunk, Drawing

LogitsOf = Callable[[Tensor], Tensor]
"""Hidden states `[tokens, hidden]` -> logits `[tokens, vocabulary]`."""


class Drawer:
    """The samplers of the requests that draw tokens, by their names."""

    def __init__(self) -> None:
        self._samplers: dict[str, tuple[RowSampler, Drawing]] = {}

    def begin(self, drawings: Mapping[str, Drawing]) -> None:
        """Take up requests."""
        for name, drawing in drawings.items():
            self._samplers[name] = RowSampler(drawing.sampling, drawing.eos_token_ids, drawing.prompt), drawing

    def forget(self, name: str) -> None:
        """Drop a request, if it is there."""
        self._samplers.pop(name, None)

    def answers(
        self,
        names: Sequence[str],
        counts: Mapping[str, int],
        chunks: Mapping[str, Chunk],
        logits: Tensor,
        hidden: Tensor,
        logits_of: LogitsOf,
    ) -> dict[str, Answer]:
        """What a step gives for each of `chunks`.

        `logits[i]` `[vocabulary]` come after the last token of `names[i]`, which has `counts[name]` rows of the
        final hidden states `hidden` `[tokens, hidden]`.
        """
        is_finite = torch.isfinite(logits.amax(dim=-1)).tolist()
        answers: dict[str, Answer] = {}
        drawing: list[int] = []
        start = 0
        for index, name in enumerate(names):
            chunk = chunks.get(name)
            if chunk is not None:
                known = _known(chunk, start, hidden, logits_of)
                answer = answers[name] = Answer(is_finite=known is not None)
                if known is not None:
                    answer.known = known
                if chunk.compared:
                    row = logits[index, list(chunk.compared)].to(torch.float32)
                    answer.logits = tuple(torch.where(row.isfinite().all(), row, torch.nan).tolist())
                elif (chunk.draws or chunk.scored) and not is_finite[index]:
                    answer.is_finite = False
                elif chunk.scored:
                    answer.scores = next_scores(logits[index], chunk.scored)
                elif chunk.draws and answer.is_finite:
                    drawing.append(index)
            start += counts[name]
        self._draw(drawing, names, chunks, logits, answers)
        return answers

    def _draw(
        self,
        drawing: Sequence[int],
        names: Sequence[str],
        chunks: Mapping[str, Chunk],
        logits: Tensor,
        answers: Mapping[str, Answer],
    ) -> None:
        """Draw a token from each of the rows `drawing`."""
        if not drawing:
            return
        rows = logits if len(drawing) == len(logits) else logits[list(drawing)]
        vocabulary = logits.shape[-1]
        allowed = {
            at: unpack_mask(torch.from_numpy(np.frombuffer(mask, dtype=np.int32).copy()), vocabulary)
            for at, index in enumerate(drawing)
            if (mask := chunks[names[index]].mask) is not None
        }
        samplers = [self._samplers[names[index]] for index in drawing]
        tokens = sample(rows, [sampler for sampler, _ in samplers], allowed)
        wanting: list[int] = []
        for at, (index, token) in enumerate(zip(drawing, tokens, strict=True)):
            sampler, how = samplers[at]
            if token != NO_TOKEN:
                answers[names[index]].token = token
                sampler.record(token)
                if how.num_logprobs is not None:
                    wanting.append(at)
        if wanting:
            num_top = [samplers[at][1].num_logprobs or 0 for at in wanting]
            found = logprobs_of(rows[wanting], [tokens[at] for at in wanting], num_top)
            for at, logprobs in zip(wanting, found, strict=True):
                answers[names[drawing[at]]].logprobs = logprobs


def _known(chunk: Chunk, start: int, hidden: Tensor, logits_of: LogitsOf) -> list[TokenLogprobs] | None:
    """The log-probabilities of the chunk's known tokens; None when a logit is not finite."""
    wanted = chunk.known
    if wanted is None:
        return []
    first = start + wanted.first
    logits = logits_of(hidden[first : first + len(wanted.tokens)])
    if not bool(torch.isfinite(logits.amax(dim=-1)).all()):
        return None
    return logprobs_of(logits, wanted.tokens, [wanted.num_top] * len(wanted.tokens))
