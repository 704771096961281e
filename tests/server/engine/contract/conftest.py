"""Each test of the contract is run on every engine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from server.engine.engine import BatchingEngine
from server.engine.protocol import Engine
from tests.server.engine.contract.engines import ENGINES, MakeEngine
from tests.server.engine.driving import assert_nothing_held

_OUTSIDE = (pytest.mark.vllm, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(1200))
"""For vLLM, which has an environment of its own, warns a lot, and takes its time to start."""


REFUSED: Mapping[str, frozenset[str]] = {
    "vllm": frozenset(
        {
            "test_each_score_equals_a_plain_hook",
            "test_reading_changes_nothing",
            "test_a_prompt_is_read_where_nothing_is_generated",
            "test_several_directions_at_a_layer_equal_a_plain_hook",
            "test_forced_tokens_have_all_log_probabilities_where_they_are_asked_for",
        }
    )
}
"""By engine: the tests of what it refuses, each by name; see docs/engines.md and `tests/vllm`."""


@pytest.fixture(params=[pytest.param(name, marks=_OUTSIDE if name == "vllm" else ()) for name in ENGINES])
def make(request: pytest.FixtureRequest) -> Iterator[MakeEngine]:
    """Makes engines, which are closed in the end and hold nothing then."""
    if request.function.__name__ in REFUSED.get(request.param, ()):
        pytest.skip(f"--engine {request.param} refuses this")
    with contextlib.ExitStack() as made:

        def make_one(**limits: Any) -> Engine:
            engine = ENGINES[request.param](**limits)
            if isinstance(engine, BatchingEngine):
                made.callback(assert_nothing_held, engine)
            made.callback(engine.close)
            return engine

        yield make_one


@pytest.fixture
def engine(make: MakeEngine) -> Engine:
    """One with room for everything."""
    return make()
