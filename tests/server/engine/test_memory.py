"""The plan of an engine's memory adds up to what there is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from server.engine.memory import plan_memory
from server.engine.refusal import ModelRefused
from tests.server.engine.driving import loaded

GIB = 2**30


@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3_next", "falcon_h1"])
@pytest.mark.parametrize("max_running", [1, 7, 64])
@pytest.mark.parametrize("kv_cache_gib", [None, 0.003, 0.05])
def test_all_that_is_planned_fits_and_holds_a_context(
    family: str, max_running: int, kv_cache_gib: float | None
) -> None:
    model = loaded(family)
    free = 64 * 2**20
    plan = plan_memory(
        model,
        kv_cache_gib=kv_cache_gib,
        free_bytes=free,
        max_running=max_running,
        max_batch_tokens=32,
        page_size=16,
    )
    num_pages = (plan.num_pages, *plan.num_window_pages)
    num_bytes = sum(16 * number * size for number, size in zip(num_pages, model.kv_bytes_per_token, strict=True))
    num_bytes += (max_running + 1 + plan.num_snapshots) * model.states.num_bytes
    assert num_bytes <= (free // 2 if kv_cache_gib is None else kv_cache_gib * GIB)
    assert plan.num_pages * 16 >= model.info.max_model_len
    assert (plan.num_snapshots > 0) is bool(model.states)
    assert plan.num_snapshots <= max_running


def test_states_that_do_not_fit_are_refused_with_the_way_out() -> None:
    model = loaded("falcon_h1")
    with pytest.raises(
        ModelRefused, match=r"states of 4096 running sequences and one more need .* decrease --max-running"
    ):
        plan_memory(model, kv_cache_gib=0.001, free_bytes=GIB, max_running=4096, max_batch_tokens=32, page_size=16)


def test_a_context_that_does_not_fit_is_refused_with_the_way_out() -> None:
    model = loaded()
    model = replace(model, info=replace(model.info, max_model_len=10**9))
    with pytest.raises(ModelRefused, match="decrease --max-model-len"):
        plan_memory(model, kv_cache_gib=1.0, free_bytes=GIB, max_running=1, max_batch_tokens=32, page_size=16)
