"""GrammarCompiler: compiles grammars in llguidance's language for one model's tokenizer."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Collection

from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from server.answers.vocabulary import read_vocabulary
from server.engine.grammar import Grammar, GrammarFailed, new_mask, unpack_mask

_MOST_KEPT = 32
_MOST_CHARACTERS = 1 << 20
_LIMITS = LLParserLimits(max_grammar_size=20_000, step_max_items=20_000, max_lexer_states=50_000, verbose_errors=False)
"""The limits of compilation and of one mask: any 20 000 symbols compile within a second or two."""

_PLACE = re.compile(r"^at \d+\(\d+\): (failed to compile JSON schema: )?")
_UNKNOWN_KEYS = re.compile(r"Unimplemented keys: \[([^\]]*)\]")
_TOO_SLOW = "computing the allowed tokens takes too long"
_LACKS_TOKENS = "it needs a token that this model's vocabulary does not have"
_NUM_TRIED = 4
_SECONDS_AT_ONCE = 1.0
_SECONDS_PER_MASK = 0.005
"""The time budget of all masks of a grammar together; the engine serves no other request meanwhile."""


class GrammarRefused(Exception):
    """The grammar cannot be compiled, or the tokenizer does not support any grammar; the message says why."""


class GrammarCompiler:
    """Compiles grammars and caches the latest. Thread-safe; the first use reads the tokenizer's vocabulary.

    `marker_ids`: the tokens that grammars name by their ids, beside the control tokens. Tokens of the tokenizer that a
    model of `vocab_size` tokens does not have are never allowed.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        vocab_size: int,
        end_token_ids: Collection[int],
        marker_ids: Collection[int] = (),
    ) -> None:
        self._source = tokenizer
        self._marker_ids = frozenset(marker_ids)
        self._vocab_size = vocab_size
        self._end_token_ids = sorted(token_id for token_id in end_token_ids if token_id < vocab_size)
        self._lock = threading.Lock()
        self._tokenizer: LLTokenizer | None = None
        self._known: OrderedDict[str, _CompiledGrammar | str] = OrderedDict()

    def prepare(self) -> None:
        """Read the vocabulary now, so that no request has to wait for it. Errors are reported to requests later."""
        with contextlib.suppress(GrammarRefused), self._lock:
            self._tokenizer = self._tokenizer or self._read_vocabulary()

    def compile(self, source: str) -> Grammar:
        """The grammar of `source`, in llguidance's Lark dialect. Raises `GrammarRefused`."""
        if len(source) > _MOST_CHARACTERS:
            raise GrammarRefused(f"expected at most {_MOST_CHARACTERS} characters of grammar, got {len(source)}")
        with self._lock:
            known = self._known.get(source)
            if known is not None:
                self._known.move_to_end(source)
            tokenizer = self._tokenizer = self._tokenizer or self._read_vocabulary()
        if known is None:
            known = _compiled(source, tokenizer, self._vocab_size)
            with self._lock:
                self._known[source] = known
                if len(self._known) > _MOST_KEPT:
                    self._known.popitem(last=False)
        if isinstance(known, str):
            raise GrammarRefused(known)
        known.check_cost()
        return known

    def _read_vocabulary(self) -> LLTokenizer:
        if not isinstance(self._source, PreTrainedTokenizerFast):
            raise GrammarRefused("constrained decoding needs a fast tokenizer, which this model does not have")
        if not self._end_token_ids:
            raise GrammarRefused("constrained decoding needs an end token, which this model does not have")
        try:
            return read_vocabulary(self._source, self._vocab_size, self._end_token_ids, self._marker_ids)
        except ValueError as error:
            raise GrammarRefused(f"this model's tokenizer does not support constrained decoding: {error}") from None


def _compiled(source: str, tokenizer: LLTokenizer, vocab_size: int) -> _CompiledGrammar | str:
    """The compiled grammar, or the reason why it cannot be compiled.

    This includes a walk over a few tokens: only then do some grammars turn out to allow nothing or to grow too large.
    What the walk computed stays cached in the matcher and its copies.
    """
    matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_lark(source), log_level=0, limits=_LIMITS)
    num_read = tokenizer.vocab_size
    words = new_mask(num_read)
    for _ in range(_NUM_TRIED):
        if matcher.is_stopped():
            break
        matcher.unsafe_compute_mask_ptr(words.data_ptr(), words.numel() * words.element_size())
        if matcher.is_error():
            break
        allowed = unpack_mask(words, num_read)[:vocab_size].nonzero()
        if not len(allowed):
            return _LACKS_TOKENS
        matcher.consume_token(int(allowed[0]))
    if matcher.is_error() or not matcher.reset():
        return _reason(matcher)
    return _CompiledGrammar(matcher, vocab_size, num_read)


class _CompiledGrammar:
    """A grammar whose states are copies of one matcher that never advances.

    `vocab_size` is the model's number of tokens, and `num_read` how many the matcher knows.
    """

    def __init__(self, matcher: LLMatcher, vocab_size: int, num_read: int) -> None:
        self._matcher = matcher
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
            raise GrammarFailed(f"the constraint failed: {_LACKS_TOKENS}")

    def accept(self, token_id: int) -> None:
        self._matcher.consume_token(token_id)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GrammarFailed(f"the constraint failed: {_reason(self._matcher)}")


def _reason(matcher: LLMatcher) -> str:
    """Why a matcher failed, in one line, without the position in a source that the client never saw."""
    text = _PLACE.sub("", matcher.get_error().partition("\n   1 | ")[0])
    if text.startswith("NoExtension"):
        return "no answer can satisfy it"
    if match := _UNKNOWN_KEYS.match(text):
        named = match[1].replace('"', "")
        return f"the keywords {named} are not supported"
    return " ".join(text.replace("<non-verbose/>", "").split())[:300]
