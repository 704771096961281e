"""Matchers of grammars in llguidance's Lark dialect, and their compilation on trial in a child process.

It imports neither torch nor transformers, so that the child is small and starts soon.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from vectors.confined import Task

LACKS_TOKENS = "it needs a token that this model's vocabulary does not have"

_LIMITS = LLParserLimits(max_grammar_size=20_000, step_max_items=20_000, max_lexer_states=50_000, verbose_errors=False)
"""The limits of compilation and of one mask. They do not bound the time and memory of every grammar."""

_PLACE = re.compile(r"^at \d+\(\d+\): (failed to compile JSON schema: )?")
_UNKNOWN_KEYS = re.compile(r"Unimplemented keys: \[([^\]]*)\]")
_NUM_TRIED = 4


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What llguidance reads a tokenizer from: a `tokenizer.json`, its number of tokens, and those that end an answer.

    A model may have fewer: `num_allowed` of them.
    """

    data: str
    size: int
    end_token_ids: tuple[int, ...]
    num_allowed: int

    def tokenizer(self) -> LLTokenizer:
        """Raises `ValueError` when it cannot be read."""
        return LLTokenizer(self.data, n_vocab=self.size, eos_token=list(self.end_token_ids))

    def to_json(self) -> bytes:
        """Everything, for the child."""
        return json.dumps(asdict(self)).encode()


def compiled(source: str, tokenizer: LLTokenizer, num_allowed: int) -> LLMatcher | str:
    """A matcher in its first state, or the reason why `source` cannot be compiled.

    This includes a walk over a few tokens: only then do some grammars turn out to allow nothing or to grow too large.
    What the walk computed stays cached in the matcher and its copies. Other threads run meanwhile.
    """
    matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_lark(source), log_level=0, limits=_LIMITS)
    for _ in range(_NUM_TRIED):
        if matcher.is_stopped():
            break
        mask = int.from_bytes(matcher.compute_bitmask(), "little") if not matcher.is_error() else 0
        if matcher.is_error():
            break
        allowed = mask & ((1 << num_allowed) - 1)
        if not allowed:
            return LACKS_TOKENS
        matcher.consume_token((allowed & -allowed).bit_length() - 1)
    if matcher.is_error() or not matcher.reset():
        return reason_of(matcher)
    return matcher


def reason_of(matcher: LLMatcher) -> str:
    """Why a matcher failed, in one line, without the position in a source that the client never saw."""
    text = _PLACE.sub("", matcher.get_error().partition("\n   1 | ")[0])
    if text.startswith("NoExtension"):
        return "no answer can satisfy it"
    if match := _UNKNOWN_KEYS.match(text):
        named = match[1].replace('"', "")
        return f"the keywords {named} are not supported"
    return " ".join(text.replace("<non-verbose/>", "").split())[:300]


def prepare(setup: bytes) -> Task:
    """In the child: a task that compiles a grammar and gives the reason why it cannot be compiled, or null, as JSON."""
    read = json.loads(setup)
    vocabulary = Vocabulary(**{**read, "end_token_ids": tuple(read["end_token_ids"])})
    tokenizer = vocabulary.tokenizer()

    def try_out(source: bytes) -> Iterator[bytes]:
        found = compiled(source.decode(), tokenizer, vocabulary.num_allowed)
        yield json.dumps(found if isinstance(found, str) else None).encode()

    return try_out
