"""Attention over **views** of the KV, in plain PyTorch: exact for every layer that the interface can describe.

A layer's KV is one tensor over all slots. A sequence's pages form few stretches of adjacent slots; each stretch is
attended to without copying it, and the parts are merged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from server.engine.attention.interface import (
    AttentionArguments,
    AttentionStep,
    LayerAttention,
    PagedAttention,
    Reach,
    Segment,
    groups_of_layers,
)
from server.engine.attention.partial import Attended, attend_part, distances, merge_parts, merge_rows


class StretchAttention(PagedAttention):
    """Keys and values of each layer, `[kv_heads, slots of its group, dim]`; the last slot takes what is not kept."""

    @classmethod
    def supports(cls, layers: Sequence[LayerAttention | None], dtype: torch.dtype, device: torch.device) -> bool:
        """True for all; see `PagedAttention.supports`."""
        return True

    def __init__(
        self,
        layers: Sequence[LayerAttention | None],
        *,
        num_pages: Sequence[int],
        page_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._num_slots = [number * page_size + 1 for number in num_pages]
        self._layers = tuple(layers)
        self._groups = groups_of_layers(layers)
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        for layer, group in zip(layers, self._groups, strict=True):
            if layer is not None and layer.shares is not None:
                self._keys.append(self._keys[layer.shares])
                self._values.append(self._values[layer.shares])
                continue
            heads, key_dim, value_dim = (layer.kv_heads, layer.key_dim, layer.value_dim) if layer else (0, 0, 0)
            num_slots = 0 if group is None else self._num_slots[group]
            keys = torch.zeros(heads, num_slots, key_dim, dtype=dtype, device=device)
            is_latent = layer is not None and layer.is_latent
            values = keys[..., :value_dim] if is_latent else keys.new_zeros(heads, num_slots, value_dim)
            self._keys.append(keys)
            self._values.append(values)

    def plan(self, segments: Sequence[Segment], slots: Sequence[Tensor]) -> AttentionStep:
        """See `PagedAttention.plan`."""
        if any(segment.is_branching for segment in segments):
            slots = [
                torch.where(own >= 0, own, num_slots - 1) for own, num_slots in zip(slots, self._num_slots, strict=True)
            ]
        return _StretchStep(self._layers, self._groups, self._keys, self._values, segments, slots)

    def close(self) -> None:
        """See `PagedAttention.close`."""
        self._keys, self._values = [], []


@dataclass(frozen=True, slots=True)
class _DecodeSpans:
    """How the decoding tokens of a step attend: each of `spans` is adjacent slots `[first, last)` and the rows
    (numbers of decoding tokens) that attend to all of them. `row_of_part` int64 `[parts]` lists the rows of all spans
    one after the other, or is None when every row has one span, in order, and nothing has to be merged."""

    spans: tuple[tuple[int, int, Tensor | slice], ...]
    row_of_part: Tensor | None


class _StretchStep(AttentionStep):
    """A step over the KV of `StretchAttention`: the tokens that decode are attended to together, chunks one by one."""

    def __init__(
        self,
        layers: Sequence[LayerAttention | None],
        groups: Sequence[int | None],
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
        segments: Sequence[Segment],
        slots: Sequence[Tensor],
    ) -> None:
        self._layers = layers
        self._groups = groups
        self._keys = keys
        self._values = values
        self._slots = slots
        self._decoding = [segment for segment in segments if segment.num_new == 1 and not segment.is_branching]
        self._chunks = [segment for segment in segments if segment.num_new > 1 or segment.is_branching]
        self._decode_tokens = self._on_device([segment.start for segment in self._decoding])
        self._spans: dict[tuple[int, Reach], _DecodeSpans] = {}

    def write(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """See `AttentionStep.write`."""
        about = self._about(layer)
        if about.shares is not None:
            return
        slots = self._slots[self._group(layer)]
        self._keys[layer].index_copy_(1, slots, keys)
        if not about.is_latent:
            self._values[layer].index_copy_(1, slots, values)

    def _about(self, layer: int) -> LayerAttention:
        about = self._layers[layer]
        assert about is not None, f"layer {layer} has no attention"
        return about

    def _group(self, layer: int) -> int:
        group = self._groups[layer]
        assert group is not None, f"layer {layer} has no attention"
        return group

    def attend(
        self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, arguments: AttentionArguments
    ) -> Tensor:
        """See `AttentionStep.attend`."""
        if not self._chunks:
            output, mass = self._attend_decoding(layer, queries, arguments)
        else:
            output = queries.new_empty(*queries.shape[:2], values.shape[-1])
            mass = torch.empty(queries.shape[:2], dtype=torch.float32, device=queries.device)
            if self._decoding:
                rows = queries.index_select(1, self._decode_tokens)
                decoded, decoded_mass = self._attend_decoding(layer, rows, arguments)
                output.index_copy_(1, self._decode_tokens, decoded)
                mass.index_copy_(1, self._decode_tokens, decoded_mass)
            for segment in self._chunks:
                own = slice(segment.start, segment.end)
                attend = self._attend_branches if segment.is_branching else self._attend_chunk
                output[:, own], mass[:, own] = attend(
                    layer, segment, queries[:, own], keys[:, own], values[:, own], arguments
                )
        if arguments.sinks is not None:
            share = torch.sigmoid(mass - arguments.sinks.to(torch.float32)[:, None])
            output = output * share.unsqueeze(-1).to(output.dtype)
        return output

    def _attend_slots(
        self,
        layer: int,
        first: int,
        last: int,
        queries: Tensor,
        arguments: AttentionArguments,
        mask: Tensor | None = None,
    ) -> Attended:
        """All of `queries` over the KV in slots `[first, last)`."""
        keys, values = self._keys[layer][:, first:last], self._values[layer][:, first:last]
        return attend_part(queries, keys, values, arguments.scale, arguments.softcap, mask)

    def _attend_decoding(self, layer: int, queries: Tensor, arguments: AttentionArguments) -> Attended:
        """All decoding tokens, `[heads, rows, dim]`: their KV is written; a window or chunk is a shorter view."""
        plan = self._decode_spans(self._group(layer), self._about(layer).reach)
        parts = [
            self._attend_slots(
                layer,
                first,
                last,
                queries[:, rows] if isinstance(rows, slice) else queries.index_select(1, rows),
                arguments,
            )
            for first, last, rows in plan.spans
        ]
        if len(parts) == 1 and plan.row_of_part is None:
            return parts[0]
        outputs = torch.cat([output for output, _ in parts], dim=1)
        masses = torch.cat([mass for _, mass in parts], dim=1)
        if plan.row_of_part is None:
            return outputs, masses
        return merge_rows(outputs, masses, plan.row_of_part, queries.shape[1])

    def _attend_chunk(
        self,
        layer: int,
        segment: Segment,
        queries: Tensor,
        new_keys: Tensor,
        new_values: Tensor,
        arguments: AttentionArguments,
    ) -> Attended:
        """A chunk of a prompt, `[heads, new, dim]`: its past by stretches, then itself, causally."""
        scale, softcap, reach = arguments.scale, arguments.softcap, self._about(layer).reach
        num_past, num_new = segment.num_past, segment.num_new
        parts = []
        kept = segment.stretches[self._group(layer)]
        offset = kept.start
        for first, last in kept.slots:
            num = min(last - first, num_past - offset)
            if num <= 0:
                break
            if reach.first_seen(num_past) < offset + num:
                mask = None
                if reach.first_seen(num_past + num_new - 1) > offset:
                    mask = _seen_by(reach, num_past, num_new, offset, num, queries.device)
                parts.append(self._attend_slots(layer, first, first + num, queries, arguments, mask))
            offset += num
        if reach.first_seen(num_past + num_new - 1) > num_past:
            mask = _seen_by(reach, num_past, num_new, num_past, num_new, queries.device)
            parts.append(attend_part(queries, new_keys, new_values, scale, softcap, mask))
        else:
            parts.append(attend_part(queries, new_keys, new_values, scale, softcap, is_causal=True))
        return merge_parts(parts)

    def _attend_branches(
        self,
        layer: int,
        segment: Segment,
        queries: Tensor,
        own_keys: Tensor,
        own_values: Tensor,
        arguments: AttentionArguments,
    ) -> Attended:
        """Branches, `[heads, new, dim]`, all at the position after the past: each sees the past and itself."""
        groups = queries.shape[0] // own_keys.shape[0]
        own = (queries.float() * own_keys.float().repeat_interleave(groups, 0)).sum(-1) * arguments.scale
        if arguments.softcap is not None:
            own = torch.tanh(own / arguments.softcap) * arguments.softcap
        parts = [(own_values.repeat_interleave(groups, 0), own)]
        kept = segment.stretches[self._group(layer)]
        for first, last in kept.since(self._about(layer).reach.first_seen(segment.num_past)):
            parts.append(self._attend_slots(layer, first, last, queries, arguments))
        return merge_parts(parts)

    def _decode_spans(self, group: int, reach: Reach) -> _DecodeSpans:
        """The spans of a layer of `group` that sees as far as `reach`; computed once per step.

        Tokens whose sequences share a stretch of pages attend to it together.
        """
        spans = self._spans.get((group, reach))
        if spans is None:
            spans = self._spans[group, reach] = self._find_spans(group, reach)
        return spans

    def _find_spans(self, group: int, reach: Reach) -> _DecodeSpans:
        rows_of: dict[tuple[int, int], list[int]] = {}
        for row, segment in enumerate(self._decoding):
            for stretch in segment.stretches[group].since(reach.first_seen(segment.num_past)):
                rows_of.setdefault(stretch, []).append(row)
        parts = [row for rows in rows_of.values() for row in rows]
        is_plain = parts == list(range(len(self._decoding)))
        spans = tuple(
            (
                first,
                last,
                slice(rows[0], rows[-1] + 1) if rows == list(range(rows[0], rows[-1] + 1)) else self._on_device(rows),
            )
            for (first, last), rows in rows_of.items()
        )
        return _DecodeSpans(spans, None if is_plain else self._on_device(parts))

    def _on_device(self, numbers: list[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int64, device=self._slots[0].device)


def _seen_by(
    reach: Reach, first_row: int, num_rows: int, first_column: int, num_columns: int, device: torch.device
) -> Tensor:
    """Which positions `[first_column, …)` the tokens at `[first_row, …)` see, bool `[rows, columns]`."""
    apart = distances(first_row, num_rows, first_column, num_columns, device)
    seen = apart >= 0
    if reach.window is not None:
        seen &= apart < reach.window
    if reach.chunk is not None:
        rows = torch.arange(first_row, first_row + num_rows, device=device)
        seen &= apart <= (rows % reach.chunk)[:, None]
    return seen
