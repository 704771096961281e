"""All pages of one engine: a pool for each group of layers, and the prefixes from which a new sequence can start.

Layers with a sliding window or chunks see only the latest tokens, so their sequences return pages as they advance and
their pools are smaller. A sequence can start from a prefix if each pool has the pages that are seen after it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from server.engine.attention.interface import Reach
from server.engine.cache import PageKey, PagePool, PromptKeysByPrompt
from server.engine.recurrent.slots import StateSlots


def most_pages(reach: Reach, num_tokens: int, *, max_chunk: int, page_size: int) -> int:
    """The most pages that a sequence of `num_tokens`, computed in chunks of at most `max_chunk`, holds at a time."""
    num_pages = -(-num_tokens // page_size)
    if reach.num_tokens is None:
        return num_pages
    return min(num_pages, -(-(reach.num_tokens + max_chunk) // page_size) + 1)


class KVPages:
    """A pool of `num_pages` pages of `page_size` tokens for each group of layers; `reaches`: how far the groups see.

    `max_chunk`: the most tokens of a sequence in one step. `states`: the slots of a model with recurrent layers.
    """

    def __init__(
        self,
        reaches: Sequence[Reach],
        num_pages: Sequence[int],
        page_size: int,
        *,
        max_chunk: int,
        prefix_cache: bool = True,
        states: StateSlots | None = None,
    ) -> None:
        self.reaches = tuple(reaches)
        self.page_size = page_size
        self.shares_prefixes = prefix_cache
        self.states = states
        self.prompt_keys = PromptKeysByPrompt()
        self.pools = tuple(
            PagePool(number, prefix_cache=prefix_cache, on_evict=None if states is None or group > 0 else states.forget)
            for group, number in enumerate(num_pages)
        )
        self._max_chunk = max_chunk

    def max_tokens(self, limit: int) -> int:
        """The most tokens, up to `limit`, of a sequence that fits when it is alone."""
        return min(
            self._max_tokens_of(reach, pool, limit) for reach, pool in zip(self.reaches, self.pools, strict=True)
        )

    def _max_tokens_of(self, reach: Reach, pool: PagePool, limit: int) -> int:
        needed = most_pages(reach, limit, max_chunk=self._max_chunk, page_size=self.page_size)
        return limit if needed <= pool.num_pages else pool.num_pages * self.page_size

    def first_seen_page(self, group: int, num_pages: int) -> int:
        """The first page that the layers of `group` see from the token after the first `num_pages` pages."""
        return self.reaches[group].first_seen(num_pages * self.page_size) // self.page_size

    def has(self, key: PageKey) -> bool:
        """True when the page of `key` can be shared by the layers that see farthest."""
        return self.pools[0].has(key)

    def num_matching(self, key_of_page: Callable[[int], PageKey], limit: int) -> int:
        """At most how many pages, up to `limit`, of a prefix have been computed, although not all may be left."""
        if self.reaches[0].num_tokens is not None:
            return limit
        num_pages = 0
        while num_pages < limit and self.has(key_of_page(num_pages)):
            num_pages += 1
        return num_pages

    def num_cached(self, key_of_page: Callable[[int], PageKey], limit: int) -> int:
        """Pages of the longest prefix, up to `limit`, that a sequence can start from; if there are states, also these.

        `key_of_page` gives the key of a page of the sequence by its number.
        """
        num_pages = self.num_matching(key_of_page, limit)
        while num_pages > 0:
            if self.states is not None and not self.states.has(key_of_page(num_pages - 1)):
                num_pages -= 1
                continue
            missing = self._last_missing(key_of_page, num_pages)
            if missing is None:
                break
            num_pages = missing  # between the two, the layers would see the missing page too
        return num_pages

    def _last_missing(self, key_of_page: Callable[[int], PageKey], num_pages: int) -> int | None:
        """The last page that is seen after the first `num_pages` and is not there; None when all are."""
        for group, pool in enumerate(self.pools):
            if self.reaches[group].num_tokens is None:
                continue
            for index in reversed(range(self.first_seen_page(group, num_pages), num_pages)):
                if not pool.has(key_of_page(index)):
                    return index
        return None
