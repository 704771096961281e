"""What a mask function says is recognised at any distance, from transformers' own functions and others."""

from __future__ import annotations

import pytest
import torch
from transformers import masking_utils

from server.engine.attention.interface import Reach
from server.engine.masks import CAUSAL, MaskFunction, recognise

CPU = torch.device("cpu")
_NO_PADDING = torch.zeros(1, dtype=torch.int64)


@pytest.mark.parametrize("size", [1, 2, 7, 512, 4096, 8192])
@pytest.mark.parametrize("context", [10_000, 131_072])
def test_windows_and_chunks_are_recognised(size: int, context: int) -> None:
    assert recognise(masking_utils.sliding_window_causal_mask_function(size), context, CPU) == Reach(window=size)
    if size > 1:  # chunks of one are windows of one
        assert recognise(masking_utils.chunked_causal_mask_function(size, _NO_PADDING), context, CPU) == Reach(
            chunk=size
        )


@pytest.mark.parametrize(
    "function",
    [
        masking_utils.causal_mask_function,
        masking_utils.sliding_window_causal_mask_function(1000),
        masking_utils.chunked_causal_mask_function(1000, _NO_PADDING),
    ],
)
def test_a_limit_that_the_context_does_not_reach_is_none(function: MaskFunction) -> None:
    assert recognise(function, 1000, CPU) == CAUSAL


@pytest.mark.parametrize(
    "function",
    [
        masking_utils.bidirectional_mask_function,
        masking_utils.sliding_window_bidirectional_mask_function(9),
        masking_utils.or_masks(
            masking_utils.causal_mask_function, lambda batch, head, query, key: (query < 5) & (key < 5)
        ),
    ],
)
def test_sight_of_later_tokens_is_recognised(function: MaskFunction) -> None:
    sight = recognise(function, 1000, CPU)
    assert isinstance(sight, str)
    assert "bidirectional" in sight


def test_any_other_mask_is_told_from_those_that_are_served() -> None:
    sparse = masking_utils.and_masks(
        masking_utils.causal_mask_function, lambda batch, head, query, key: (query - key) % 3 == 0
    )
    shifted = masking_utils.and_masks(
        masking_utils.causal_mask_function, lambda batch, head, query, key: (query + 2) // 8 == (key + 2) // 8
    )
    for function in (sparse, shifted):
        sight = recognise(function, 1000, CPU)
        assert isinstance(sight, str)
        assert "neither causal" in sight
