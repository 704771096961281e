"""Runs a step: copies its arrays to the device, calls the model once, and splits logits and activations by chunk.

This is the only place that calls the model. It owns the KV, the step's buffers and the steering hooks.
"""

from __future__ import annotations

import contextlib
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from server.engine.attention.function import attention_step
from server.engine.buffers import StepBuffers
from server.engine.fused_blocks import SteeredBlocks
from server.engine.late_entry import Stages, late_entry_step, plan_stages
from server.engine.model import LoadedModel
from server.engine.readings import Rows
from server.engine.recurrent.slots import StateSlots
from server.engine.recurrent.states import RecurrentStates
from server.engine.recurrent.step import RecurrentStep, Span, recurrent_step
from server.engine.scheduler import Chunk
from server.engine.step import PackedChunk, StepBatch, pack_step
from server.steering.bank import SteeringBank
from server.steering.hooks import ActivationHooks, StepActivations
from server.steering.readings import LATCHED, NUM_FIXED_COLUMNS, UNREAD
from server.steering.slots import ALWAYS, NEVER
from vectors.vocabulary import Place

_LARGEST = torch.finfo(torch.float32).max


@dataclass(frozen=True, slots=True)
class ChunkResult:
    """What a step computed for one chunk.

    `next_logits`: `[vocabulary]` after the chunk's last token, when the chunk is the sequence's last.
    `known_logits`: `[n, vocabulary]`, the logits that score known tokens, from the sequence's
    `next_logprob_position` on. `activations`: `{(site, layer): {position: float32 [hidden]}}` on the CPU.
    `is_finite`: False when a row of the logits has NaN or infinity, for example because the steering is too strong.
    `readings`: what the sequence's probes and gates read of the chunk's tokens; None without any.
    `branch_logits`: `[branches, tokens]` of the tokens wanted from a chunk of branches, which need not be finite.
    """

    chunk: Chunk
    next_logits: Tensor | None
    known_logits: Tensor | None
    activations: dict[Place, dict[int, Tensor]]
    is_finite: bool
    branch_logits: Tensor | None = None
    readings: Rows | None = None


class Runner:
    """Runs steps of at most `max_batch_tokens` tokens on one model, with KV pages of `page_size` tokens.

    `num_pages`: of each group of layers. `slots`: those of a model with recurrent layers, else None.
    """

    def __init__(
        self,
        model: LoadedModel,
        bank: SteeringBank,
        *,
        num_pages: Sequence[int],
        page_size: int,
        max_batch_tokens: int,
        slots: StateSlots | None = None,
    ) -> None:
        self._model = model
        self._bank = bank
        self._hooks = SteeredBlocks(bank) if model.is_fused else ActivationHooks(model.sites, bank)
        self._attention = model.attention(
            model.attention_layers, num_pages=num_pages, page_size=page_size, dtype=model.dtype, device=model.device
        )
        self._slots = slots
        self._states = RecurrentStates(model.states, 0 if slots is None else slots.num_slots, model.device)
        self._buffers = StepBuffers(max_batch_tokens, len(num_pages), model.device)

    def close(self) -> None:
        """Remove the hooks from the model and free the KV and the states."""
        self._hooks.close()
        self._attention.close()
        self._states.close()

    @torch.inference_mode()
    def run(self, chunks: Sequence[Chunk]) -> list[ChunkResult]:
        """Compute `chunks`, whose pages are reserved and rows acquired. Does not change the sequences."""
        batch = pack_step(chunks, self._bank)
        inputs = self._buffers.write(batch)
        captures = {place: torch.from_numpy(tokens).to(self._model.device) for place, tokens in batch.captures.items()}
        readings, latches = _unread(batch, self._bank.num_columns)
        on_device = None if readings is None else readings.to(self._model.device)
        activations = StepActivations(
            inputs.row_of_token, inputs.slot_tokens, captures, readings=on_device, latches=latches
        )
        with contextlib.ExitStack() as contexts:
            if batch.entries is None:
                step = self._attention.plan(batch.segments, inputs.slots)
            else:
                stages = Stages(batch.entries, batch.segments, self._model.entry_points)
                step = plan_stages(self._attention, stages, inputs.slots)
                activations = _staged(activations, stages)
                contexts.enter_context(late_entry_step(stages))
            contexts.enter_context(attention_step(step))
            contexts.enter_context(self._recurrent_step(batch))
            contexts.enter_context(self._hooks.step(activations))
            logits = self._model.forward(inputs.tokens, inputs.positions, inputs.wanted, inputs.vocabulary)
        return list(_results(batch, logits, activations))

    def _recurrent_step(self, batch: StepBatch) -> contextlib.AbstractContextManager[object]:
        """The step of the recurrent layers, after the copies of states that were noted since the last one."""
        if self._slots is None:
            return contextlib.nullcontext()
        self._states.copy(self._slots.take_copies())
        spans = [_span(packed) for packed in batch.chunks]
        return recurrent_step(RecurrentStep(self._states, spans, self._model.device))


def _staged(activations: StepActivations, stages: Stages) -> StepActivations:
    """`activations` with what each stage sees of them."""
    by_stage = [activations.of_tokens(stage.tokens) for stage in stages.stages]
    return replace(activations, by_point=[by_stage[number] for number in stages.number_of_point])


def _span(packed: PackedChunk) -> Span:
    """The chunk as the recurrent layers see it."""
    segment, slot = packed.segment, packed.chunk.sequence.state_slot
    assert slot is not None
    return Span(segment.start, segment.end, slot, segment.num_past == 0, segment.is_branching)


def _unread(batch: StepBatch, num_columns: int) -> tuple[Tensor | None, list[tuple[slice, list[int]]]]:
    """The step's readings before it, `[slot tokens, columns]`, and its latches; see `server/steering/hooks.py`."""
    if batch.slot_tokens is None:
        return None, []
    readings = torch.full((len(batch.slot_tokens), num_columns), UNREAD)
    readings[:, ALWAYS], readings[:, NEVER] = 1.0, 0.0
    latches = []
    for packed in batch.chunks:
        own, segment = packed.chunk.sequence.readings, packed.segment
        if own is None or not own.latched:
            continue
        first, last = np.searchsorted(batch.slot_tokens, (segment.start, segment.end)).tolist()
        for number in own.latched:
            if own.is_latched(number, segment.num_past):
                readings[first:last, NUM_FIXED_COLUMNS + number] = LATCHED
        if last - first > 1:
            latches.append((slice(first, last), [NUM_FIXED_COLUMNS + number for number in own.latched]))
    return readings, latches


def _results(batch: StepBatch, logits: Tensor, activations: StepActivations) -> Iterator[ChunkResult]:
    """Each chunk's share of the step's `logits`, a row for each of `wanted`, and of what was captured and read."""
    is_finite = torch.isfinite(logits.amax(dim=-1)).tolist()
    rows_of_place = {place: iter(rows.cpu()) for place, rows in activations.captured.items()}
    readings = _readings(batch, activations.readings)
    offset = 0
    for packed, read in zip(batch.chunks, readings, strict=True):
        own = slice(offset, offset + len(packed.wanted))
        offset = own.stop
        if packed.segment.is_branching:
            named = packed.chunk.sequence.wanted.next_token_ids
            columns = named if batch.vocabulary is None else np.searchsorted(batch.vocabulary, named).tolist()
            yield ChunkResult(packed.chunk, None, None, {}, True, branch_logits=logits[own][:, columns])
            continue
        known = logits[own.start : own.stop - packed.has_next]
        yield ChunkResult(
            chunk=packed.chunk,
            next_logits=logits[own.stop - 1] if packed.has_next else None,
            known_logits=known if len(known) else None,
            activations=_activations(packed, rows_of_place),
            is_finite=all(is_finite[own]),
            readings=read,
        )


def _readings(batch: StepBatch, found: Tensor | None) -> list[Rows | None]:
    """What was read of each chunk's tokens, None without readings; `found` `[slot tokens, columns]` is the step's."""
    sequences = [packed.chunk.sequence for packed in batch.chunks]
    if all(sequence.readings is None for sequence in sequences):
        return [None] * len(sequences)
    tokens: Sequence[int] = ()
    values: list[list[float]] = []
    if found is not None and batch.slot_tokens is not None:
        tokens = batch.slot_tokens.tolist()
        values = found[:, NUM_FIXED_COLUMNS:].clamp(-_LARGEST, _LARGEST).tolist()
    results: list[Rows | None] = []
    for packed, sequence in zip(batch.chunks, sequences, strict=True):
        if sequence.readings is None:
            results.append(None)
            continue
        segment, num_readings = packed.segment, sequence.request.plan.num_readings
        of_chunk = [[UNREAD] * num_readings for _ in range(segment.num_new)]
        for number in range(bisect_left(tokens, segment.start), bisect_left(tokens, segment.end)):
            read = values[number][:num_readings]
            of_chunk[tokens[number] - segment.start][: len(read)] = read
        results.append(of_chunk)
    return results


def _activations(
    packed: PackedChunk, rows_of_place: Mapping[Place, Iterator[Tensor]]
) -> dict[Place, dict[int, Tensor]]:
    """The chunk's activations; each place's rows come in the order of the chunks that capture there."""
    return {
        place: {position: next(rows_of_place[place]) for position in packed.captured} for place in packed.capture_places
    }
