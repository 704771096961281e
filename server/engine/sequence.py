"""A request while the engine works on it: its tokens, rows, and what is still missing.

`TokenSequence.become` owns the transitions between states.
"""

from __future__ import annotations

import bisect
import itertools
import time
from collections.abc import Iterable

from torch import Tensor

from server.engine.attention.interface import Segment
from server.engine.branches import Branches
from server.engine.cache import ROOT_KEY, PageKey, PromptKeys, page_key
from server.engine.entry_points import EntryPoints
from server.engine.grammar import GrammarState, allowed_tokens
from server.engine.kv_pages import KVPages
from server.engine.page_table import SequencePages
from server.engine.readings import SequenceReadings
from server.engine.recurrent.slots import StateSlots
from server.engine.request import (
    EngineRequest,
    FinishReason,
    OutputSink,
    RequestState,
    SamplingParams,
    TokenLogprobs,
)
from server.engine.sampler import RowSampler
from server.engine.wanted import wanted_by
from server.steering.bank import PlanRows
from vectors.vocabulary import Part, Place

_NEXT_STATES: dict[RequestState, frozenset[RequestState]] = {
    RequestState.QUEUED: frozenset({RequestState.PREFILLING, RequestState.ABORTED, RequestState.FAILED}),
    RequestState.PREFILLING: frozenset(
        {
            RequestState.QUEUED,
            RequestState.DECODING,
            RequestState.FINISHED,
            RequestState.ABORTED,
            RequestState.FAILED,
        }
    ),
    RequestState.DECODING: frozenset(
        {RequestState.QUEUED, RequestState.FINISHED, RequestState.ABORTED, RequestState.FAILED}
    ),
}


class TokenSequence:
    """The engine's mutable record of one request, whose KV is in pages of `kv`.

    `entry_points`: where a branch may enter that computes nothing of its own before; None: it computes every block.
    """

    def __init__(
        self,
        request: EngineRequest,
        sink: OutputSink,
        eos_token_ids: frozenset[int],
        kv: KVPages,
        *,
        entry_points: EntryPoints | None = None,
    ) -> None:
        self.request = request
        self.wanted = wanted_by(request)
        self.sink = sink
        self.state = RequestState.QUEUED
        self.tokens: list[int] = [*request.prompt, *self.wanted.response]
        self.num_prompt = len(request.prompt)
        self.zones = request.plan.zones(self.num_prompt)
        self.num_known = len(self.tokens)
        self.num_computed = 0
        self.num_cached_tokens: int | None = None
        self.seconds_queued: float | None = None
        self._created_at = time.monotonic()
        generate = self.wanted.generate
        sampling = SamplingParams() if generate is None else generate.sampling
        self.sampler = RowSampler(sampling, eos_token_ids, request.prompt)
        self._grammar: GrammarState | None = None
        self._part_reader = None if generate is None or generate.parts is None else generate.parts.start()
        self.parts: list[Part] | None = None if self._part_reader is None else [self._part_reader.part]
        self.rows: PlanRows | None = None
        self.pages = SequencePages(kv)
        self.state_slot: int | None = None
        self._snapshot_pages: set[int] = set()
        self._moving_snapshot: PageKey | None = None
        self._awaited: tuple[TokenSequence, int] | None = None
        self.known_logprobs: list[TokenLogprobs | None] = []
        self.known_rows: list[Tensor] = []
        self.activations: dict[Place, dict[int, Tensor]] = {}
        self.readings = SequenceReadings(request.plan, self.num_prompt) if request.plan.num_readings else None
        self.next_scores: tuple[float, ...] = ()
        self.branches = Branches(self.wanted.branches, request.plan, self.num_prompt, entry_points)
        self._kv = kv
        self._prompt_keys: PromptKeys | None = None
        self._keys: list[PageKey] = []
        """Of the pages from the prompt's last token on."""
        start = self.wanted.logprobs_start
        if start == 0:
            self.known_logprobs.append(None)
        self._first_logprob = self.num_known if start is None else start
        capture = self.wanted.capture
        self.capture_positions: tuple[int, ...] = (
            () if capture is None else tuple(position % self.num_known for position in capture.positions)
        )

    def become(self, state: RequestState) -> None:
        """Move to `state`; an impossible transition is our bug."""
        assert state in _NEXT_STATES.get(self.state, frozenset()), f"{self.state} -> {state}"
        self.state = state
        if state is RequestState.PREFILLING and self.seconds_queued is None:
            self.seconds_queued = time.monotonic() - self._created_at

    @property
    def num_to_compute(self) -> int:
        """Tokens whose KV is missing, and rows of branches; 1 for a decoding sequence."""
        if self.wanted.branches:
            return self.num_prompt - 1 - self.num_computed + self.branches.num_rows
        return len(self.tokens) - self.num_computed

    @property
    def is_branching(self) -> bool:
        """True when everything that the branches share is in the KV cache: the next chunk is branches."""
        return bool(self.wanted.branches) and self.num_computed == self.num_prompt - 1

    @property
    def max_chunk(self) -> int:
        """The most tokens that the next chunk may have: it is either branches or what comes before them."""
        if self.wanted.branches and not self.is_branching:
            return self.num_prompt - 1 - self.num_computed
        return self.num_to_compute

    def next_chunk(self, budget: int, *, is_alone: bool) -> int:
        """Tokens of the next chunk, at most `budget`; 0 when a step that is not this sequence's alone has too few left.

        Chunks of recurrent layers end where a snapshot is wanted, else at the end of a page if they can. And they are
        not cut down to single tokens, which some models compute otherwise than `generate` does in a prompt.
        """
        wanted = min(self.max_chunk, budget)
        if self._kv.states is None or self.is_branching or self.max_chunk == 1:
            return wanted
        if self._kv.shares_prefixes:
            wanted = self._end_of_page_before(self.num_computed + wanted) - self.num_computed
        if wanted == self.max_chunk - 1 and wanted > 1:
            wanted -= 1
        return wanted if wanted > 1 or is_alone or self.num_computed == 0 else 0

    def _end_of_page_before(self, end: int) -> int:
        """Where a chunk that could reach `end` should end."""
        page_size = self._kv.page_size
        last = min(end, len(self.tokens) - 2) // page_size
        inside = [pages for pages in self._snapshot_pages if self.num_computed // page_size < pages <= last]
        pages = min(inside, default=last)
        return pages * page_size if pages * page_size > self.num_computed + 1 else end

    def allowed_next(self, vocab_size: int) -> Tensor | None:
        """Bool `[vocab_size]`: what the grammar allows as the next token; None: everything. Raises `GrammarFailed`."""
        generate = self.wanted.generate
        if generate is None or generate.grammar is None:
            return None
        if self._grammar is None:  # not earlier: states may be large, and many requests wait
            self._grammar = generate.grammar.start()
        return allowed_tokens(self._grammar, vocab_size)

    def append(self, token: int) -> None:
        """Append a sampled token. Raises `GrammarFailed`."""
        self.tokens.append(token)
        self.sampler.record(token)
        self._read_part(token)
        if self._grammar is not None and token not in self.sampler.end_token_ids:
            self._grammar.accept(token)

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the sequence ends with the latest token; None when it goes on."""
        is_complete = self._grammar is not None and self._grammar.is_complete
        if is_complete or self.tokens[-1] in self.sampler.end_token_ids:
            return FinishReason.STOP
        return FinishReason.LENGTH if self.num_generated >= self.wanted.max_tokens else None

    def _read_part(self, token: int) -> None:
        if self._part_reader is not None and self.parts is not None:
            self._part_reader.accept(token)
            self.parts.append(self._part_reader.part)

    @property
    def num_generated(self) -> int:
        """Sampled tokens so far."""
        return len(self.tokens) - self.num_known

    @property
    def next_logprob_position(self) -> int:
        """The first position whose logits are still to be scored against the next known token."""
        if self._first_logprob + len(self.known_logprobs) >= self.num_known:
            return self.num_known
        return self._first_logprob + len(self.known_logprobs) - 1

    @property
    def first_needed_position(self) -> int:
        """No position from here on may come from the prefix cache: its output is still wanted."""
        unread = () if self.readings is None else (self.readings.first_missing,)
        return min(len(self.tokens) - 1, self.next_logprob_position, *self.missing_captures, *unread)

    @property
    def missing_captures(self) -> set[int]:
        """Positions whose activations are wanted but not captured yet."""
        return set(self.capture_positions).difference(next(iter(self.activations.values()), {}))

    @property
    def capture_places(self) -> tuple[Place, ...]:
        """Where activations are wanted."""
        spec = self.wanted.capture
        return () if spec is None else tuple(itertools.product(spec.sites, spec.layers))

    @property
    def needs_next_logits(self) -> bool:
        """True when the logits after the last token choose a token or give scores."""
        return self.wanted.max_tokens > 0 or bool(self.wanted.next_token_ids)

    def start(self, budget: int, *, is_alone: bool) -> int:
        """Hold the pages of the first chunk of at most `budget` tokens, cached ones included, and a recurrent state.

        Returns the chunk's length, or 0 when the sequence has to wait.
        """
        self._take_cached_pages()
        length = self.next_chunk(budget, is_alone=is_alone)
        if length == 0 or not self.reserve(length):
            self.release_pages()
            return 0
        if self._kv.states is not None:
            self.state_slot = self._kv.states.take()
            if self.num_computed:
                self._kv.states.restore(self._key_of_page(self._num_pages - 1), self.state_slot)
        return length

    def reserve(self, num_new: int) -> bool:
        """Hold pages for a chunk of `num_new` tokens; when there are too few, take none and return False."""
        return self.pages.reserve(self.num_computed + (0 if self.is_branching else num_new))

    def _take_cached_pages(self) -> None:
        """Start from the longest prefix whose pages there are already, and whose state if there are states."""
        if self._kv.states is not None:  # others begin alike: the next one can start where this one differs from them
            self._snapshot_pages.add(self._kv.num_matching(self._key_of_page, self._num_sharable))
        num_cached = self._num_cached
        self.pages.share([self._key_of_page(index) for index in range(num_cached)])
        self.num_computed = num_cached * self._kv.page_size

    @property
    def _num_cached(self) -> int:
        """Pages that need not be computed."""
        return self._kv.num_cached(self._key_of_page, self._num_sharable)

    @property
    def _num_pages(self) -> int:
        """Pages that are full."""
        return self.num_computed // self._kv.page_size

    @property
    def _num_sharable(self) -> int:
        """Pages that may come from the cache; with recurrent layers two tokens at least are left, see `next_chunk`."""
        return max(0, self.first_needed_position - (self._kv.states is not None)) // self._kv.page_size

    def waits_for_state(self, other: TokenSequence) -> bool:
        """True when `other`, which is being computed, will leave a snapshot that is worth waiting for; asks it to."""
        page_size = self._kv.page_size
        if self._awaited is not None and self._awaited[0] is other and other.num_computed < self._awaited[1]:
            return True  # looked up before: doing so at every step would cost the square of the prompt's length
        num_pages = min(self._num_sharable, len(other.tokens) // page_size)
        num_shared = bisect.bisect_left(
            range(num_pages), True, key=lambda index: self._key_of_page(index) != other._key_of_page(index)
        )
        if num_shared * page_size <= other.num_computed:
            return False
        num_cached = self._num_cached
        if num_cached >= num_shared or num_cached * page_size > other.num_computed:
            return False
        other._snapshot_pages.add(num_shared)
        self._awaited = other, num_shared * page_size
        return True

    def waits_for_page(self, others: Iterable[TokenSequence]) -> bool:
        """True when one of `others`, which are being computed, offers next the page that this sequence misses first.

        That page's key stands for all pages before it too, which the other one holds: so one key tells.
        """
        num_sharable = self._num_sharable
        for other in others:
            index, key = other.pages.num_offered, other.next_page
            if index < num_sharable and key == self._key_of_page(index) and not self._kv.has(key):
                return True
        return False

    @property
    def next_page(self) -> PageKey | None:
        """The key of the page that this sequence will offer next; None when its known tokens fill no further one."""
        is_full = (self.pages.num_offered + 1) * self._kv.page_size <= len(self.tokens)
        return self._key_of_page(self.pages.num_offered) if is_full else None

    @property
    def num_done(self) -> int:
        """Tokens in the KV cache, and branches scored."""
        return self.num_computed + self.branches.num_done

    def release_pages(self) -> None:
        """Return every page and the state; the KV is lost, but the generated tokens stay."""
        self.pages.release()
        if self._kv.states is not None and self.state_slot is not None:
            self._kv.states.release(self.state_slot)
            self.state_slot = None
        self.num_computed = 0

    def advance(self, num_new: int) -> None:
        """Note that `num_new` more tokens are in the KV cache, and offer the pages that became full."""
        self.num_computed += num_new
        self.pages.advance(self.num_computed, self._key_of_page)
        if self._kv.states is not None and self.num_computed % self._kv.page_size == 0:
            self._save_state(self._kv.states)

    def _save_state(self, states: StateSlots) -> None:
        """Leave a snapshot at the end of the latest page. Those where no other is known to begin replace each other."""
        key = self._key_of_page(self._num_pages - 1)
        if not self._kv.has(key):
            return
        assert self.state_slot is not None
        if self._num_pages in self._snapshot_pages or self._num_pages == (self.num_known - 2) // self._kv.page_size:
            states.save(key, self.state_slot)
        elif states.move(self._moving_snapshot, key, self.state_slot):
            self._moving_snapshot = key

    def segment(self, start: int, num_new: int) -> Segment:
        """The next `num_new` tokens as the attention sees them, at `start` of the pack; branches leave no KV."""
        num_kept = self.num_computed + (0 if self.is_branching else num_new)
        return Segment(start, start + num_new, self.num_computed, self.pages.stretches(num_kept), self.is_branching)

    def _key_of_page(self, index: int) -> PageKey:
        """The key of a page full of known and sampled tokens; they never change, so neither does the key."""
        if self._prompt_keys is None:
            self._prompt_keys = self._kv.prompt_keys.of(self.request.prompt, self.request.plan)
        num_in_prompt = (self.num_prompt - 1) // self._kv.page_size
        self._make_keys(self._prompt_keys.known, 0, min(index + 1, num_in_prompt))
        if index < num_in_prompt:
            return self._prompt_keys.known[index]
        self._make_keys(self._keys, num_in_prompt, index + 1)
        return self._keys[index - num_in_prompt]

    def _make_keys(self, keys: list[PageKey], first: int, end: int) -> None:
        """Add the keys of pages up to `end` to `keys`, which are those from page `first` on."""
        while first + len(keys) < end:
            start = (first + len(keys)) * self._kv.page_size
            tokens = self.tokens[start : start + self._kv.page_size]
            parent = keys[-1] if keys else ROOT_KEY if first == 0 else self._key_of_page(first - 1)
            keys.append(page_key(parent, tokens, start, self.zones, self.parts))
