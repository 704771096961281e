"""Plans the memory of an engine: how many pages of KV, and for recurrent layers how many snapshots of their states."""

from __future__ import annotations

from dataclasses import dataclass

from server.engine.model import LoadedModel
from server.engine.refusal import ModelRefused

_GIB = 2**30


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What fits: `num_pages` of KV, and `num_snapshots` beside the states of all running sequences."""

    num_pages: int
    num_snapshots: int


def plan_memory(
    model: LoadedModel, *, kv_cache_gib: float | None, free_bytes: int, max_running: int, page_size: int
) -> MemoryPlan:
    """Divide `kv_cache_gib` or, if that is None, what `max_running` full contexts need within half of `free_bytes`.

    Recurrent layers have a state for each of `max_running` sequences, and as many snapshots if these take at most a
    quarter of what is left. Pages take the rest. Raises `ModelRefused` when the states or one full context do not fit.
    """
    budget = free_bytes // 2 if kv_cache_gib is None else int(kv_cache_gib * _GIB)
    bytes_per_state = model.states.num_bytes
    left = budget - max_running * bytes_per_state
    if left < 0:
        raise ModelRefused(
            f"the recurrent states of {max_running} running sequences need {max_running * bytes_per_state / _GIB:.2f} "
            f"GiB, but the KV cache has {budget / _GIB:.2f} GiB; decrease --max-running or increase --kv-cache-gib"
        )
    num_snapshots = min(max_running, left // 4 // bytes_per_state) if bytes_per_state else 0
    bytes_per_page = model.kv_bytes_per_token * page_size
    pages_per_context = -(-model.info.max_model_len // page_size)
    num_pages = max_running * pages_per_context
    if bytes_per_page > 0:
        num_fitting = (left - num_snapshots * bytes_per_state) // bytes_per_page
        num_pages = num_fitting if kv_cache_gib is not None else min(num_pages, num_fitting)
    if num_pages < pages_per_context:
        raise ModelRefused(
            f"the KV cache holds {num_pages * page_size} tokens, but one context needs {model.info.max_model_len}; "
            "increase --kv-cache-gib or decrease --max-model-len"
        )
    return MemoryPlan(num_pages, num_snapshots)
