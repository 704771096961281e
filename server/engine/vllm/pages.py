"""The pages of vLLM's KV cache: when two requests share one, and why new ones are zeroed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_utils import hash_block_tokens
from vllm.v1.kv_cache_interface import KVCacheConfig

from server.engine.vllm.live import LiveRequest


def block_hasher(live_of: Callable[[str], LiveRequest], block_size: int, algorithm: str) -> Callable[[Any], list[Any]]:
    """The hasher of requests' blocks: chained, of the tokens and of what steered them (`LiveRequest.span_key`).

    Where nothing was steered it is vLLM's own hash, so those blocks are everybody's.
    """
    hash_of = get_hash_fn_by_name(algorithm)

    def new_hashes(request: Any) -> list[Any]:
        live = live_of(request.request_id)
        hashes: list[Any] = []
        parent = request.block_hashes[-1] if request.block_hashes else None
        start = len(request.block_hashes) * block_size
        while start + block_size <= request.num_tokens:
            end = start + block_size
            parent = hash_block_tokens(hash_of, parent, request.all_token_ids[start:end], live.span_key(start, end))
            hashes.append(parent)
            start = end
        return hashes

    return new_hashes


def zero_new_blocks() -> None:
    """Have vLLM zero the blocks that a request gets, in this process.

    A block whose last request made NaN would spoil the next one: attention multiplies what it masks by 0.
    """
    KVCacheConfig.needs_kv_cache_zeroing = property(lambda self: True)
