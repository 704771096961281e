"""Each test of the contract is run on every engine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from server.engine.engine import BatchingEngine
from server.engine.protocol import Engine
from tests.server.engine.contract.engines import ENGINES, MakeEngine
from tests.server.engine.driving import assert_nothing_held

_OUTSIDE = (pytest.mark.vllm, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(1200))
"""For vLLM, which has an environment of its own, warns a lot, and takes its time to start."""


@pytest.fixture(params=[pytest.param(name, marks=_OUTSIDE if name == "vllm" else ()) for name in ENGINES])
def make(request: pytest.FixtureRequest) -> Iterator[MakeEngine]:
    """Makes engines, which are closed in the end and hold nothing then."""
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
