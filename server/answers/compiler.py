"""GrammarCompiler: compiles grammars in llguidance's language for one model's tokenizer."""

from __future__ import annotations

import contextlib
import json
import queue
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Collection, Sequence
from concurrent.futures import Future

from llguidance import LLMatcher, LLTokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from server.answers import matching
from server.answers.matching import LACKS_TOKENS, Vocabulary, reason_of
from server.answers.vocabulary import read_vocabulary
from server.engine.grammar import Grammar, GrammarFailed, new_mask, unpack_mask
from vectors.confined import Child, Limits, TaskFailed

LIMITS = Limits(memory_mib=512, seconds=10.0)
"""What compiling one grammar may take by default."""

NUM_AT_ONCE = 3
"""How many grammars are compiled at a time, each in a child process of its own; others wait."""

_MOST_KEPT = 32
_MOST_BYTES = 1 << 30
_MOST_CHARACTERS = 1 << 20
_TOO_SLOW = "computing the allowed tokens takes too long"
_SECONDS_AT_ONCE = 1.0
_SECONDS_PER_MASK = 0.005
"""The time budget of all masks of a grammar together; the engine serves no other request meanwhile."""


class GrammarRefused(Exception):
    """The grammar cannot be compiled, or the tokenizer does not support any grammar; the message says why."""

    num_bytes = 0


class GrammarTooCostly(GrammarRefused):
    """Compiling the grammar exceeds a limit of time or memory."""


class GrammarNotCompiled(Exception):
    """The grammar has to be compiled first, which may take long."""


class GrammarCompiler:
    """Compiles grammars and caches the latest. Thread-safe; the first use reads the tokenizer's vocabulary.

    `marker_ids`: the tokens that grammars name by their ids, beside the control tokens. Tokens of the tokenizer that a
    model of `vocab_size` tokens does not have are never allowed. Every grammar is compiled on trial in a child process
    first: some small ones take any amount of time and memory, and those that exceed `limits` end there.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        vocab_size: int,
        end_token_ids: Collection[int],
        marker_ids: Collection[int] = (),
        *,
        limits: Limits = LIMITS,
    ) -> None:
        self._source = tokenizer
        self._marker_ids = frozenset(marker_ids)
        self._vocab_size = vocab_size
        self._end_token_ids = sorted(token_id for token_id in end_token_ids if token_id < vocab_size)
        self._limits = limits
        self._lock = threading.Lock()
        self._reading = threading.Lock()
        self._matching: _Matching | None = None
        self._known: OrderedDict[str, _CompiledGrammar | GrammarRefused] = OrderedDict()
        self._compiling: dict[str, Future[_CompiledGrammar | GrammarRefused]] = {}

    def prepare(self) -> None:
        """Read the vocabulary now, so that no request has to wait for it. Errors are reported to requests later."""
        with contextlib.suppress(GrammarRefused):
            self._read_vocabulary()

    def find(self, source: str) -> Grammar:
        """As `compile`, for a grammar that is compiled already; raises `GrammarNotCompiled` for others."""
        with self._lock:
            known = self._known.get(source)
        if known is None:
            raise GrammarNotCompiled
        return _checked(known)

    def compile(self, source: str) -> Grammar:
        """The grammar of `source`, in llguidance's Lark dialect. Raises `GrammarRefused`."""
        if len(source) > _MOST_CHARACTERS:
            raise GrammarRefused(f"expected at most {_MOST_CHARACTERS} characters of grammar, got {len(source)}")
        with self._lock:
            known = self._known.get(source)
            if known is not None:
                self._known.move_to_end(source)
                return _checked(known)
            pending = self._compiling.get(source)
            if is_ours := pending is None:
                pending = self._compiling[source] = Future()
        assert pending is not None
        if is_ours:
            self._compile(source, pending)
        return _checked(pending.result())

    def _compile(self, source: str, pending: Future[_CompiledGrammar | GrammarRefused]) -> None:
        """Compile for all who wait for `pending`."""
        try:
            found = self._read_vocabulary().compile(source)
        except BaseException as error:
            with self._lock:
                del self._compiling[source]
            pending.set_exception(error)
            return
        with self._lock:
            del self._compiling[source]
            self._known[source] = found
            while len(self._known) > _MOST_KEPT or sum(each.num_bytes for each in self._known.values()) > _MOST_BYTES:
                self._known.popitem(last=False)
        pending.set_result(found)

    def _read_vocabulary(self) -> _Matching:
        with self._reading:
            if self._matching is None:
                if not isinstance(self._source, PreTrainedTokenizerFast):
                    raise GrammarRefused("constrained decoding needs a fast tokenizer, which this model does not have")
                if not self._end_token_ids:
                    raise GrammarRefused("constrained decoding needs an end token, which this model does not have")
                try:
                    vocabulary = read_vocabulary(self._source, self._vocab_size, self._end_token_ids, self._marker_ids)
                    self._matching = _Matching(vocabulary, self._limits)
                except ValueError as error:
                    raise GrammarRefused(
                        f"this model's tokenizer does not support constrained decoding: {error}"
                    ) from None
            return self._matching


def _checked(known: _CompiledGrammar | GrammarRefused) -> _CompiledGrammar:
    if isinstance(known, GrammarRefused):
        raise type(known)(str(known))
    known.check_cost()
    return known


class _Matching:
    """The vocabulary, and the processes in which grammars are compiled on trial; these start when they are needed.

    Raises `ValueError` when llguidance cannot read the vocabulary.
    """

    def __init__(self, vocabulary: Vocabulary, limits: Limits) -> None:
        self._tokenizer: LLTokenizer = vocabulary.tokenizer()
        self._num_allowed = vocabulary.num_allowed
        self._num_read = self._tokenizer.vocab_size
        children = [Child(matching.__name__, limits, vocabulary.to_json()) for _ in range(NUM_AT_ONCE)]
        self._free: queue.LifoQueue[Child] = queue.LifoQueue()
        for child in children:
            self._free.put(child)
        weakref.finalize(self, _close, children)

    def compile(self, source: str) -> _CompiledGrammar | GrammarRefused:
        """The grammar, or why there is none."""
        child = self._free.get()
        try:
            refused = json.loads(b"".join(child.run(source.encode())))
            num_bytes = child.peak_bytes
        except TaskFailed as error:
            return GrammarTooCostly(f"compiling {error}")
        finally:
            self._free.put(child)
        found = refused or matching.compiled(source, self._tokenizer, self._num_allowed)
        if isinstance(found, str):
            return GrammarRefused(found)
        return _CompiledGrammar(found, self._num_allowed, self._num_read, num_bytes)


def _close(children: Sequence[Child]) -> None:
    for child in children:
        child.close()


class _CompiledGrammar:
    """A grammar whose states are copies of one matcher that never advances.

    `vocab_size` is the model's number of tokens, and `num_read` how many the matcher knows. It took at most
    `num_bytes` of memory to compile.
    """

    def __init__(self, matcher: LLMatcher, vocab_size: int, num_read: int, num_bytes: int) -> None:
        self._matcher = matcher
        self.num_bytes = num_bytes
        self._seconds_left = _SECONDS_AT_ONCE
        self.vocab_size = vocab_size
        self.num_read = num_read

    def start(self) -> _CompiledState:
        return _CompiledState(self._matcher.deep_copy(), self)

    def spend(self, seconds: float) -> None:
        """Charge a mask to the budget. Raises `GrammarFailed` when it is used up."""
        self._seconds_left = min(_SECONDS_AT_ONCE, self._seconds_left + _SECONDS_PER_MASK - seconds)
        if self._seconds_left < 0:
            raise GrammarFailed(f"the constraint failed: {_TOO_SLOW}")

    def check_cost(self) -> None:
        """Raise `GrammarRefused` when the grammar has proved too slow."""
        if self._seconds_left < 0:
            raise GrammarRefused(_TOO_SLOW)


class _CompiledState:
    def __init__(self, matcher: LLMatcher, grammar: _CompiledGrammar) -> None:
        self._matcher = matcher
        self._grammar = grammar

    @property
    def is_complete(self) -> bool:
        return self._matcher.is_stopped()

    def fill_mask(self, words: Tensor) -> None:
        started = time.thread_time()
        has_more = self._grammar.num_read > self._grammar.vocab_size
        filled = new_mask(self._grammar.num_read) if has_more else words
        self._matcher.unsafe_compute_mask_ptr(filled.data_ptr(), filled.numel() * filled.element_size())
        self._check()
        if has_more:
            self._copy_known(filled, words)
        self._grammar.spend(time.thread_time() - started)

    def _copy_known(self, filled: Tensor, words: Tensor) -> None:
        """Copy the bits of the tokens that the model has. Raises `GrammarFailed` when none is set."""
        words.copy_(filled[: words.numel()])
        if not unpack_mask(words, self._grammar.vocab_size).any():
            raise GrammarFailed(f"the constraint failed: {LACKS_TOKENS}")

    def accept(self, token_id: int) -> None:
        self._matcher.consume_token(token_id)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GrammarFailed(f"the constraint failed: {reason_of(self._matcher)}")
