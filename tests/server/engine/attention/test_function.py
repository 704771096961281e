"""The function handed to transformers: it passes on what families ask, and refuses what nobody would honour."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from server.engine.attention.function import attention_step, paged_attention
from server.engine.attention.interface import AttentionStep, LayerAttention, Segment, Stretches
from server.engine.attention.stretches import StretchAttention

TOKENS = 3


class Layer(nn.Module):
    """All that the function reads of a layer's module."""

    layer_idx = 0


def step() -> AttentionStep:
    attention = StretchAttention(
        [LayerAttention(2, 8, 8)], num_pages=[1], page_size=4, dtype=torch.float32, device=torch.device("cpu")
    )
    return attention.plan([Segment(0, TOKENS, 0, (Stretches(((0, TOKENS),)),))], [torch.arange(TOKENS)])


def call(mask: torch.Tensor | None = None, **arguments: Any) -> torch.Tensor:
    torch.manual_seed(0)
    query = torch.randn(1, 4, TOKENS, 8)
    key, value = torch.randn(2, 1, 2, TOKENS, 8)
    return paged_attention(Layer(), query, key, value, mask, **arguments)[0]


def test_each_argument_counts_and_a_missing_scale_is_the_usual_one() -> None:
    with attention_step(step()):
        plain = call()
        assert plain.shape == (1, TOKENS, 4, 8)
        assert torch.equal(call(scaling=8**-0.5), plain)
        changes: tuple[dict[str, Any], ...] = (
            {"scaling": 1.0},
            {"softcap": 0.5},
            {"s_aux": torch.ones(4)},
        )
        for change in changes:
            assert not torch.allclose(call(**change), plain), change


def test_what_is_not_known_is_refused_and_what_changes_nothing_is_not() -> None:
    with attention_step(step()):
        with pytest.raises(NotImplementedError, match="'alibi'"):
            call(alibi=torch.ones(4))
        with pytest.raises(NotImplementedError, match="an attention mask"):
            call(torch.zeros(1, 1, TOKENS, TOKENS))
        assert torch.equal(call(alibi=None, dropout=0.0, is_causal=True), call())


def test_an_attention_without_a_block_of_its_own_is_refused() -> None:
    class Shared(nn.Module):
        layer_idx = None

    tensor = torch.randn(1, 2, TOKENS, 8)
    with attention_step(step()), pytest.raises(NotImplementedError, match="Shared does not say which block it belongs"):
        paged_attention(Shared(), tensor, tensor, tensor, None)


def test_a_model_runs_only_in_a_step() -> None:
    with pytest.raises(RuntimeError, match="can only be run by it"):
        call()
