"""Which tokens `positions` covers, counted out as the documents say it."""

from __future__ import annotations

import pytest

from vectors.positions import Phase, coverage_of
from vectors.vocabulary import POSITIONS, Positions

NUM_PROMPT, NUM_TOKENS = 3, 6
COVERED: dict[Positions, set[int]] = {"prompt": {0, 1, 2}, "response": {2, 3, 4, 5}, "all": {0, 1, 2, 3, 4, 5}}


@pytest.mark.parametrize("positions", POSITIONS)
def test_covers_the_tokens_that_the_documents_name(positions: Positions) -> None:
    phases = [
        Phase.PROMPT if token < NUM_PROMPT - 1 else Phase.BOUNDARY if token == NUM_PROMPT - 1 else Phase.RESPONSE
        for token in range(NUM_TOKENS)
    ]
    assert {token for token, phase in enumerate(phases) if coverage_of(positions).covers(phase)} == COVERED[positions]
