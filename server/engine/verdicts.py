"""What a step means for each of its sequences: it goes on, has a token, ends, or fails for a reason of its own.

Each sequence is judged by itself, so that one that cannot go on ends alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from server.engine.errors import NoTokenAllowed, OutputNotFinite, StepFailed, WorkFailed
from server.engine.outputs import next_scores, sampled_logprobs
from server.engine.request import FinishReason, RequestState, TokenLogprobs, TokenReadings
from server.engine.runner import ChunkResult
from server.engine.sampler import NO_TOKEN, logprobs_of, sample
from server.engine.sequence import TokenSequence

_log = logging.getLogger(__name__)

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a sequence in a step. `reason`: why it ends, or None; `error` comes with `FinishReason.ERROR`."""

    sequence: TokenSequence
    token: int | None = None
    logprobs: TokenLogprobs | None = None
    reason: FinishReason | None = None
    error: WorkFailed | None = None
    readings: TokenReadings | None = None


@dataclass(frozen=True, slots=True)
class _Row:
    """A sequence that draws a token: the logits `[vocabulary]`, and what its grammar allows, if it has one."""

    sequence: TokenSequence
    logits: Tensor
    allowed: Tensor | None


def verdicts_of(results: Sequence[ChunkResult], vocab_size: int) -> list[Verdict]:
    """Apply a step's results to the sequences and choose their next tokens; what just goes on has no verdict."""
    verdicts: list[Verdict] = []
    rows: list[_Row] = []
    for result in results:
        sequence = result.chunk.sequence
        is_last = result.chunk.is_last
        try:
            _advance(result)
            if is_last and sequence.wanted.max_tokens > 0:
                assert result.next_logits is not None
                rows.append(_Row(sequence, result.next_logits, sequence.allowed_next(vocab_size)))
            elif is_last:
                verdicts.append(Verdict(sequence, reason=FinishReason.LENGTH, readings=_told(sequence, is_token=False)))
        except BaseException as error:
            verdicts.append(failed(sequence, error))
    drawn = _each(rows, _draw)
    return verdicts + [_append(row, one) for row, one in zip(rows, drawn, strict=True)]


def failed(sequence: TokenSequence, error: BaseException) -> Verdict:
    """The verdict on a sequence whose own work raised `error`, which the log gets too; a panic of a library is one.

    What ends the process (`KeyboardInterrupt`, `SystemExit`) is raised again.
    """
    name = sequence.request.request_id
    if isinstance(error, WorkFailed):
        _log.warning("request %s: %s", name, error)
        return Verdict(sequence, reason=FinishReason.ERROR, error=error)
    if isinstance(error, KeyboardInterrupt | SystemExit):
        raise error
    _log.error("request %s failed", name, exc_info=error)
    return Verdict(sequence, reason=FinishReason.ERROR, error=StepFailed())


def _advance(result: ChunkResult) -> None:
    """Note what the chunk computed. Raises `OutputNotFinite`."""
    sequence = result.chunk.sequence
    if not result.is_finite:  # its KV may be bad too, so its pages are not offered to others
        raise OutputNotFinite(is_steered=sequence.request.plan.is_steered)
    if result.branch_logits is not None:
        sequence.branches.add(result.branch_logits)
        return
    if sequence.readings is not None and result.readings is not None:
        sequence.readings.note(sequence.num_computed, result.readings)
    for place, found in result.activations.items():
        sequence.activations.setdefault(place, {}).update(found)
    if result.known_logits is not None:
        first = sequence.next_logprob_position + 1
        tokens = sequence.tokens[first : first + len(result.known_logits)]
        num_top = sequence.wanted.num_logprobs
        sequence.known_logprobs.extend(logprobs_of(result.known_logits, tokens, [num_top] * len(tokens)))
        if sequence.wanted.keeps_rows:
            sequence.known_rows.append(torch.log_softmax(result.known_logits.to(torch.float32), dim=-1).cpu())
    if result.next_logits is not None and sequence.wanted.next_token_ids:
        sequence.next_scores = next_scores(result.next_logits, sequence.wanted.next_token_ids)
    sequence.advance(result.chunk.num_new)


def _each(items: Sequence[_Item], work: Callable[[Sequence[_Item]], list[_Result]]) -> list[_Result | Exception]:
    """The results of `work` on all items at once; if that raises, on each alone, with the error of each that raises."""
    try:
        return [*work(items)] if items else []
    except Exception as error:
        if len(items) == 1:
            return [error]
        return [result for item in items for result in _each([item], work)]


def _draw(rows: Sequence[_Row]) -> list[tuple[int, TokenLogprobs | None]]:
    """A token for each row, and its log-probabilities if they are wanted. Changes no sequence."""
    sequences = [row.sequence for row in rows]
    logits = torch.stack([row.logits for row in rows])
    allowed = {index: row.allowed for index, row in enumerate(rows) if row.allowed is not None}
    tokens = sample(logits, [sequence.sampler for sequence in sequences], allowed)
    return list(zip(tokens, sampled_logprobs(logits, sequences, tokens), strict=True))


def _append(row: _Row, drawn: tuple[int, TokenLogprobs | None] | Exception) -> Verdict:
    """Append the drawn token to its sequence."""
    sequence = row.sequence
    try:
        if isinstance(drawn, Exception):
            raise drawn
        token, logprobs = drawn
        if token == NO_TOKEN:
            raise NoTokenAllowed
        if sequence.state is RequestState.PREFILLING:
            sequence.become(RequestState.DECODING)
        sequence.append(token)
        return Verdict(sequence, token, logprobs, sequence.finish_reason, readings=_told(sequence, is_token=True))
    except BaseException as error:
        return failed(sequence, error)


def _told(sequence: TokenSequence, *, is_token: bool) -> TokenReadings | None:
    return None if sequence.readings is None else sequence.readings.told(is_token=is_token)
