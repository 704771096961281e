"""Plans the memory of an engine: its pages of KV, and for recurrent layers how many snapshots of their states."""

from __future__ import annotations

from dataclasses import dataclass

from server.engine.kv_pages import most_pages
from server.engine.model import LoadedModel
from server.engine.refusal import ModelRefused

_GIB = 2**30


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What fits: `num_pages` of KV for the layers that see farthest, `num_window_pages` for each further group of
    `LoadedModel.page_groups`, and `num_snapshots` beside the states of all running sequences."""

    num_pages: int
    num_window_pages: tuple[int, ...]
    num_snapshots: int


def plan_memory(
    model: LoadedModel,
    *,
    kv_cache_gib: float | None,
    free_bytes: int,
    max_running: int,
    max_batch_tokens: int,
    page_size: int,
) -> MemoryPlan:
    """Divide `kv_cache_gib` or, if that is None, what `max_running` full contexts need within half of `free_bytes`.

    Recurrent layers have a state for each of `max_running` sequences and the one that is due, and up to `max_running`
    snapshots if these take at most a quarter of what is left. Windows and chunks have pages for `max_running` sequences
    and as many more in the prefix cache, but at most half of what is then left, unless one sequence needs more. The
    layers that see farthest take the rest. Raises `ModelRefused` when the states or one full context do not fit.
    """
    budget = free_bytes // 2 if kv_cache_gib is None else int(kv_cache_gib * _GIB)
    bytes_per_state = model.states.num_bytes
    num_states = max_running + 1
    left = budget - num_states * bytes_per_state
    if left < 0:
        raise ModelRefused(
            f"the recurrent states of {max_running} running sequences and one more need "
            f"{num_states * bytes_per_state / _GIB:.2f} "
            f"GiB, but the KV cache has {budget / _GIB:.2f} GiB; decrease --max-running or increase --kv-cache-gib"
        )
    num_snapshots = min(max_running, left // 4 // bytes_per_state) if bytes_per_state else 0
    left -= num_snapshots * bytes_per_state
    context = model.info.max_model_len
    bytes_per_page, *bytes_of_windows = (number * page_size for number in model.kv_bytes_per_token)
    alone = [most_pages(reach, context, max_chunk=max_batch_tokens, page_size=page_size) for reach in model.page_groups]
    beside = [most_pages(reach, context, max_chunk=1, page_size=page_size) for reach in model.page_groups]
    wanted = [2 * max_running * others + one for one, others in zip(alone, beside, strict=True)]
    if model.page_groups[0].num_tokens is None:
        wanted[0] = max_running * alone[0]
    num_window_pages: tuple[int, ...] = ()
    if bytes_of_windows:
        most = min(wanted[0], left // 2 // sum(bytes_of_windows), left // (bytes_per_page + sum(bytes_of_windows)))
        num_window_pages = tuple(max(one, min(most, all_)) for one, all_ in zip(alone[1:], wanted[1:], strict=True))
    num_pages = wanted[0]
    if bytes_per_page > 0:
        for_windows = sum(number * size for number, size in zip(num_window_pages, bytes_of_windows, strict=True))
        num_fitting = max(0, left - for_windows) // bytes_per_page
        num_pages = num_fitting if kv_cache_gib is not None else min(num_pages, num_fitting)
    if num_pages < alone[0]:
        raise ModelRefused(
            f"the KV cache holds {num_pages * page_size} tokens, but one context needs {alone[0] * page_size}; "
            "increase --kv-cache-gib or decrease --max-model-len"
        )
    return MemoryPlan(num_pages, num_window_pages, num_snapshots)
