"""Chooses the sequences of the next step, and how many tokens of each. It uses no tensors.

Continuous batching: a step takes one token of every decoding sequence, then chunks of prompts, until its token
budget is spent. Live requests come before background ones, the owners of requests take turns, and an owner's older
requests come before younger ones. When all places are taken, an owner who has none gets one of another's. When pages
run out, the youngest of the least urgent gives up its pages. What yields is computed again later; it never fails. A
prompt that begins like one that is being computed waits for it and shares its pages.

In a step that is due to background work (see `pacing.py`) one background sequence comes first. It has a place beside
the others, and keeps its pages to its end. Sequences of a step that raised are computed again, each alone, until they
are past that step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from server.engine.kv_pages import KVPages
from server.engine.pacing import Allowance
from server.engine.request import Priority, RequestState
from server.engine.sequence import TokenSequence
from server.fair_queue import FairQueue

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
    """The queues, and admission by pages and budget. Used only by the engine's thread.

    At most `max_running` sequences run, and one more that is due.
    """

    def __init__(self, kv: KVPages, *, max_running: int, max_batch_tokens: int) -> None:
        self._kv = kv
        self._max_running = max_running
        self._max_batch_tokens = max_batch_tokens
        self._waiting: dict[Priority, FairQueue[TokenSequence]] = {
            priority: FairQueue(lambda sequence: sequence.request.owner) for priority in Priority
        }
        self._running: list[TokenSequence] = []
        self._allowance: Allowance | None = None
        self._kept: TokenSequence | None = None
        """The background sequence that has the place of its own and gives up its pages for nobody."""
        self._suspects: dict[TokenSequence, int] = {}
        """Sequences to be computed alone, until so much of each is done."""
        self.num_preemptions = 0

    @property
    def num_running(self) -> int:
        """Sequences that hold pages."""
        return len(self._running)

    @property
    def num_running_live(self) -> int:
        """Sequences of live requests that hold pages."""
        return sum(sequence.request.priority is Priority.LIVE for sequence in self._running)

    @property
    def num_waiting(self) -> int:
        """Sequences in the queues."""
        return sum(len(queue) for queue in self._waiting.values())

    @property
    def num_waiting_live(self) -> int:
        """Sequences of live requests in the queues."""
        return len(self._waiting[Priority.LIVE])

    def has_room_for(self, owner: str, submitted: Sequence[str], max_queue: int) -> bool:
        """True when `owner` may queue another live request; see `FairQueue.has_room_for`."""
        return self._waiting[Priority.LIVE].has_room_for(owner, max_queue, submitted)

    @property
    def has_live(self) -> bool:
        """True when a live request runs or waits."""
        return self.num_waiting_live > 0 or self.num_running_live > 0

    @property
    def has_background(self) -> bool:
        """True when background work runs or waits."""
        return self.num_running + self.num_waiting > self.num_running_live + self.num_waiting_live

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
        self._suspects.pop(sequence, None)
        if sequence is self._kept:
            self._kept = None
        sequence.become(state)

    def isolate(self, chunks: Sequence[Chunk]) -> None:
        """Undo a step that raised: its sequences give up their pages, and are computed again, each in steps of its own.

        What is in their pages and states after such a step is unknown.
        """
        for chunk in reversed(chunks):
            self._suspects[chunk.sequence] = chunk.sequence.num_done + chunk.num_new
            self._preempt(chunk.sequence)

    def schedule(self, allowance: Allowance | None = None) -> list[Chunk]:
        """The chunks of the next step; empty when there is nothing to do.

        `allowance`: what background work may take; None: everything, because there are no live requests.
        """
        self._suspects = {each: end for each, end in self._suspects.items() if each.num_done < end}
        if self._suspects:
            return self._alone(min(self._suspects, key=lambda sequence: sequence.request.priority))
        self._allowance = allowance
        num_new: dict[TokenSequence, int] = {}
        if allowance is not None and allowance.is_due:
            self._serve_background_first(num_new)
        num_preemptions = self.num_preemptions
        for priority in Priority:
            self._continue(priority, num_new)
            if self.num_preemptions > num_preemptions:
                break  # what had to yield, or is less urgent, waits for a step with room
            self._admit(priority, num_new)
        if not num_new and self._allowance is not None:  # the live ones wait for pages that background work holds
            self._allowance = None
            self._continue(Priority.BACKGROUND, num_new)
        return [Chunk(sequence, number) for sequence, number in num_new.items()]

    def _alone(self, sequence: TokenSequence) -> list[Chunk]:
        """A step of `sequence` only, for which others give up their pages if need be."""
        while True:
            if sequence.state is RequestState.QUEUED:
                wanted = sequence.start(self._max_batch_tokens, is_alone=True) if self._has_place else 0
                if wanted:
                    self._waiting[sequence.request.priority].remove(sequence)
                    self._begin(sequence)
                    return [Chunk(sequence, wanted)]
            else:
                wanted = sequence.next_chunk(self._max_batch_tokens, is_alone=True)
                if sequence.reserve(wanted):
                    return [Chunk(sequence, wanted)]
            self._preempt(next(other for other in reversed(self._running) if other is not sequence))

    def _serve_background_first(self, num_new: dict[TokenSequence, int]) -> None:
        """Let one background sequence, from now on the kept one, take up to half of the step before all others."""
        budget = max(1, min(self._budget(Priority.BACKGROUND, num_new), self._max_batch_tokens // 2))
        if self._kept is None:
            running = [sequence for sequence in self._running if sequence.request.priority is Priority.BACKGROUND]
            self._kept = next(iter(running), None)
        if self._kept is not None:
            wanted = self._kept.next_chunk(budget, is_alone=True)
            if self._make_room(self._kept, wanted, num_new):
                num_new[self._kept] = wanted
            return
        queue = self._waiting[Priority.BACKGROUND]
        sequence = next((each for each in queue if not self._is_being_computed(each, num_new)), None)
        if sequence is None:
            return
        while not (wanted := sequence.start(budget, is_alone=True)):
            self._preempt(self._running[-1])
        queue.take(sequence)
        self._begin(sequence)
        self._kept = sequence
        num_new[sequence] = wanted

    def _budget(self, priority: Priority, num_new: dict[TokenSequence, int]) -> int:
        """Tokens that the step has left for requests of `priority`."""
        left = self._max_batch_tokens - sum(num_new.values())
        if priority is Priority.LIVE or self._allowance is None:
            return left
        spent = sum(number for sequence, number in num_new.items() if sequence.request.priority is priority)
        return min(left, self._allowance.max_tokens - spent)

    def _continue(self, priority: Priority, num_new: dict[TokenSequence, int]) -> None:
        """Continue the running sequences of `priority`: those that decode, then those that prefill."""
        running = [sequence for sequence in self._running if sequence.request.priority is priority]
        for sequence in sorted(running, key=lambda sequence: sequence.num_to_compute > 1):
            if sequence in num_new or sequence.state is RequestState.QUEUED:
                continue
            wanted = sequence.next_chunk(self._budget(priority, num_new), is_alone=not num_new)
            if wanted > 0 and self._make_room(sequence, wanted, num_new):
                num_new[sequence] = wanted

    def _make_room(self, sequence: TokenSequence, wanted: int, num_new: dict[TokenSequence, int]) -> bool:
        """Pages for `wanted` more tokens, at the cost of less urgent sequences; False if it had to yield itself."""
        while not sequence.reserve(wanted):
            victim = next((other for other in reversed(self._running) if other is not self._kept), sequence)
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
            elif self._has_place and self._has_started(sequence, num_new):
                continue
            elif (victim := self._less_urgent_than(priority)) is not None:
                num_new.pop(victim, None)
                self._preempt(victim)
            else:
                break

    @property
    def _has_place(self) -> bool:
        return len(self._running) - (self._kept is not None) < self._max_running

    def _less_urgent_than(self, priority: Priority) -> TokenSequence | None:
        """The running sequence that would yield to a waiting one of `priority`, if there is one."""
        last = next((other for other in reversed(self._running) if other is not self._kept), None)
        return last if last is not None and last.request.priority > priority else None

    def _has_started(self, sequence: TokenSequence, num_new: dict[TokenSequence, int]) -> bool:
        """Start a waiting sequence; False when it has to wait for pages."""
        priority = sequence.request.priority
        first_chunk = sequence.start(self._budget(priority, num_new), is_alone=not num_new)
        if first_chunk == 0:
            return False
        self._waiting[priority].take(sequence)
        self._begin(sequence)
        num_new[sequence] = first_chunk
        return True

    def _begin(self, sequence: TokenSequence) -> None:
        """Note that `sequence`, which was taken from its queue and has its first pages, runs."""
        if sequence.num_cached_tokens is None:
            sequence.num_cached_tokens = sequence.num_computed
        sequence.become(RequestState.PREFILLING)
        self._running.append(sequence)
        self._running.sort(key=lambda running: running.request.priority)

    def _share_places(
        self, queue: FairQueue[TokenSequence], priority: Priority, num_new: dict[TokenSequence, int]
    ) -> None:
        """When all places are taken, give owners who have none one of those of the owner who has most.

        The youngest of the latter yields.
        """
        while not self._has_place and len(queue) > 0 and self._budget(priority, num_new) >= self._least_chunk(num_new):
            peers = [
                sequence
                for sequence in self._running
                if sequence.request.priority is priority and sequence is not self._kept
            ]
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
        return sequence.waits_for_page(running)

    def _preempt(self, sequence: TokenSequence) -> None:
        self._running.remove(sequence)
        sequence.release_pages()
        sequence.become(RequestState.QUEUED)
        self._waiting[sequence.request.priority].put_back(sequence)
        if sequence is self._kept:
            self._kept = None
        self.num_preemptions += 1
