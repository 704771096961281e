"""Attention over paged KV, as the function that transformers calls in place of its own.

The model runs on packed batches `[1, tokens]`: the new tokens of several sequences, one after the other. For each
layer the function writes the new keys and values into the KV tensors and attends, sequence by sequence, over
**views** of the KV: a sequence's pages form few stretches of adjacent slots, each stretch is attended to without
copying it, and the parts are merged by their log-sum-exp (exact, as in flash decoding).

Honoured of a family's own: scaling, sliding windows, logit soft-capping, attention sinks. What is not known here
raises instead of being dropped. It does not know requests, pages or steering.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

ATTENTION_NAME = "tiller_paged"

_HARMLESS_ARGUMENTS = frozenset(
    {
        "dropout", "position_ids", "use_cache", "output_attentions", "output_hidden_states", "is_causal",
        "cache_position", "output_router_logits", "position_embeddings", "logits_to_keep", "layer_idx",
        "past_key_values",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Segment:
    """The new tokens of one sequence in a step: pack positions `[start, end)`, after `num_past` tokens in the KV.

    `stretches` are the slots `[first, last)` that hold the past **and** the new tokens, in order. New tokens that are
    branching see the past and themselves, none of the others, and are not kept: `stretches` hold the past only.
    """

    start: int
    end: int
    num_past: int
    stretches: tuple[tuple[int, int], ...]
    is_branching: bool = False

    @property
    def num_new(self) -> int:
        """How many tokens this step adds."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class DecodeSpans:
    """How the decoding tokens of a step attend: each of `spans` is adjacent slots `[first, last)` and the rows
    (numbers of decoding tokens) that attend to all of them. `row_of_part` int64 `[parts]` lists the rows of all spans
    one after the other, or is None when every row has one span, in order, so that nothing is to be merged."""

    spans: tuple[tuple[int, int, Tensor | slice], ...]
    row_of_part: Tensor | None


def _is_decoding(segment: Segment) -> bool:
    return segment.num_new == 1 and not segment.is_branching


class AttentionStep:
    """What the attention of one forward pass works on.

    `keys[layer]` and `values[layer]` are `[kv_heads, slots, head_dim]`; `slots` int64 `[tokens]` says where each new
    token goes that is kept. Without KV (`keys` empty) the step is a probe: no segment has a past, nothing is written.
    `calls` lists the layers that called; a probe notes each layer's `shapes` (kv_heads, key_dim, value_dim) and
    `windows` (tokens, or None).
    """

    def __init__(
        self, segments: Sequence[Segment], slots: Tensor, keys: Sequence[Tensor] = (), values: Sequence[Tensor] = ()
    ) -> None:
        self.slots = slots
        self.keys = keys
        self.values = values
        self.calls: list[int] = []
        self.shapes: dict[int, tuple[int, int, int]] = {}
        self.windows: dict[int, int | None] = {}
        self.decoding = [segment for segment in segments if _is_decoding(segment) and keys]
        self.chunks = [segment for segment in segments if not _is_decoding(segment) or not keys]
        kept = [range(segment.start, segment.end) for segment in segments if not segment.is_branching]
        self.kept: Tensor | None = None
        if len(kept) < len(segments):
            self.kept = self._on_device([token for tokens in kept for token in tokens])
        self.decode_tokens = torch.tensor([segment.start for segment in self.decoding], device=slots.device)
        self._spans: dict[int | None, DecodeSpans] = {}

    def decode_spans(self, window: int | None) -> DecodeSpans:
        """The spans under a sliding window of that many tokens (None: all); made once a step.

        Tokens whose sequences share a stretch of pages attend to it together.
        """
        spans = self._spans.get(window)
        if spans is None:
            spans = self._spans[window] = self._find_spans(window)
        return spans

    def _find_spans(self, window: int | None) -> DecodeSpans:
        rows_of: dict[tuple[int, int], list[int]] = {}
        for row, segment in enumerate(self.decoding):
            skip = max(0, segment.num_past + 1 - window) if window is not None else 0
            for first, last in segment.stretches:
                if skip < last - first:
                    rows_of.setdefault((first + skip, last), []).append(row)
                skip = max(0, skip - (last - first))
        parts = [row for rows in rows_of.values() for row in rows]
        is_plain = parts == list(range(len(self.decoding)))
        spans = tuple(
            (
                first,
                last,
                slice(rows[0], rows[-1] + 1) if rows == list(range(rows[0], rows[-1] + 1)) else self._on_device(rows),
            )
            for (first, last), rows in rows_of.items()
        )
        return DecodeSpans(spans, None if is_plain else self._on_device(parts))

    def _on_device(self, numbers: list[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int64, device=self.slots.device)


_current: ContextVar[AttentionStep | None] = ContextVar("tiller_attention_step", default=None)


@contextmanager
def attention_step(step: AttentionStep) -> Iterator[None]:
    """Make `step` the one that the attention function works on; does not nest."""
    assert _current.get() is None, "a step is already under way"
    token = _current.set(step)
    try:
        yield
    finally:
        _current.reset(token)


def paged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """The attention function: query `[1, heads, tokens, dim]`, key and value `[1, kv_heads, tokens, dim]`.

    Returns `[1, tokens, heads, dim]`. `s_aux`: one sink logit a head. Raises `NotImplementedError` naming an
    argument that it does not know.
    """
    step = _current.get()
    if step is None:
        raise RuntimeError("this model belongs to a tiller engine; only its steps can run it")
    if attention_mask is not None:
        raise NotImplementedError("the model passes an attention mask of its own, which paged attention lacks")
    for name, argument in others.items():
        if argument is not None and name not in _HARMLESS_ARGUMENTS:
            raise NotImplementedError(f"the model passes {name!r} to its attention, which paged attention lacks")
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    step.calls.append(layer)
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    new_keys, new_values = key[0], value[0]
    if step.keys:
        kept = step.kept
        step.keys[layer].index_copy_(1, step.slots, new_keys if kept is None else new_keys.index_select(1, kept))
        step.values[layer].index_copy_(1, step.slots, new_values if kept is None else new_values.index_select(1, kept))
    else:
        step.shapes[layer] = (key.shape[1], key.shape[-1], value.shape[-1])
        step.windows[layer] = sliding_window
    queries = query[0]  # [heads, tokens, dim]
    decoded = None
    if step.decoding:
        rows = queries.index_select(1, step.decode_tokens) if step.chunks else queries
        decoded = _attend_decoding(rows, step, layer, scale, sliding_window, softcap)
    if decoded is not None and not step.chunks:
        output, mass = decoded
    else:
        output = queries.new_empty(*queries.shape[:2], value.shape[-1])
        mass = torch.empty(queries.shape[:2], dtype=torch.float32, device=queries.device)
        if decoded is not None:
            output.index_copy_(1, step.decode_tokens, decoded[0])
            mass.index_copy_(1, step.decode_tokens, decoded[1])
        for segment in step.chunks:
            own = slice(segment.start, segment.end)
            output[:, own], mass[:, own] = _attend_chunk(
                queries[:, own],
                new_keys[:, own],
                new_values[:, own],
                step,
                layer,
                segment,
                scale,
                sliding_window,
                softcap,
            )
    if s_aux is not None:
        output = output * torch.sigmoid(mass - s_aux.to(torch.float32)[:, None]).unsqueeze(-1).to(output.dtype)
    return output.transpose(0, 1).unsqueeze(0), None


Attended = tuple[Tensor, Tensor]
"""Outputs `[heads, rows, dim]` and their log-sum-exp, float32 `[heads, rows]`."""


def _attend_decoding(
    queries: Tensor, step: AttentionStep, layer: int, scale: float, window: int | None, softcap: float | None
) -> Attended:
    """All decoding tokens, `[heads, rows, dim]`: their KV is already written, a window is a shorter view."""
    plan = step.decode_spans(window)
    keys, values = step.keys[layer], step.values[layer]
    parts = [
        _attend(
            queries[:, rows] if isinstance(rows, slice) else queries.index_select(1, rows),
            keys[:, first:last],
            values[:, first:last],
            scale,
            softcap,
        )
        for first, last, rows in plan.spans
    ]
    if len(parts) == 1 and plan.row_of_part is None:
        return parts[0]
    outputs = torch.cat([output for output, _ in parts], dim=1)
    masses = torch.cat([mass for _, mass in parts], dim=1)
    if plan.row_of_part is None:
        return outputs, masses
    return _merge_rows(outputs, masses, plan.row_of_part, queries.shape[1])


def _merge_rows(outputs: Tensor, masses: Tensor, row_of_part: Tensor, num_rows: int) -> Attended:
    """`_merge` for parts of many rows at once: part p belongs to row `row_of_part[p]`."""
    rows = row_of_part.expand(masses.shape[0], -1)
    highest = masses.new_full((masses.shape[0], num_rows), -torch.inf).scatter_reduce_(1, rows, masses, "amax")
    weights = torch.exp(masses - highest.gather(1, rows))
    total = torch.zeros_like(highest).index_add_(1, row_of_part, weights)
    merged = weights.new_zeros(masses.shape[0], num_rows, outputs.shape[-1])
    merged.index_add_(1, row_of_part, outputs.to(torch.float32) * weights.unsqueeze(-1))
    return (merged / total.unsqueeze(-1)).to(outputs.dtype), highest + total.log()


def _attend_chunk(
    queries: Tensor,
    new_keys: Tensor,
    new_values: Tensor,
    step: AttentionStep,
    layer: int,
    segment: Segment,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Attended:
    """A chunk of a prompt, `[heads, new, dim]`: its past by stretches, then itself, causally."""
    num_past, num_new = segment.num_past, segment.num_new
    if segment.is_branching:
        return _attend_branches(queries, new_keys, new_values, step, layer, segment, scale, window, softcap)
    parts = []
    offset = 0
    for first, last in segment.stretches:
        num = min(last - first, num_past - offset)
        if num <= 0:
            break
        mask = None
        if window is not None and num_past + num_new - offset > window:
            mask = _distances(num_past, num_new, offset, num, queries.device) < window
        if mask is None or bool(mask.any()):
            view = slice(first, first + num)
            keys, values = step.keys[layer][:, view], step.values[layer][:, view]
            parts.append(_attend(queries, keys, values, scale, softcap, mask))
        offset += num
    if window is not None and num_new > window:
        distances = _distances(0, num_new, 0, num_new, queries.device)
        mask = (distances >= 0) & (distances < window)
        parts.append(_attend(queries, new_keys, new_values, scale, softcap, mask))
    else:
        parts.append(_attend(queries, new_keys, new_values, scale, softcap, is_causal=True))
    return parts[0] if len(parts) == 1 else _merge(parts)


def _attend_branches(
    queries: Tensor,
    own_keys: Tensor,
    own_values: Tensor,
    step: AttentionStep,
    layer: int,
    segment: Segment,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Attended:
    """Branches, `[heads, new, dim]`, all at the position after the past: each sees the past and itself."""
    groups = queries.shape[0] // own_keys.shape[0]
    own = (queries.float() * own_keys.float().repeat_interleave(groups, 0)).sum(-1) * scale
    if softcap is not None:
        own = torch.tanh(own / softcap) * softcap
    parts = [(own_values.repeat_interleave(groups, 0), own)]
    skip = max(0, segment.num_past + 1 - window) if window is not None else 0
    for first, last in segment.stretches:
        if skip < last - first:
            view = slice(first + skip, last)
            parts.append(_attend(queries, step.keys[layer][:, view], step.values[layer][:, view], scale, softcap))
        skip = max(0, skip - (last - first))
    return parts[0] if len(parts) == 1 else _merge(parts)


def _distances(first_row: int, num_rows: int, first_column: int, num_columns: int, device: torch.device) -> Tensor:
    """How far each column's position lies before each row's, `[rows, columns]`."""
    rows = torch.arange(first_row, first_row + num_rows, device=device)
    columns = torch.arange(first_column, first_column + num_columns, device=device)
    return rows[:, None] - columns[None, :]


def _attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    scale: float,
    softcap: float | None,
    mask: Tensor | None = None,
    *,
    is_causal: bool = False,
) -> Attended:
    """Attention of `[heads, rows, dim]` over `[kv_heads, n, dim]`; heads share KV in groups, in order.

    `mask` bool `[rows, n]`, True where attended to; `is_causal` needs rows == n. A row that attends to nothing gets a
    finite output of no weight.
    """
    if softcap is None and queries.shape[-1] == values.shape[-1] and queries.device.type == "cpu":
        bias = None
        if mask is not None:
            bias = torch.zeros(mask.shape, dtype=queries.dtype).masked_fill_(~mask, torch.finfo(queries.dtype).min)
            bias = bias[None, None]
        output, mass = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            queries.unsqueeze(0),
            keys.unsqueeze(0),
            values.unsqueeze(0),
            is_causal=is_causal,
            attn_mask=bias,
            scale=scale,
        )
        return output[0], mass[0]
    if is_causal:
        mask = _distances(0, queries.shape[1], 0, keys.shape[1], queries.device) >= 0
    grouped = queries.reshape(keys.shape[0], -1, *queries.shape[1:])  # [kv_heads, groups, rows, dim]
    logits = torch.matmul(grouped, keys.transpose(-1, -2).unsqueeze(1)).to(torch.float32) * scale
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    if mask is not None:
        logits = logits.masked_fill(~mask, torch.finfo(torch.float32).min)
    mass = torch.logsumexp(logits, dim=-1)
    weights = torch.exp(logits - mass.unsqueeze(-1)).to(values.dtype)
    return torch.matmul(weights, values.unsqueeze(1)).flatten(0, 1), mass.flatten(0, 1)


def _merge(parts: list[Attended]) -> Attended:
    """Attention over the union of disjoint parts, from each part's output and log-sum-exp."""
    masses = torch.stack([mass for _, mass in parts])
    total = torch.logsumexp(masses, dim=0)
    weights = torch.exp(masses - total).unsqueeze(-1)
    merged = sum(weight * output.to(torch.float32) for weight, (output, _) in zip(weights, parts, strict=True))
    assert isinstance(merged, Tensor)
    return merged.to(parts[0][0].dtype), total


AttentionInterface.register(ATTENTION_NAME, paged_attention)
