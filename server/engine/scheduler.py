"""Chooses the sequences of the next step, and how many tokens of each. It uses no tensors.

Continuous batching: a step takes one token of every decoding sequence, then chunks of prompts, until its token
budget is spent. Live requests come before background ones, the owners of requests take turns, and an owner's older
requests come before younger ones. When all places are taken, an owner who has none gets one of another's. When pages
run out, the youngest of the least urgent gives up its pages. What yields is computed again later; it never fails. A
prompt that begins like one that is being computed waits for it and shares its pages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from server.engine.fair_queue import FairQueue
from server.engine.kv_pages import KVPages
from server.engine.request import Priority, RequestState
from server.engine.sequence import TokenSequence

_LOOK_AHEAD = 64
"""How many waiting sequences are examined to find one that need not wait for a prefix."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next `num_new` tokens of a sequence, to be computed in this step."""

    sequence: TokenSequence
    num_new: int

    @property
    def is_last(self) -> bool:
        """True when the chunk reaches the sequence's last known token, so that its logits give the next."""
        return self.num_new == self.sequence.num_to_compute


class Scheduler:
    """The queues, and admission by pages and budget. Used only by the engine's thread."""

    def __init__(self, kv: KVPages, *, max_running: int, max_batch_tokens: int) -> None:
        self._kv = kv
        self._max_running = max_running
        self._max_batch_tokens = max_batch_tokens
        self._waiting: dict[Priority, FairQueue] = {priority: FairQueue() for priority in Priority}
        self._running: list[TokenSequence] = []
        self._max_background_tokens: int | None = None
        self.num_preemptions = 0

    @property
    def num_running(self) -> int:
        """Sequences that hold pages."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Sequences in the queues."""
        return sum(len(queue) for queue in self._waiting.values())

    @property
    def num_waiting_live(self) -> int:
        """Sequences of live requests in the queues."""
        return len(self._waiting[Priority.LIVE])

    def has_room_for(self, owner: str, submitted: Sequence[str], max_queue: int) -> bool:
        """True when `owner` may queue another live request, beside those that the owners `submitted` did not queue yet.

        A full queue takes requests of an owner who has less than a fair share of it.
        """
        queue = self._waiting[Priority.LIVE]
        if len(queue) + len(submitted) < max_queue:
            return True
        num_owners = queue.num_owners + len({*submitted, owner})
        return queue.num_of(owner) + submitted.count(owner) < max_queue // num_owners

    @property
    def has_live(self) -> bool:
        """True when a live request runs or waits."""
        return self.num_waiting_live > 0 or any(
            sequence.request.priority is Priority.LIVE for sequence in self._running
        )

    @property
    def running(self) -> tuple[TokenSequence, ...]:
        """The sequences that hold pages, most urgent first."""
        return tuple(self._running)

    def add(self, sequence: TokenSequence) -> None:
        """Queue a new sequence."""
        self._waiting[sequence.request.priority].add(sequence)

    def remove(self, sequence: TokenSequence, state: RequestState) -> None:
        """Remove a sequence for good and return its pages; `state` is its final state."""
        if sequence.state is RequestState.QUEUED:
            self._waiting[sequence.request.priority].remove(sequence)
        else:
            self._running.remove(sequence)
            sequence.release_pages()
        sequence.become(state)

    def schedule(self, max_background_tokens: int | None = None) -> list[Chunk]:
        """The chunks of the next step, with at most that many background tokens; empty when there is nothing to do."""
        self._max_background_tokens = max_background_tokens
        num_new: dict[TokenSequence, int] = {}
        num_preemptions = self.num_preemptions
        for priority in Priority:
            self._continue(priority, num_new)
            if self.num_preemptions > num_preemptions:
                break  # what had to yield, or is less urgent, waits for a step with room
            self._admit(priority, num_new)
        return [Chunk(sequence, number) for sequence, number in num_new.items()]

    def _budget(self, priority: Priority, num_new: dict[TokenSequence, int]) -> int:
        """Tokens that the step has left for requests of `priority`."""
        left = self._max_batch_tokens - sum(num_new.values())
        if priority is Priority.LIVE or self._max_background_tokens is None:
            return left
        spent = sum(number for sequence, number in num_new.items() if sequence.request.priority is priority)
        return min(left, self._max_background_tokens - spent)

    def _continue(self, priority: Priority, num_new: dict[TokenSequence, int]) -> None:
        """Continue the running sequences of `priority`: those that decode, then those that prefill."""
        running = [sequence for sequence in self._running if sequence.request.priority is priority]
        for sequence in sorted(running, key=lambda sequence: sequence.num_to_compute > 1):
            wanted = sequence.next_chunk(self._budget(priority, num_new), is_alone=not num_new)
            if sequence.state is not RequestState.QUEUED and wanted > 0 and self._make_room(sequence, wanted, num_new):
                num_new[sequence] = wanted

    def _make_room(self, sequence: TokenSequence, wanted: int, num_new: dict[TokenSequence, int]) -> bool:
        """Pages for `wanted` more tokens, at the cost of less urgent sequences; False if it had to yield itself."""
        while not sequence.reserve(wanted):
            victim = self._running[-1]
            num_new.pop(victim, None)
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _admit(self, priority: Priority, num_new: dict[TokenSequence, int]) -> None:
        """Start waiting sequences of `priority` while the step has tokens left and there are pages for them."""
        queue = self._waiting[priority]
        self._share_places(queue, priority, num_new)
        index = 0
        while (
            index < _LOOK_AHEAD
            and self._budget(priority, num_new) >= self._least_chunk(num_new)
            and (sequence := queue.peek(index)) is not None
        ):
            if self._is_being_computed(sequence, num_new):
                index += 1
            elif len(self._running) < self._max_running and self._has_started(sequence, num_new):
                continue
            elif self._running and self._running[-1].request.priority > priority:
                self._preempt(self._running[-1])
            else:
                break

    def _has_started(self, sequence: TokenSequence, num_new: dict[TokenSequence, int]) -> bool:
        """Start a waiting sequence; False when it has to wait for pages."""
        priority = sequence.request.priority
        first_chunk = sequence.start(self._budget(priority, num_new), is_alone=not num_new)
        if first_chunk == 0:
            return False
        self._waiting[priority].take(sequence)
        if sequence.num_cached_tokens is None:
            sequence.num_cached_tokens = sequence.num_computed
        sequence.become(RequestState.PREFILLING)
        self._running.append(sequence)
        self._running.sort(key=lambda running: running.request.priority)
        num_new[sequence] = first_chunk
        return True

    def _share_places(self, queue: FairQueue, priority: Priority, num_new: dict[TokenSequence, int]) -> None:
        """When all places are taken, give owners who have none one of those of the owner who has most.

        The youngest of the latter yields.
        """
        while (
            len(self._running) >= self._max_running
            and len(queue) > 0
            and self._budget(priority, num_new) >= self._least_chunk(num_new)
        ):
            peers = [sequence for sequence in self._running if sequence.request.priority is priority]
            held = Counter(sequence.request.owner for sequence in peers)
            sequence = next((each for each in queue.firsts if held[each.request.owner] == 0), None)
            if sequence is None or max(held.values(), default=0) < 2 or self._is_being_computed(sequence, num_new):
                return
            owner, _ = held.most_common(1)[0]
            victim = next(other for other in reversed(peers) if other.request.owner == owner)
            num_new.pop(victim, None)
            self._preempt(victim)
            if not self._has_started(sequence, num_new):
                return

    def _least_chunk(self, num_new: dict[TokenSequence, int]) -> int:
        """Tokens below which no sequence is started in this step; see `TokenSequence.next_chunk`."""
        return 2 if self._kv.states is not None and num_new else 1

    def _is_being_computed(self, sequence: TokenSequence, num_new: dict[TokenSequence, int]) -> bool:
        """True when what `sequence` would have to compute first is being computed by a running one."""
        running = [
            other
            for other in self._running
            if other.state is RequestState.PREFILLING and other.request.priority <= sequence.request.priority
        ]
        if not running or not self._kv.shares_prefixes:
            return False
        if self._kv.states is not None:
            other = next((other for other in running if sequence.waits_for_state(other)), None)
            if other in num_new:  # its chunk has to end where the snapshot is wanted
                num_new[other] = other.next_chunk(num_new[other], is_alone=True)
            return other is not None
        missing = sequence.first_missing_page
        return missing is not None and any(other.next_page == missing for other in running)

    def _preempt(self, sequence: TokenSequence) -> None:
        self._running.remove(sequence)
        sequence.release_pages()
        sequence.become(RequestState.QUEUED)
        self._waiting[sequence.request.priority].put_back(sequence)
        self.num_preemptions += 1
