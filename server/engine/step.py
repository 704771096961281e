"""A step's host work: turns its chunks into the numpy arrays for the model and its attention.

Tokens are packed: those of the first chunk, then those of the second, and so on. No device is involved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from server.engine.attention.interface import NO_SLOT, Segment
from server.engine.branches import BranchRows
from server.engine.scheduler import Chunk
from server.steering.bank import SteeringBank
from vectors.vocabulary import Place

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class PackedChunk:
    """A chunk's place in the pack, and the outputs wanted from it.

    `segment` is its tokens. `wanted`: those whose logits are wanted, as indices into the pack, ascending; `has_next`:
    True when the last of these logits are the next token's. `captured`: positions in the sequence whose activations
    are captured, ascending, at each of `capture_places`. `branch_rows`: what its rows are if it is branching.
    """

    chunk: Chunk
    segment: Segment
    wanted: Sequence[int]
    has_next: bool
    captured: Sequence[int]
    capture_places: Sequence[Place]
    branch_rows: BranchRows | None = None


@dataclass(frozen=True, slots=True)
class StepBatch:
    """The input of one forward pass. Arrays are int64; token indices are positions in the pack.

    `tokens`, `positions` and `slots` `[tokens]`: each token's id, its position in its sequence, and for each group of
    pages the KV slot that it goes to (`NO_SLOT` if it is not kept). `wanted` `[rows]`: indices of the tokens whose
    logits are wanted, chunk by chunk. `row_of_token` `[tokens]`: rows of the steering bank; None when no token is
    steered. `slot_tokens`: indices of the tokens whose row has slots; None when there are none.
    `captures`: indices of the tokens to capture at each place.

    `entries` `[tokens]`: the point of `EntryPoints` at which each token enters; None when all compute every block.
    `vocabulary`: the tokens whose logits are wanted, ascending; None when others may be.
    """

    chunks: Sequence[PackedChunk]
    tokens: Int64Array
    positions: Int64Array
    slots: Sequence[Int64Array]
    wanted: Int64Array
    row_of_token: Int64Array | None
    slot_tokens: Int64Array | None
    captures: Mapping[Place, Int64Array]
    entries: Int64Array | None
    vocabulary: Int64Array | None

    @property
    def segments(self) -> list[Segment]:
        """The chunks' segments, in order."""
        return [packed.segment for packed in self.chunks]


def pack_step(chunks: Sequence[Chunk], bank: SteeringBank) -> StepBatch:
    """Pack `chunks`, whose pages are reserved and whose rows are held in `bank`. Does not change the sequences."""
    packed: list[PackedChunk] = []
    num_tokens = 0
    for chunk in chunks:
        packed.append(_place(chunk, num_tokens))
        num_tokens += chunk.num_new
    tokens = np.empty(num_tokens, dtype=np.int64)
    positions = np.empty(num_tokens, dtype=np.int64)
    for chunk, segment in ((entry.chunk, entry.segment) for entry in packed):
        own = slice(segment.start, segment.end)
        first, last = segment.num_past, segment.num_past + segment.num_new
        if segment.is_branching:
            tokens[own] = chunk.sequence.tokens[-1]
            positions[own] = first
        else:
            tokens[own] = chunk.sequence.tokens[first:last]
            positions[own] = np.arange(first, last)
    row_of_token = _steered_rows(packed, num_tokens, bank)
    return StepBatch(
        chunks=packed,
        tokens=tokens,
        positions=positions,
        slots=_slots([entry.segment for entry in packed], num_tokens),
        wanted=np.array([token for entry in packed for token in entry.wanted], dtype=np.int64),
        row_of_token=row_of_token,
        slot_tokens=None if row_of_token is None else _slot_tokens(row_of_token, bank),
        captures=_captures(packed),
        entries=_entries(packed, num_tokens),
        vocabulary=_vocabulary(packed),
    )


def _slots(segments: Sequence[Segment], num_tokens: int) -> list[Int64Array]:
    """For each group of pages, the slot of every token."""
    slots = [np.full(num_tokens, NO_SLOT, dtype=np.int64) for _ in segments[0].stretches]
    for segment in segments:
        if not segment.is_branching:
            for own, stretches in zip(slots, segment.stretches, strict=True):
                new = [np.arange(*stretch) for stretch in stretches.since(segment.num_past)]
                own[segment.start : segment.end] = np.concatenate(new)
    return slots


def _place(chunk: Chunk, start: int) -> PackedChunk:
    """`chunk` at `start` of the pack."""
    sequence = chunk.sequence
    segment = sequence.segment(start, chunk.num_new)
    if segment.is_branching:
        rows = sequence.branches.next(chunk.num_new)
        return PackedChunk(chunk, segment, range(start + rows.has_base, segment.end), False, (), (), rows)
    first, last = segment.num_past, segment.num_past + segment.num_new
    # the position before the first sampled token scores nothing known, so it comes once, at the end
    known = range(max(first, sequence.next_logprob_position), min(last, sequence.num_known - 1))
    wanted = [start + position - first for position in known]
    has_next = chunk.is_last and sequence.needs_next_logits
    if has_next:
        wanted.append(segment.end - 1)
    captured = sorted(position for position in sequence.missing_captures if first <= position < last)
    return PackedChunk(chunk, segment, wanted, has_next, captured, sequence.capture_places if captured else ())


def _captures(packed: Sequence[PackedChunk]) -> dict[Place, Int64Array]:
    indices: dict[Place, list[int]] = {}
    for entry in packed:
        offset = entry.segment.start - entry.segment.num_past
        for place in entry.capture_places:
            indices.setdefault(place, []).extend(offset + position for position in entry.captured)
    return {place: np.array(tokens, dtype=np.int64) for place, tokens in indices.items()}


def _entries(packed: Sequence[PackedChunk], num_tokens: int) -> Int64Array | None:
    if not any(entry.branch_rows is not None and entry.branch_rows.has_base for entry in packed):
        return None
    entries = np.zeros(num_tokens, dtype=np.int64)
    for entry in packed:
        if entry.branch_rows is not None:
            entries[entry.segment.start : entry.segment.end] = entry.branch_rows.entries
    return entries


def _vocabulary(packed: Sequence[PackedChunk]) -> Int64Array | None:
    """Branches are compared by the logits of a few tokens; everything else needs those of all."""
    if any(entry.wanted and entry.branch_rows is None for entry in packed):
        return None
    named = {entry.chunk.sequence.wanted.next_token_ids for entry in packed if entry.wanted}
    return np.array(sorted(set().union(*named)), dtype=np.int64) if named else None


def _steered_rows(packed: Sequence[PackedChunk], num_tokens: int, bank: SteeringBank) -> Int64Array | None:
    """The bank row of every token; None when all are 0."""
    if bank.is_idle:
        return None
    rows = np.empty(num_tokens, dtype=np.int64)
    for entry in packed:
        rows[entry.segment.start : entry.segment.end] = _rows_of(entry)
    return rows if rows.any() else None


def _rows_of(packed: PackedChunk) -> Int64Array:
    """The bank row of each of the chunk's tokens."""
    sequence, segment = packed.chunk.sequence, packed.segment
    assert sequence.rows is not None
    if packed.branch_rows is None:
        return sequence.rows.of_tokens(segment.num_past, segment.num_past + segment.num_new, sequence.parts)
    base = sequence.rows.of_tokens(segment.num_past, segment.num_past + packed.branch_rows.has_base, None)
    return np.array([*base, *(sequence.rows.branches[branch] for branch in packed.branch_rows.branches)])


def _slot_tokens(row_of_token: Int64Array, bank: SteeringBank) -> Int64Array | None:
    with_slots = [row for row in np.unique(row_of_token).tolist() if bank.has_slots(row)]
    return np.flatnonzero(np.isin(row_of_token, with_slots)) if with_slots else None
