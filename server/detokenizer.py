"""Turns token ids into text as they arrive: whole characters only, with stop strings found across token boundaries.

Every tokenizer's decoder concatenates bytes that depend on one token each. So text is made by concatenating these
bytes and decoding UTF-8 as it completes. `ChoiceText` is the text of one choice of a response. Where the parts of an
answer are read, tokens that delimit them are marks (see `server/marks.py`).
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Protocol

from transformers import PreTrainedTokenizerBase

from server.marks import NO_MARKS, Marks, hidden_marks

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_of_symbol() -> dict[str, int]:
    """The alphabet of byte-level BPE: printable Latin-1 stands for itself, the other bytes for symbols from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(0x100 + index): byte for index, byte in enumerate(others)}


_BYTE_OF_SYMBOL = _byte_of_symbol()
_SYMBOL_OF_BYTE = {byte: symbol for symbol, byte in _BYTE_OF_SYMBOL.items()}


def byte_symbols(text: str) -> str:
    """`text` as byte-level BPE spells it in its vocabulary."""
    return "".join(_SYMBOL_OF_BYTE[byte] for byte in text.encode("utf-8", "replace"))


def _decoder_kinds(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """The names of the steps of a fast tokenizer's decoder; empty for other tokenizers."""
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    if decoder is None:
        return set()

    def walk(step: dict[str, Any]) -> Iterator[str]:
        yield str(step.get("type"))
        for inner in step.get("decoders", ()):
            yield from walk(inner)

    return set(walk(json.loads(decoder.__getstate__())))


class TokenTable:
    """The bytes of every token, looked up on first use."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        kinds = _decoder_kinds(tokenizer)
        self.is_byte_level = "ByteLevel" in kinds
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._has_byte_tokens = backend is None or "ByteFallback" in kinds
        added = backend.get_added_tokens_decoder() if backend is not None else {}
        self._special_ids = frozenset(tokenizer.all_special_ids) | {
            token_id for token_id, token in added.items() if token.special
        }
        self._added: dict[int, str] = {token_id: token.content for token_id, token in added.items()}
        self._bytes: dict[int, bytes] = {}
        self._anchor = self._tokens_of("a")[-1:]
        self._anchor_text = self._decode(self._anchor)
        self.strips_leading_space = self._finds_stripping()

    @cached_property
    def special_names(self) -> dict[int, str]:
        """The names of the control tokens by id."""
        return {token_id: self.bytes_of(token_id).decode("utf-8", "replace") for token_id in sorted(self._special_ids)}

    @cached_property
    def added_names(self) -> dict[int, str]:
        """The texts that are always one token, by id: control tokens and other tokens added to the vocabulary."""
        return dict(sorted((self._added | self.special_names).items()))

    def is_special(self, token_id: int) -> bool:
        """True for control tokens, which are not part of any text."""
        return token_id in self._special_ids

    def bytes_of(self, token_id: int) -> bytes:
        """The bytes that the token adds to the text before it; for a special token, its name."""
        found = self._bytes.get(token_id)
        if found is None:
            found = self._bytes[token_id] = self._find_bytes(token_id)
        return found

    def name_of(self, token_id: int) -> str:
        """The token as log-probabilities show it: its text, or `bytes:\\xe4\\xbd` when it is not whole characters."""
        content = self.bytes_of(token_id)
        try:
            return content.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)

    def _find_bytes(self, token_id: int) -> bytes:
        symbol = self._tokenizer.convert_ids_to_tokens(token_id)
        if not isinstance(symbol, str):  # the model has more ids than the tokenizer
            return b""
        if self.is_special(token_id):
            return symbol.encode("utf-8", "replace")
        if self.is_byte_level:
            if token_id in self._added:  # its letters are letters, even those of the alphabet of bytes
                return self._added[token_id].encode("utf-8", "replace")
            if all(character in _BYTE_OF_SYMBOL for character in symbol):
                return bytes(_BYTE_OF_SYMBOL[character] for character in symbol)
            return symbol.encode("utf-8", "replace")
        byte = _BYTE_TOKEN.fullmatch(symbol) if self._has_byte_tokens else None
        if byte is not None:
            return bytes([int(byte[1], 16)])
        text = self._decode([*self._anchor, token_id])
        return text.removeprefix(self._anchor_text).encode("utf-8", "replace")

    def _decode(self, token_ids: Sequence[int]) -> str:
        text = self._tokenizer.decode(list(token_ids), clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    def _tokens_of(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def _finds_stripping(self) -> bool:
        for token_id in self._tokens_of("a a"):
            if self.bytes_of(token_id).startswith(b" ") and not self._decode([token_id]).startswith(" "):
                return True
        return False


class Detokenizer:
    """The text of a growing list of tokens: no control tokens, `marks` for delimiters, and never half a character.

    `begins_text` says that nothing comes before. Tokenizers that mark the start of a text with a space then drop
    that space.
    """

    def __init__(self, table: TokenTable, *, begins_text: bool, marks: Sequence[Marks] = ()) -> None:
        self._table = table
        self._marks = marks
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._drops_space = begins_text and table.strips_leading_space

    def push(self, token_id: int) -> str:
        """The characters that `token_id` completes."""
        for marks in self._marks:
            if (mark := marks.of(token_id)) is not None:
                return self._cut(self._decoder.decode(b"", final=True) + mark)
        if self._table.is_special(token_id):
            return ""
        return self._cut(self._decoder.decode(self._table.bytes_of(token_id)))

    def flush(self) -> str:
        """The rest at the end: U+FFFD for an incomplete character."""
        return self._cut(self._decoder.decode(b"", final=True))

    def _cut(self, text: str) -> str:
        if self._drops_space and text:
            self._drops_space = False
            return text.removeprefix(" ")
        return text


class StopStrings:
    """Cuts a text before the first of `stops` that completes, and holds back only what may become one of them.

    A mark counts as the text that it stands for.
    """

    def __init__(self, stops: Sequence[str], marks: Sequence[Marks] = ()) -> None:
        self._stops = tuple(stops)
        self._marks = marks
        self._held = ""
        self.found: str | None = None

    def push(self, text: str, *, may_stop: bool = True) -> str:
        """What may be shown after `text`; sets `found`. Unless `may_stop`, a stop that `text` completes is text."""
        assert self.found is None
        if not self._stops:
            return text
        num_held = len(self._plain(self._held))
        text = self._held + text
        plain = self._plain(text)
        if may_stop:
            matches = [
                (start + len(stop), start, stop)
                for stop in self._stops
                if (start := plain.find(stop, max(0, num_held - len(stop) + 1))) >= 0
            ]
            if matches:
                _, start, self.found = min(matches)
                self._held = ""
                return self._beginning(text, start)
        num_held = max(_overlap(plain, stop) for stop in self._stops)
        shown = self._beginning(text, len(plain) - num_held)
        self._held = text[len(shown) :]
        return shown

    def flush(self) -> str:
        """What was held back, once no more text comes."""
        held, self._held = self._held, ""
        return held

    def _plain(self, text: str) -> str:
        for marks in self._marks:
            text = marks.plain(text)
        return text

    def _beginning(self, text: str, length: int) -> str:
        """As much of `text` as stands for at most `length` characters."""
        for number, character in enumerate(text):
            length -= len(self._plain(character))
            if length < 0:
                return text[:number]
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest suffix of `text` that is a proper prefix of `stop`."""
    start = max(0, len(text) - len(stop) + 1)
    while (start := text.find(stop[0], start)) >= 0:
        if stop.startswith(text[start:]):
            return len(text) - start
        start += 1
    return 0


class Thought(Protocol):
    """Follows a text and says whether the model is thinking; see `AnswerPartsState`."""

    @property
    def is_reasoning(self) -> bool:
        """True when the next character belongs to the reasoning."""
        ...

    def take(self, character: str) -> None:
        """Advance by one character."""
        ...


class ChoiceText:
    """The text of one choice while it is generated.

    Stop strings that complete within the first `min_tokens` tokens, or while the model is thinking, do not stop.
    They may name control tokens. `num_tokens` counts the pushed tokens, including the one that completed a stop
    string. `marks`: the delimiters that the text shows as marks.
    """

    def __init__(
        self,
        table: TokenTable,
        *,
        begins_text: bool,
        stops: Sequence[str] = (),
        min_tokens: int = 0,
        marks: Marks = NO_MARKS,
        thought: Thought | None = None,
    ) -> None:
        self._hidden = _named_in(stops, table, marks)
        self._detokenizer = Detokenizer(table, begins_text=begins_text, marks=(marks, self._hidden))
        self._stops = StopStrings(stops, (marks, self._hidden))
        self._thought = thought if stops else None
        self._marks = marks
        self._min_tokens = min_tokens
        self.num_tokens = 0
        self.num_characters = 0

    @property
    def is_stopped(self) -> bool:
        """True once a stop string was found; nothing more may be pushed."""
        return self._stops.found is not None

    def push(self, token_id: int, *, is_end: bool = False) -> str:
        """The text to show after this token. An `is_end` token (end of sequence, stop id) is counted but not shown."""
        self.num_tokens += 1
        if is_end:
            return ""
        return self._release(self._detokenizer.push(token_id))

    def flush(self) -> str:
        """The rest, once no more tokens come; it may still complete a stop string."""
        if self.is_stopped:
            return ""
        shown = self._release(self._detokenizer.flush())
        return shown if self.is_stopped else shown + self._hidden.without(self._stops.flush())

    def _release(self, text: str) -> str:
        self.num_characters += len(self._marks.plain(self._hidden.without(text)))
        may_stop = self.num_tokens > self._min_tokens
        if self._thought is None:
            return self._hidden.without(self._stops.push(text, may_stop=may_stop))
        shown = []
        for character in text:
            if self.is_stopped:
                break
            if self._thought.is_reasoning:
                shown += [self._stops.flush(), character]
            else:
                shown.append(self._stops.push(character, may_stop=may_stop))
            self._thought.take(character)
        return self._hidden.without("".join(shown))


def _named_in(stops: Sequence[str], table: TokenTable, marks: Marks) -> Marks:
    """The control tokens that `stops` name, unless the text shows them anyway."""
    if not stops:
        return NO_MARKS
    names = table.special_names.items()
    return hidden_marks(
        {
            token_id: name
            for token_id, name in names
            if name and token_id not in marks.names and any(name in stop for stop in stops)
        }
    )
