"""Text as it comes equals text at the end: against slow references, on random tokens of real and made tokenizers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from server.detokenizer import ChoiceText, Detokenizer, StopStrings, TokenTable
from tests.server.api.serving import byte_tokenizer
from tests.shared_files import shared

TOKENIZERS = ("bytes", "smollm2", "stories260K", "TinyStories-656K")
TEXTS = (
    "Once upon a time, there was a café.",
    " leading and  double  spaces \n\n and\ttabs ",
    "你好，世界！今天天气很好。",
    "🙂👩‍👩‍👧‍👦 flags 🇫🇷 and ﷽ and Ⅷ",
    "mixed 中文 and émoji 🎉 in one, then <|im_end|> as text",
    "",
    "a",
)


@cache
def tokenizer(name: str) -> PreTrainedTokenizerBase:
    """A tokenizer by name; the real ones need the shared folder."""
    if name == "bytes":
        return byte_tokenizer()
    if name == "smollm2":
        return PreTrainedTokenizerFast(tokenizer_file=str(shared("models/tokenizers/smollm2/tokenizer.json")))
    return AutoTokenizer.from_pretrained(shared(f"models/{name}"))


def decoded(name: str, token_ids: Sequence[int]) -> str:
    """What the tokenizer itself decodes, without special tokens."""
    return str(tokenizer(name).decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


@cache
def table(name: str) -> TokenTable:
    """Its table."""
    return TokenTable(tokenizer(name))


def pieces_of(table: TokenTable, token_ids: Sequence[int], *, begins_text: bool) -> list[str]:
    """What is shown after each token, and at the end."""
    detokenizer = Detokenizer(table, begins_text=begins_text)
    return [*map(detokenizer.push, token_ids), detokenizer.flush()]


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("text", TEXTS)
def test_pieces_join_to_what_the_tokenizer_decodes(name: str, text: str) -> None:
    token_ids = tokenizer(name).encode(text)
    whole = decoded(name, token_ids)
    pieces = pieces_of(table(name), token_ids, begins_text=True)
    assert "".join(pieces) == whole
    assert "\ufffd" not in "".join(pieces)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_random_tokens_decode_as_the_bytes_that_they_are(name: str) -> None:
    rng = random.Random(1)
    for _ in range(200):
        token_ids = [rng.randrange(len(tokenizer(name))) for _ in range(rng.randint(0, 40))]
        kept = [token_id for token_id in token_ids if not table(name).is_special(token_id)]
        reference = b"".join(map(table(name).bytes_of, kept)).decode("utf-8", "replace")
        pieces = pieces_of(table(name), token_ids, begins_text=False)
        assert "".join(pieces) == reference
        whole = decoded(name, token_ids)
        if "\ufffd" not in whole:  # tokenizers differ in how they show broken bytes, and in nothing else
            assert "".join(pieces_of(table(name), token_ids, begins_text=True)) == whole


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_continuation_joins_its_prompt(name: str) -> None:
    token_ids = tokenizer(name).encode("The little girl had a red ball and 你好 was all she said.")
    for cut in range(2, len(token_ids)):
        before = decoded(name, token_ids[:cut])
        if before.endswith("\ufffd"):
            continue  # cut within a character
        after = "".join(pieces_of(table(name), token_ids[cut:], begins_text=False))
        assert before + after == decoded(name, token_ids)


def test_a_character_is_shown_whole_or_not_at_all() -> None:
    token_ids = tokenizer("bytes").encode("a你🙂é")
    shown = [piece for piece in pieces_of(table("bytes"), token_ids, begins_text=True) if piece]
    assert shown == ["a", "你", "🙂", "é"]


def test_what_stays_incomplete_is_shown_at_the_end() -> None:
    token_ids = tokenizer("bytes").encode("a🙂")[:-1]
    assert pieces_of(table("bytes"), token_ids, begins_text=True) == ["a", "", "", "", "\ufffd"]


def test_special_and_unknown_tokens_are_no_text() -> None:
    text = pieces_of(table("bytes"), [1, *tokenizer("bytes").encode("x"), 2, 99_999], begins_text=True)
    assert "".join(text) == "x"


def test_tokens_have_names_and_bytes() -> None:
    h, first, *_ = tokenizer("bytes").encode("h你")
    names = [table("bytes").name_of(token_id) for token_id in (h, first, 2)]
    assert names == ["h", "bytes:\\xe4", "<|im_end|>"]
    assert table("bytes").bytes_of(first) == b"\xe4"


def reference_cut(pieces: Sequence[str], stops: Sequence[str], num_deaf: int) -> tuple[str, str | None]:
    """Slowly, with `str.find` on the whole text: cut before the stop that completes first, the longest of those.

    Stops that complete within the first `num_deaf` pieces do not count.
    """
    text = "".join(pieces)
    deaf = len("".join(pieces[:num_deaf]))
    for end in range(deaf + 1, len(text) + 1):
        found = [
            stop for stop in stops if text[:end].endswith(stop) and text.find(stop, end - len(stop)) == end - len(stop)
        ]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


def test_stop_strings_against_a_slow_reference() -> None:
    rng = random.Random(2)
    alphabet = ["a", "b", "ab", "你", "🙂", "好a"]
    for _ in range(5000):
        pieces = ["".join(rng.choices(alphabet, k=rng.randint(0, 3))) for _ in range(rng.randint(0, 12))]
        stops = ["".join(rng.choices(alphabet, k=rng.randint(1, 4))) for _ in range(rng.randint(1, 4))]
        num_deaf = rng.choice((0, 0, 2, 5))
        matcher = StopStrings(stops)
        shown = ""
        for number, piece in enumerate(pieces):
            shown += matcher.push(piece, may_stop=number >= num_deaf)
            if matcher.found is not None:
                break
            rest = "".join(pieces[: number + 1])[len(shown) :]
            assert not rest or any(stop.startswith(rest) and stop != rest for stop in stops), "held back for nothing"
        if matcher.found is None:
            shown += matcher.flush()
        assert (shown, matcher.found) == reference_cut(pieces, stops, num_deaf), (pieces, stops, num_deaf)


def test_a_choice_of_random_tokens_stops_where_its_text_does() -> None:
    rng = random.Random(3)
    encode = tokenizer("bytes").encode
    for _ in range(500):
        source = "".join(rng.choices(["a", "b", "你好", "🙂", "é"], k=rng.randint(0, 12)))
        token_ids = encode(source)
        if rng.random() < 0.3:
            token_ids = token_ids[: rng.randint(0, len(token_ids))]
        stops = [rng.choice(["ab", "好", "🙂a", "é", "\ufffd", "b你"]) for _ in range(2)]
        text = "".join(pieces_of(table("bytes"), token_ids, begins_text=True))
        choice = ChoiceText(table("bytes"), begins_text=True, stops=stops)
        shown = ""
        for token_id in token_ids:
            shown += choice.push(token_id)
            if choice.is_stopped:
                break
        shown += choice.flush()
        assert (shown, choice.is_stopped) == (
            reference_cut(list(text), stops, 0)[0],
            any(stop in text for stop in stops),
        )


def test_a_choice_counts_the_token_that_completed_the_stop() -> None:
    choice = ChoiceText(table("bytes"), begins_text=True, stops=["cd"])
    shown = ""
    for token_id in tokenizer("bytes").encode("abcdef"):
        shown += choice.push(token_id)
        if choice.is_stopped:
            break
    assert (shown, choice.num_tokens) == ("ab", 4)


def test_a_stop_within_min_tokens_is_text() -> None:
    choice = ChoiceText(table("bytes"), begins_text=True, stops=["b"], min_tokens=3)
    shown = ""
    for token_id in tokenizer("bytes").encode("abcabc"):
        shown += choice.push(token_id)
        if choice.is_stopped:
            break
    assert (shown, choice.num_tokens) == ("abca", 5)


def test_an_end_token_is_counted_and_not_shown() -> None:
    choice = ChoiceText(table("bytes"), begins_text=True)
    (token_id,) = tokenizer("bytes").encode("x")
    assert choice.push(token_id) + choice.push(token_id, is_end=True) + choice.flush() == "x"
    assert choice.num_tokens == 2
