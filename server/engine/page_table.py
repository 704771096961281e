"""The pages that one sequence holds: for each group of layers those that its layers can still see."""

from __future__ import annotations

from collections.abc import Callable

from server.engine.attention.interface import Stretches
from server.engine.cache import PageKey
from server.engine.kv_pages import KVPages


class PageTable:
    """The pages of a sequence in one pool, from page `first` of the sequence on, and the stretches they form."""

    def __init__(self, page_size: int) -> None:
        self.pages: list[int] = []
        self.first = 0
        self._page_size = page_size
        self._stretches: list[list[int]] = []

    @property
    def end(self) -> int:
        """How many pages of the sequence there are, with those that were dropped."""
        return self.first + len(self.pages)

    def append(self, page: int) -> None:
        """Add the sequence's next page."""
        self.pages.append(page)
        if self._stretches and sum(self._stretches[-1]) == page:
            self._stretches[-1][1] += 1
        else:
            self._stretches.append([page, 1])

    def drop_before(self, first: int) -> list[int]:
        """Take out the pages before page `first` of the sequence; returns them in order."""
        num_dropped = max(0, min(first, self.end) - self.first)
        dropped = self.pages[:num_dropped]
        del self.pages[:num_dropped]
        self.first += num_dropped
        while num_dropped > 0:
            num_pages = min(num_dropped, self._stretches[0][1])
            self._stretches[0][0] += num_pages
            self._stretches[0][1] -= num_pages
            num_dropped -= num_pages
            if self._stretches[0][1] == 0:
                del self._stretches[0]
        return dropped

    def clear(self, first: int = 0) -> list[int]:
        """Take out all pages, so that the next one is page `first`; returns them in order."""
        pages, self.pages, self._stretches, self.first = self.pages, [], [], first
        return pages

    def stretches(self, num_tokens: int) -> Stretches:
        """The slots of the sequence's first `num_tokens` tokens, as far as they are held."""
        start = self.first * self._page_size
        num_left = num_tokens - start
        slots = []
        for first_page, num_pages in self._stretches:
            length = min(num_pages * self._page_size, num_left)
            if length <= 0:
                break
            first = first_page * self._page_size
            slots.append((first, first + length))
            num_left -= length
        return Stretches(tuple(slots), start)


class SequencePages:
    """The tables of one sequence, one for each pool of `kv`. `num_offered`: full pages that others may share."""

    def __init__(self, kv: KVPages) -> None:
        self._kv = kv
        self.tables = tuple(PageTable(kv.page_size) for _ in kv.pools)
        self.num_offered = 0

    def share(self, keys: list[PageKey]) -> None:
        """Hold what the layers see after the pages of `keys`, which `KVPages.num_cached` has found. Nothing is held."""
        assert not any(table.pages for table in self.tables)
        for group, (pool, table) in enumerate(zip(self._kv.pools, self.tables, strict=True)):
            table.clear(self._kv.first_seen_page(group, len(keys)))
            for key in keys[table.first :]:
                page = pool.share(key)
                assert page is not None
                table.append(page)
        self.num_offered = len(keys)

    def reserve(self, num_tokens: int) -> bool:
        """Hold pages for the first `num_tokens` tokens; when a pool has too few, take none and return False."""
        num_pages = -(-num_tokens // self._kv.page_size)
        pools = list(zip(self._kv.pools, self.tables, strict=True))
        if any(num_pages - table.end > pool.num_available for pool, table in pools):
            return False
        for pool, table in pools:
            while table.end < num_pages:
                page = pool.allocate(table.pages[-1] if table.pages else None)
                assert page is not None
                table.append(page)
        return True

    def advance(self, num_tokens: int, key_of_page: Callable[[int], PageKey]) -> None:
        """Offer the pages that the first `num_tokens` tokens fill, and return those that no later token sees."""
        page_size = self._kv.page_size
        while (self.num_offered + 1) * page_size <= num_tokens:
            key = key_of_page(self.num_offered)
            for pool, table in zip(self._kv.pools, self.tables, strict=True):
                pool.register(table.pages[self.num_offered - table.first], key)
            self.num_offered += 1
        for group, (pool, table) in enumerate(zip(self._kv.pools, self.tables, strict=True)):
            first = self._kv.reaches[group].first_seen(num_tokens) // page_size
            if first > table.first:
                pool.release(table.drop_before(first))

    def release(self) -> None:
        """Return every page."""
        for pool, table in zip(self._kv.pools, self.tables, strict=True):
            pool.release(table.clear())
        self.num_offered = 0

    def stretches(self, num_tokens: int) -> tuple[Stretches, ...]:
        """The slots of the first `num_tokens` tokens in each group, as far as they are held."""
        return tuple(table.stretches(num_tokens) for table in self.tables)
