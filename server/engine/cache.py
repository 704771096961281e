"""KV pages: which sequences hold them, where a sequence's next page goes, and which pages can be shared.

A page covers a fixed number of consecutive tokens of one sequence, in every layer of a group. Pages are numbers; what
holds their KV is in `attention/`. A sequence's pages are kept next to each other as far as possible, because attention
reads a stretch of adjacent pages as one view, without copying it.

The prefix cache: a full page is registered under a key that chains (tokens, steering) from the sequence's start, so
that KV computed under one steering is never read under another. Pages that no sequence holds stay registered until
room is needed; the least recently used go first.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from weakref import WeakValueDictionary

import numpy as np

from server.steering.plan import SteeringPlan, Zones
from vectors.vocabulary import Part

PageKey = bytes
"""Hash of everything that the KV of a page depends on."""

ROOT_KEY: PageKey = b""
"""The key before a sequence's first page."""


def page_key(
    parent: PageKey,
    tokens: Sequence[int],
    start: int,
    zones: Zones,
    parts: Sequence[Part] | None = None,
) -> PageKey:
    """Key of the page of `tokens` at positions `start …`, after the page with key `parent`.

    `zones` is its steering, `parts` those of the positions from the last prompt token on; see `Zones.runs`.
    """
    digest = hashlib.blake2b(parent, digest_size=20)
    digest.update(np.asarray(tokens, dtype=np.int64).tobytes())
    digest.update(zones.fingerprint_of_span(start, start + len(tokens), parts))
    return digest.digest()


class PromptKeys:
    """The keys of the pages that a prompt fills before its last token, made as they are asked for."""

    def __init__(self) -> None:
        self.known: list[PageKey] = []


class PromptKeysByPrompt:
    """Gives the sequences of one prompt and steering the same `PromptKeys`: a long prompt is hashed once for all."""

    def __init__(self) -> None:
        self._in_use: WeakValueDictionary[tuple[tuple[int, ...], bytes], PromptKeys] = WeakValueDictionary()

    def of(self, prompt: tuple[int, ...], plan: SteeringPlan) -> PromptKeys:
        """Those of `prompt` under `plan`, as long as somebody holds them."""
        return self._in_use.setdefault((prompt, plan.prompt_fingerprint), PromptKeys())


class PagePool:
    """All pages of one group. Every page is free, held by one or more sequences, or idle (registered, unheld).

    `on_evict` is told the key of a page that can no longer be shared.
    """

    def __init__(
        self, num_pages: int, *, prefix_cache: bool = True, on_evict: Callable[[PageKey], None] | None = None
    ) -> None:
        self.num_pages = num_pages
        self._on_evict = on_evict
        self._prefix_cache = prefix_cache
        self._is_free = np.ones(num_pages, dtype=bool)
        self._num_free = num_pages
        self._num_holders = np.zeros(num_pages, dtype=np.int32)
        self._key_of: dict[int, PageKey] = {}
        self._page_of: dict[PageKey, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()

    def has(self, key: PageKey) -> bool:
        """True when a page is registered under `key`."""
        return key in self._page_of

    @property
    def num_available(self) -> int:
        """Pages that a sequence could get now: the free and the idle ones."""
        return self._num_free + len(self._idle)

    def allocate(self, after: int | None) -> int | None:
        """Take one page, if possible the one right after page `after`; None when every page is held."""
        if self._num_free == 0 and not self._evict():
            return None
        if after is not None and after + 1 < self.num_pages and self._is_free[after + 1]:
            page = after + 1
        else:
            page = self._start_of_new_stretch()
        self._is_free[page] = False
        self._num_free -= 1
        self._num_holders[page] = 1
        return page

    def share(self, key: PageKey) -> int | None:
        """Take the page registered under `key`, if there is one."""
        page = self._page_of.get(key)
        if page is None:
            return None
        self._idle.pop(page, None)
        self._num_holders[page] += 1
        return page

    def register(self, page: int, key: PageKey) -> None:
        """Offer a full, computed page to others. The first page registered under a key stays the shared one."""
        if self._prefix_cache and key not in self._page_of and page not in self._key_of:
            self._page_of[key] = page
            self._key_of[page] = key

    def release(self, pages: Sequence[int]) -> None:
        """Give back one hold on each of a sequence's pages, in the sequence's order."""
        for page in reversed(pages):  # the deepest page becomes the least recently used
            self._num_holders[page] -= 1
            assert self._num_holders[page] >= 0
            if self._num_holders[page] == 0:
                if page in self._key_of:
                    self._idle[page] = None
                else:
                    self._free(page)

    def _free(self, page: int) -> None:
        self._is_free[page] = True
        self._num_free += 1

    def _evict(self) -> bool:
        """Free an eighth of the idle pages, oldest first: a batch at a time leaves longer free stretches."""
        if not self._idle:
            return False
        for _ in range(max(1, len(self._idle) // 8)):
            page, _ = self._idle.popitem(last=False)
            key = self._key_of.pop(page)
            del self._page_of[key]
            if self._on_evict is not None:
                self._on_evict(key)
            self._free(page)
        return True

    def _start_of_new_stretch(self) -> int:
        """The middle of the longest free stretch, so that the sequence before it and this one can both grow."""
        edges = np.flatnonzero(np.diff(self._is_free, prepend=False, append=False))
        starts, ends = edges[0::2], edges[1::2]
        longest = int(np.argmax(ends - starts))
        start, end = int(starts[longest]), int(ends[longest])
        if start == 0:
            return start
        return start + (end - start) // 2
