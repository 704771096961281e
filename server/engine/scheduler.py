"""Who runs in the next step, and with how many tokens. No tensors.

Continuous batching: a step takes one token of every decoding sequence, then chunks of prompts, until its token
budget is spent. Live requests come before background ones, older before younger. When pages run out the youngest
of the least urgent gives up its pages and is computed again later; it never fails. It does not know the model,
steering or clients.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from server.engine.cache import PagePool
from server.engine.request import Priority, RequestState
from server.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next `num_new` tokens of a sequence, to be computed in this step."""

    sequence: Sequence
    num_new: int

    @property
    def is_last(self) -> bool:
        """True when the chunk reaches the sequence's last known token, so that its logits give the next."""
        return self.num_new == self.sequence.num_to_compute


class Scheduler:
    """The queues, and admission by pages and budget. Used by the engine's thread only."""

    def __init__(self, pool: PagePool, *, max_running: int, max_batch_tokens: int) -> None:
        self._pool = pool
        self._max_running = max_running
        self._max_batch_tokens = max_batch_tokens
        self._waiting: dict[Priority, deque[Sequence]] = {priority: deque() for priority in Priority}
        self._running: list[Sequence] = []
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
    def running(self) -> tuple[Sequence, ...]:
        """The sequences that hold pages, most urgent first."""
        return tuple(self._running)

    @property
    def waiting(self) -> tuple[Sequence, ...]:
        """The sequences in the queues, most urgent first."""
        return tuple(sequence for queue in self._waiting.values() for sequence in queue)

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence."""
        self._waiting[sequence.request.priority].append(sequence)

    def remove(self, sequence: Sequence, state: RequestState) -> None:
        """Take a sequence out for good and give its pages back; `state` is the final one."""
        if sequence.state is RequestState.QUEUED:
            self._waiting[sequence.request.priority].remove(sequence)
        else:
            self._running.remove(sequence)
            sequence.release_pages(self._pool)
        sequence.become(state)

    def schedule(self) -> list[Chunk]:
        """The next step; empty when there is nothing to do."""
        num_new: dict[Sequence, int] = {}
        budget = self._max_batch_tokens
        num_preemptions = self.num_preemptions
        decoding = [sequence for sequence in self._running if sequence.num_to_compute == 1]
        prefilling = [sequence for sequence in self._running if sequence.num_to_compute > 1]
        for sequence in (*decoding, *prefilling):
            if sequence.state is RequestState.QUEUED or budget == 0:
                continue
            wanted = min(sequence.num_to_compute, budget)
            if self._make_room(sequence, wanted, num_new):
                num_new[sequence] = wanted
                budget = self._max_batch_tokens - sum(num_new.values())
        while budget > 0 and num_preemptions == self.num_preemptions:
            admitted = self._admit_next(budget)
            if admitted is None:
                break
            num_new[admitted] = min(admitted.num_to_compute, budget)
            budget -= num_new[admitted]
        return [Chunk(sequence, number) for sequence, number in num_new.items()]

    def _make_room(self, sequence: Sequence, wanted: int, num_new: dict[Sequence, int]) -> bool:
        """Pages for `wanted` more tokens, at the cost of less urgent sequences; False if it had to yield itself."""
        while not sequence.reserve(self._pool, sequence.num_computed + wanted):
            victim = self._running[-1]
            num_new.pop(victim, None)
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        sequence.release_pages(self._pool)
        sequence.become(RequestState.QUEUED)
        self._waiting[sequence.request.priority].appendleft(sequence)
        self.num_preemptions += 1

    def _admit_next(self, budget: int) -> Sequence | None:
        """Start the most urgent waiting sequence, if there is a place and there are pages for its first chunk."""
        if len(self._running) >= self._max_running:
            return None
        queue = next((queue for queue in self._waiting.values() if queue), None)
        if queue is None:
            return None
        sequence = queue[0]
        sequence.take_cached_pages(self._pool)
        wanted = min(sequence.num_to_compute, budget)
        if not sequence.reserve(self._pool, sequence.num_computed + wanted):
            sequence.release_pages(self._pool)
            return None
        queue.popleft()
        if sequence.num_cached_tokens is None:
            sequence.num_cached_tokens = sequence.num_computed
        sequence.become(RequestState.PREFILLING)
        self._running.append(sequence)
        self._running.sort(key=lambda running: running.request.priority)
        return sequence
