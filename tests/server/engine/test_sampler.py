"""Sampling: every parameter per row, against transformers' own logits processors and against plain arithmetic."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from server.engine.request import SamplingParams
from server.engine.sampler import RowSampler, logprobs_of, sample

VOCABULARY = 40
NO_EOS: frozenset[int] = frozenset()


def logits_of(seed: int = 0) -> torch.Tensor:
    return torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 2


def drawn_distribution(params: SamplingParams, num_draws: int = 4000) -> Counter[int]:
    """What `num_draws` rows with seeds of their own draw from the same logits."""
    rows = [
        RowSampler(
            SamplingParams(
                temperature=params.temperature,
                top_p=params.top_p,
                top_k=params.top_k,
                min_p=params.min_p,
                seed=seed,
            ),
            NO_EOS,
            (),
        )
        for seed in range(num_draws)
    ]
    return Counter(sample(logits_of().expand(num_draws, -1), rows))


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=0.5),
        SamplingParams(temperature=1.3, top_k=5),
        SamplingParams(temperature=1.0, top_p=0.7),
        SamplingParams(temperature=0.9, min_p=0.2),
        SamplingParams(temperature=1.5, top_k=12, top_p=0.8),
    ],
    ids=repr,
)
def test_draws_follow_the_distribution_of_transformers(params: SamplingParams) -> None:
    nothing: Any = None  # the tokens before, which no warper looks at
    scores: Any = logits_of().unsqueeze(0)
    scores = TemperatureLogitsWarper(params.temperature)(nothing, scores)
    if params.min_p:
        scores = MinPLogitsWarper(params.min_p)(nothing, scores)
    if params.top_k:
        scores = TopKLogitsWarper(params.top_k)(nothing, scores)
    if params.top_p < 1:
        scores = TopPLogitsWarper(params.top_p)(nothing, scores)
    wanted = torch.softmax(scores[0], -1)
    drawn = drawn_distribution(params)
    assert all(wanted[token] > 0 for token in drawn), "a filtered token was drawn"
    num_draws = sum(drawn.values())
    for token in range(VOCABULARY):
        share, probability = drawn[token] / num_draws, float(wanted[token])
        deviation = math.sqrt(probability * (1 - probability) / num_draws)
        assert abs(share - probability) < 5 * deviation + 1e-4, token


def test_rows_of_a_mixed_batch_equal_the_same_rows_alone() -> None:
    def rows() -> list[RowSampler]:
        return [
            RowSampler(params, frozenset({3}), (1, 2, 5))
            for params in (
                SamplingParams(temperature=0.0),
                SamplingParams(temperature=0.7, seed=1),
                SamplingParams(temperature=1.0, seed=2, top_k=3),
                SamplingParams(temperature=1.0, seed=3, top_p=0.5),
                SamplingParams(temperature=1.0, seed=4, min_p=0.3, repetition_penalty=1.5),
                SamplingParams(temperature=0.0, presence_penalty=2.0, frequency_penalty=1.0),
                SamplingParams(temperature=0.0, logit_bias={7: 100.0}),
                SamplingParams(temperature=1.0, seed=5, min_tokens=30),
            )
        ]

    together, alone = rows(), rows()
    for step in range(20):
        logits = torch.stack([logits_of(100 * step + index) for index in range(len(together))])
        batch = sample(logits, together)
        assert batch == [sample(logits[index : index + 1], [row])[0] for index, row in enumerate(alone)]
        for token, rows_of_it in zip(batch, zip(together, alone, strict=True), strict=True):
            for row in rows_of_it:
                row.record(token)
        assert batch[6] == 7
        assert batch[7] != 3


def test_neighbours_change_no_draw_among_tied_tokens() -> None:
    """Logits in bfloat16 tie often, and how ties are ranked must not depend on what else is in the batch."""
    logits = torch.randn(1, 8000, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    neighbours = (SamplingParams(top_k=50), SamplingParams(top_p=0.9), SamplingParams(min_p=0.1, top_k=3))
    for seed in range(40):
        params = SamplingParams(top_k=20, top_p=0.95, seed=seed)
        (alone,) = sample(logits, [RowSampler(params, NO_EOS, ())])
        for neighbour in neighbours:
            rows = [RowSampler(neighbour, NO_EOS, ()), RowSampler(params, NO_EOS, ())]
            assert sample(logits.expand(2, -1), rows)[1] == alone


def tied_rows() -> torch.Tensor:
    """Logits of which many are equal, mostly the highest too."""
    return torch.randint(0, 6, (8, VOCABULARY), generator=torch.Generator().manual_seed(2)).float()


def ranking(logits: torch.Tensor) -> list[int]:
    """The tokens by logit, and those with equal ones by id."""
    return sorted(range(len(logits)), key=lambda token: (-float(logits[token]), token))


def drawn(logits: torch.Tensor, params: SamplingParams, num_draws: int = 200) -> set[int]:
    rows = [RowSampler(replace(params, seed=seed), NO_EOS, ()) for seed in range(num_draws)]
    return set(sample(logits.expand(num_draws, -1), rows))


def test_among_tied_tokens_the_lowest_id_ranks_first() -> None:
    """So what keeps one token is greedy, and `top_k` keeps as many tokens as it says."""
    for logits in tied_rows():
        ranked = ranking(logits)
        ties = {token for token in ranked if logits[token] == logits[ranked[0]]}
        for params in (
            SamplingParams(temperature=0.0),
            SamplingParams(temperature=2.0, top_k=1),
            SamplingParams(top_p=1e-12),
        ):
            assert drawn(logits, params, 20) == {ranked[0]}
        assert drawn(logits, SamplingParams(top_k=3, temperature=2.0)) == set(ranked[:3])
        assert drawn(logits, SamplingParams(top_k=3, top_p=0.999, temperature=2.0)) == set(ranked[:3])
        assert drawn(logits, SamplingParams(min_p=1.0, temperature=2.0)) == ties
        assert drawn(logits, SamplingParams(temperature=1e-5)) == ties


def test_top_p_keeps_the_smallest_beginning_of_the_ranking() -> None:
    logits = torch.zeros(8)
    for top_p, number in ((0.1, 1), (0.125, 1), (0.3, 3), (0.5, 4), (0.99, 8)):
        assert drawn(logits, SamplingParams(top_p=top_p)) == set(range(number))


def test_the_likeliest_tokens_are_in_the_order_of_the_ranking() -> None:
    logits = tied_rows()
    for number in (1, 5, VOCABULARY):
        for row, told in zip(logits, logprobs_of(logits, [0] * len(logits), [number] * len(logits)), strict=True):
            assert [token for token, _ in told.top] == ranking(row)[:number]


def test_penalties_equal_their_definitions() -> None:
    prompt, output = (1, 2, 2), [2, 9, 9]
    logits = logits_of(5)
    row = RowSampler(SamplingParams(temperature=0.0, repetition_penalty=1.7), NO_EOS, prompt)
    for token in output:
        row.record(token)
    adjusted = logits.clone()
    row.adjust(adjusted)
    reference = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([[*prompt, *output]]), logits.clone().unsqueeze(0))
    torch.testing.assert_close(adjusted, reference[0])

    row = RowSampler(SamplingParams(temperature=0.0, presence_penalty=0.5, frequency_penalty=0.25), NO_EOS, prompt)
    adjusted = logits.clone()
    row.adjust(adjusted)
    torch.testing.assert_close(adjusted, logits)  # the prompt does not count
    for token in output:
        row.record(token)
    row.adjust(adjusted)
    expected = logits.clone()
    expected[2] -= 0.5 + 0.25
    expected[9] -= 0.5 + 2 * 0.25
    torch.testing.assert_close(adjusted, expected)


def test_logprobs_are_of_the_untouched_logits() -> None:
    logits = torch.stack([logits_of(1), logits_of(2)])
    first, second = logprobs_of(logits, [5, 6], [0, 4])
    wanted = torch.log_softmax(logits, -1)
    assert first.logprob == pytest.approx(float(wanted[0, 5]))
    assert first.top == ()
    assert [token for token, _ in second.top] == wanted[1].topk(4).indices.tolist()
