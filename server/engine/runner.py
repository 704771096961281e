"""One step's tensors: packs the chunks, runs the model once, hands back logits and activations.

The only place that calls the model. It owns the KV tensors and the steering hooks; it does not know queues, why a
chunk was chosen, or what becomes of the logits.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from server.engine.attention.stretches import AttentionStep, attention_step
from server.engine.model import LoadedModel
from server.engine.scheduler import Chunk
from server.steering.bank import SteeringBank
from server.steering.hooks import ActivationHooks, StepActivations
from vectors.vocabulary import Place


@dataclass(frozen=True, slots=True)
class ChunkResult:
    """What a step computed for one chunk.

    `next_logits`: `[vocabulary]` after the chunk's last token, when the chunk is the sequence's last.
    `known_logits`: `[n, vocabulary]`, the logits that score known tokens, from the sequence's
    `next_logprob_position` on. `activations`: `{(site, layer): {position: float32 [hidden]}}` on the CPU.
    `is_finite`: False when the model gave NaN or infinity for one of the logits' rows, by too strong a steering, say.
    `branch_logits`: `[n, vocabulary]` of a chunk of branches, whose rows need not be finite.
    """

    chunk: Chunk
    next_logits: Tensor | None
    known_logits: Tensor | None
    activations: dict[Place, dict[int, Tensor]]
    is_finite: bool
    branch_logits: Tensor | None = None


_NO_SLOTS = np.empty(0, dtype=np.int64)


class Runner:
    """Runs steps on one model with KV tensors for `num_slots` tokens."""

    def __init__(self, model: LoadedModel, bank: SteeringBank, num_slots: int) -> None:
        self._model = model
        self._bank = bank
        self._device = model.device
        self._hooks = ActivationHooks(model.sites, bank)
        self._keys = [
            torch.zeros(heads, num_slots, key_dim, dtype=model.dtype, device=model.device)
            for heads, key_dim, _ in model.kv_shapes
        ]
        self._values = [
            torch.zeros(heads, num_slots, value_dim, dtype=model.dtype, device=model.device)
            for heads, _, value_dim in model.kv_shapes
        ]

    def close(self) -> None:
        """Take the hooks off the model and drop the KV."""
        self._hooks.close()
        self._keys, self._values = [], []

    @torch.inference_mode()
    def run(self, chunks: Sequence[Chunk]) -> list[ChunkResult]:
        """Compute `chunks`, whose pages are reserved and rows acquired. Does not change the sequences."""
        starts = [0, *np.cumsum([chunk.num_new for chunk in chunks]).tolist()]
        tokens: list[int] = []
        positions: list[np.ndarray] = []
        segments, slots = [], []
        for chunk, start in zip(chunks, starts, strict=False):
            sequence = chunk.sequence
            first, last = sequence.num_computed, sequence.num_computed + chunk.num_new
            segment = sequence.segment(start, chunk.num_new)
            segments.append(segment)
            if segment.is_branching:
                tokens.extend(sequence.tokens[-1:] * chunk.num_new)
                positions.append(np.full(chunk.num_new, first))
                continue
            tokens.extend(sequence.tokens[first:last])
            positions.append(np.arange(first, last))
            stretches = np.concatenate([np.arange(*stretch) for stretch in segment.stretches])
            slots.append(stretches[first:last])
        wanted = [_wanted_logits(chunk) for chunk in chunks]
        rows_wanted = [start + row for start, rows in zip(starts, wanted, strict=False) for row in rows]
        activations = self._activations(chunks, starts)
        step = AttentionStep(segments, self._to_device(np.concatenate([_NO_SLOTS, *slots])), self._keys, self._values)
        with attention_step(step), self._hooks.step(activations):
            logits = self._model.forward(
                self._to_device(np.asarray(tokens)),
                self._to_device(np.concatenate(positions)),
                self._to_device(np.asarray(rows_wanted, dtype=np.int64)),
            )
        return self._split(chunks, wanted, logits, activations)

    def _to_device(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)).to(self._device)

    def _activations(self, chunks: Sequence[Chunk], starts: Sequence[int]) -> StepActivations:
        activations = StepActivations()
        if not self._bank.is_idle:
            row_of_token = np.concatenate([_rows_of(chunk) for chunk in chunks])
            if row_of_token.any():
                activations.row_of_token = self._to_device(row_of_token)
                low_rank = [row for row in np.unique(row_of_token) if self._bank.has_low_rank(int(row))]
                if low_rank:
                    activations.low_rank_tokens = self._to_device(np.flatnonzero(np.isin(row_of_token, low_rank)))
        indices: dict[Place, list[int]] = {}
        for chunk, start in zip(chunks, starts, strict=False):
            spec = chunk.sequence.wanted.capture
            if spec is not None:
                offset = start - chunk.sequence.num_computed
                tokens = [offset + position for position in _positions_captured(chunk)]
                for place in itertools.product(spec.sites, spec.layers):
                    indices.setdefault(place, []).extend(tokens)
        activations.captures = {
            place: self._to_device(np.asarray(wanted)) for place, wanted in indices.items() if wanted
        }
        return activations

    def _split(
        self,
        chunks: Sequence[Chunk],
        wanted: Sequence[list[int]],
        logits: Tensor,
        activations: StepActivations,
    ) -> list[ChunkResult]:
        captured = {place: tensor.cpu() for place, tensor in activations.captured.items()}
        taken: dict[Place, int] = dict.fromkeys(captured, 0)
        is_finite = torch.isfinite(logits.amax(dim=-1)).tolist()
        results = []
        offset = 0
        for chunk, rows in zip(chunks, wanted, strict=True):
            own = slice(offset, offset + len(rows))
            of_chunk = logits[own]
            offset += len(rows)
            if chunk.sequence.is_branching:
                results.append(ChunkResult(chunk, None, None, {}, True, branch_logits=of_chunk))
                continue
            has_next = chunk.is_last and bool(rows) and rows[-1] == chunk.num_new - 1
            known = of_chunk[:-1] if has_next else of_chunk
            found: dict[Place, dict[int, Tensor]] = {}
            spec = chunk.sequence.wanted.capture
            if spec is not None:
                positions = _positions_captured(chunk)
                for place in itertools.product(spec.sites, spec.layers) if positions else ():
                    first = taken[place]
                    taken[place] = first + len(positions)
                    found[place] = {
                        position: captured[place][first + index] for index, position in enumerate(positions)
                    }
            next_logits, known_logits = of_chunk[-1] if has_next else None, known if len(known) else None
            results.append(ChunkResult(chunk, next_logits, known_logits, found, all(is_finite[own])))
        return results


def _rows_of(chunk: Chunk) -> np.ndarray:
    """The bank row of each of the chunk's tokens."""
    sequence = chunk.sequence
    first, last = sequence.num_computed, sequence.num_computed + chunk.num_new
    assert sequence.rows is not None
    if sequence.is_branching:
        return np.asarray(sequence.rows.branches[sequence.next_branches][: chunk.num_new], dtype=np.int64)
    boundary = sequence.num_prompt - 1
    rows = np.full(chunk.num_new, sequence.rows.response["content"], dtype=np.int64)
    rows[: max(0, min(last, boundary) - first)] = sequence.rows.prompt
    if sequence.parts is not None:
        for position in range(max(first, boundary), last):
            rows[position - first] = sequence.rows.response[sequence.parts[position - boundary]]
    if first <= boundary < last:
        part = "content" if sequence.parts is None else sequence.parts[0]
        rows[boundary - first] = sequence.rows.boundary[part]
    return rows


def _wanted_logits(chunk: Chunk) -> list[int]:
    """Offsets within the chunk whose logits are wanted, ascending; the last one chooses the next token.

    The position before the first sampled token scores nothing known, so it comes once, at the end.
    """
    sequence = chunk.sequence
    if sequence.wanted.branches:
        return list(range(chunk.num_new)) if sequence.is_branching else []
    first, last = sequence.num_computed, sequence.num_computed + chunk.num_new
    known = range(max(first, sequence.next_logprob_position), min(last, sequence.num_known - 1))
    offsets = [position - first for position in known]
    if chunk.is_last and sequence.needs_next_logits:
        offsets.append(chunk.num_new - 1)
    return offsets


def _positions_captured(chunk: Chunk) -> list[int]:
    """The chunk's positions whose activations are wanted and not there yet, in ascending order."""
    sequence = chunk.sequence
    first, last = sequence.num_computed, sequence.num_computed + chunk.num_new
    wanted = {position for position in sequence.capture_positions if first <= position < last}
    return sorted(wanted - sequence.captured_positions)
