"""Attention over parts of the KV, and the exact merge of the parts by their log-sum-exp, as in flash decoding."""

from __future__ import annotations

import torch
from torch import Tensor

Attended = tuple[Tensor, Tensor]
"""Outputs `[heads, rows, dim]` and their log-sum-exp, float32 `[heads, rows]`."""


def attend_part(
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
    finite output with no weight.
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
        mask = distances(0, queries.shape[1], 0, keys.shape[1], queries.device) >= 0
    grouped = queries.reshape(keys.shape[0], -1, *queries.shape[1:])  # [kv_heads, groups, rows, dim]
    logits = torch.matmul(grouped, keys.transpose(-1, -2).unsqueeze(1)).to(torch.float32) * scale
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    if mask is not None:
        logits = logits.masked_fill(~mask, torch.finfo(torch.float32).min)
    mass = torch.logsumexp(logits, dim=-1)
    weights = torch.exp(logits - mass.unsqueeze(-1)).to(values.dtype)
    return torch.matmul(weights, values.unsqueeze(1)).flatten(0, 1), mass.flatten(0, 1)


def merge_parts(parts: list[Attended]) -> Attended:
    """Attention over the union of disjoint parts, from each part's output and log-sum-exp."""
    if len(parts) == 1:
        return parts[0]
    masses = torch.stack([mass for _, mass in parts])
    total = torch.logsumexp(masses, dim=0)
    weights = torch.exp(masses - total).unsqueeze(-1)
    merged = sum(weight * output.to(torch.float32) for weight, (output, _) in zip(weights, parts, strict=True))
    assert isinstance(merged, Tensor)
    return merged.to(parts[0][0].dtype), total


def merge_rows(outputs: Tensor, masses: Tensor, row_of_part: Tensor, num_rows: int) -> Attended:
    """`merge_parts` for many rows at once: outputs `[heads, parts, dim]`, masses `[heads, parts]`, and part p belongs
    to row `row_of_part[p]` of `num_rows`."""
    rows = row_of_part.expand(masses.shape[0], -1)
    highest = masses.new_full((masses.shape[0], num_rows), -torch.inf).scatter_reduce_(1, rows, masses, "amax")
    weights = torch.exp(masses - highest.gather(1, rows))
    total = torch.zeros_like(highest).index_add_(1, row_of_part, weights)
    merged = weights.new_zeros(masses.shape[0], num_rows, outputs.shape[-1])
    merged.index_add_(1, row_of_part, outputs.to(torch.float32) * weights.unsqueeze(-1))
    return (merged / total.unsqueeze(-1)).to(outputs.dtype), highest + total.log()


def distances(first_row: int, num_rows: int, first_column: int, num_columns: int, device: torch.device) -> Tensor:
    """How far each column's position lies before each row's, int64 `[rows, columns]`."""
    rows = torch.arange(first_row, first_row + num_rows, device=device)
    columns = torch.arange(first_column, first_column + num_columns, device=device)
    return rows[:, None] - columns[None, :]
