"""FairQueue: what waits, whose owners take turns, so that nobody waits for all that another has queued."""

from __future__ import annotations

import itertools
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

Waiting = TypeVar("Waiting")


class FairQueue(Generic[Waiting]):
    """What waits, in the order in which it starts: round robin over owners, of whom each keeps its order.

    Used by one thread, except for the numbers.
    """

    def __init__(self, owner_of: Callable[[Waiting], str]) -> None:
        self._owner_of = owner_of
        self._by_owner: OrderedDict[str, deque[Waiting]] = OrderedDict()
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def has_room_for(self, owner: str, most: int, submitted: Sequence[str] = ()) -> bool:
        """True when `owner` may queue one more, beside those that the owners `submitted` did not queue yet.

        A queue of `most` is full, and takes only what is of an owner who has less than a fair share of it.
        """
        if self._length + len(submitted) < most:
            return True
        num_owners = len(self._by_owner) + len({*submitted, owner})
        return len(self._by_owner.get(owner, ())) + submitted.count(owner) < most // num_owners

    @property
    def firsts(self) -> Iterator[Waiting]:
        """The first of each owner, in the order of their turns."""
        return (waiting[0] for waiting in self._by_owner.values())

    def __iter__(self) -> Iterator[Waiting]:
        turns = itertools.chain.from_iterable(itertools.zip_longest(*self._by_owner.values()))
        return (each for each in turns if each is not None)

    def peek(self, index: int) -> Waiting | None:
        """What is at `index` of the order; None when there is less."""
        return next(itertools.islice(self.firsts if index < len(self._by_owner) else self, index, None), None)

    def add(self, waiting: Waiting) -> None:
        """Queue something new."""
        self._by_owner.setdefault(self._owner_of(waiting), deque()).append(waiting)
        self._length += 1

    def put_back(self, waiting: Waiting) -> None:
        """Queue what had started; it is the first to start again."""
        owner = self._owner_of(waiting)
        self._by_owner.setdefault(owner, deque()).appendleft(waiting)
        self._by_owner.move_to_end(owner, last=False)
        self._length += 1

    def take(self, waiting: Waiting) -> None:
        """Remove what starts; what else its owner has waits until all other owners had a turn."""
        self.remove(waiting)
        owner = self._owner_of(waiting)
        if owner in self._by_owner:
            self._by_owner.move_to_end(owner)

    def remove(self, waiting: Waiting) -> None:
        """Remove what waits, wherever it is."""
        owner = self._owner_of(waiting)
        left = self._by_owner[owner]
        left.remove(waiting)
        if not left:
            del self._by_owner[owner]
        self._length -= 1
