"""A rule as a judge: an answer shows the concept if a regular expression, or a word of a list, is found in it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vectors.behaviour.answers import SIDES, AnswerPair, Assessment
from vectors.errors import InvalidData, InvalidMethod


def expression_rule(expression: str) -> re.Pattern[str]:
    """A regular expression of Python's `re`, found anywhere; case does not count. Raises `InvalidMethod`."""
    try:
        return re.compile(expression, re.IGNORECASE)
    except (re.error, RecursionError, OverflowError) as error:
        raise InvalidMethod(f"expected a regular expression, got {expression[:60]!r}: {error}") from None


def read_words(text: str, name: str) -> tuple[str, ...]:
    """The words of a list, one on each line; blank lines and lines that begin with # are skipped.

    Raises `InvalidData`.
    """
    lines = (line.strip() for line in text.split("\n"))
    words = tuple(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
    if not words:
        raise InvalidData("expected at least one word, got none", name)
    return words


def words_rule(words: Sequence[str]) -> re.Pattern[str]:
    """Any of `words`, each as a whole word or phrase; case does not count."""
    # not \b, which finds no border beside a word such as C++
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, words))})(?!\w)", re.IGNORECASE)


def assess_by_rule(rule: re.Pattern[str], by: str, pairs: Sequence[AnswerPair]) -> Assessment:
    """1 for each answer in which `rule` is found, else 0; `by` says the rule in words."""
    scores = [
        {side: {"concept": float(rule.search(pair.of(side).text) is not None)} for side in SIDES} for pair in pairs
    ]
    return Assessment("rule", by, "concept", 0.0, 1.0, scores, {"expression": rule.pattern})
