"""A training that waits for its engine hears that it is to stop, and takes its requests back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from server.training.engine_view import EngineView
from tests.server.engine.driving import assert_nothing_held, engine_of, loaded, prompt_of
from vectors.cancellation import Cancelled
from vectors.training.model_view import Continuations

PROMPTS = [prompt_of(9, seed) for seed in range(20)]

WORK: dict[str, Callable[[EngineView], Iterator[Any]]] = {
    "activations": lambda view: view.activations(PROMPTS, ["residual"]),
    "next tokens": lambda view: view.next_token_logits(PROMPTS, [(1, 2)] * len(PROMPTS), [()]),
    "continuations": lambda view: view.continuation_logprobs(
        Continuations(prompt, ((1, 2), (3,))) for prompt in PROMPTS
    ),
}


@pytest.mark.parametrize("name", WORK)
def test_a_view_that_waits_for_a_busy_engine_stops_and_leaves_it_nothing(name: str) -> None:
    """The engine, which is not started, gives no result."""
    engine = engine_of(loaded())
    num_asked = 0

    def is_cancelled() -> bool:
        nonlocal num_asked
        num_asked += 1
        return num_asked > len(PROMPTS) + 3

    text: Any = SimpleNamespace(has_chat_template=False)
    with pytest.raises(Cancelled):
        next(WORK[name](EngineView(engine, text, is_cancelled)))
    assert not engine.step()
    assert engine.stats().total_requests >= len(PROMPTS)
    assert_nothing_held(engine)
    engine.close()
