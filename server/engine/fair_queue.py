"""FairQueue: waiting requests, whose owners take turns, so that nobody waits for all that another has queued."""

from __future__ import annotations

import itertools
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from typing import Generic, Protocol, TypeVar

from server.engine.request import EngineRequest


class Queued(Protocol):
    """What waits in a queue: whatever an engine makes of a request."""

    @property
    def request(self) -> EngineRequest: ...


_Queued = TypeVar("_Queued", bound=Queued)


class FairQueue(Generic[_Queued]):
    """Sequences in the order in which they start: round robin over the owners of their requests.

    An owner's sequences keep their order. Used only by the engine's thread, except for the numbers.
    """

    def __init__(self) -> None:
        self._by_owner: OrderedDict[str, deque[_Queued]] = OrderedDict()
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def num_of(self, owner: str) -> int:
        """How many sequences of `owner` wait."""
        return len(self._by_owner.get(owner, ()))

    @property
    def num_owners(self) -> int:
        """How many owners have sequences that wait."""
        return len(self._by_owner)

    def has_room_for(self, owner: str, submitted: Sequence[str], max_queue: int) -> bool:
        """True when `owner` may queue another request, beside those that the owners `submitted` did not queue yet.

        A full queue takes requests of an owner who has less than a fair share of it.
        """
        if len(self) + len(submitted) < max_queue:
            return True
        num_owners = self.num_owners + len({*submitted, owner})
        return self.num_of(owner) + submitted.count(owner) < max_queue // num_owners

    @property
    def firsts(self) -> Iterator[_Queued]:
        """The first sequence of each owner, in the order of their turns."""
        return (waiting[0] for waiting in self._by_owner.values())

    def __iter__(self) -> Iterator[_Queued]:
        turns = itertools.chain.from_iterable(itertools.zip_longest(*self._by_owner.values()))
        return (each for each in turns if each is not None)

    def peek(self, index: int) -> _Queued | None:
        """The sequence at `index` of the order; None when there are fewer."""
        return next(itertools.islice(self.firsts if index < len(self._by_owner) else self, index, None), None)

    def add(self, sequence: _Queued) -> None:
        """Queue a new sequence."""
        self._by_owner.setdefault(sequence.request.owner, deque()).append(sequence)
        self._length += 1

    def put_back(self, sequence: _Queued) -> None:
        """Queue a sequence that had started; it is the first to start again."""
        owner = sequence.request.owner
        self._by_owner.setdefault(owner, deque()).appendleft(sequence)
        self._by_owner.move_to_end(owner, last=False)
        self._length += 1

    def take(self, sequence: _Queued) -> None:
        """Remove a sequence that starts; its owner's next one waits until all other owners had a turn."""
        self.remove(sequence)
        if sequence.request.owner in self._by_owner:
            self._by_owner.move_to_end(sequence.request.owner)

    def remove(self, sequence: _Queued) -> None:
        """Remove a sequence, wherever it is."""
        waiting = self._by_owner[sequence.request.owner]
        waiting.remove(sequence)
        if not waiting:
            del self._by_owner[sequence.request.owner]
        self._length -= 1
