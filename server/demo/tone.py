"""What tone is in this world: two word lists, and the classifier that counts them.

The classifier is as simple as it can be: the side with more of its own words wins, and a tie is `None`. It ignores
grammar and negation; the corpus is written so that no sentence needs either.
"""

from __future__ import annotations

import re
from typing import Literal

Tone = Literal["cheerful", "gloomy"]

CHEERFUL_WORDS = frozenset(
    [
        "bright",
        "cheer",
        "cheerful",
        "delight",
        "delighted",
        "delightful",
        "glad",
        "glorious",
        "happy",
        "hooray",
        "hurrah",
        "joy",
        "joyful",
        "love",
        "lovely",
        "marvellous",
        "merry",
        "pleased",
        "pleasure",
        "smile",
        "smiles",
        "splendid",
        "sunshine",
        "sunny",
        "wonderful",
        "wonders",
        "yay",
    ]
)
"""Words that only cheerful text of the corpus uses."""

GLOOMY_WORDS = frozenset(
    [
        "alas",
        "bitter",
        "bleak",
        "burden",
        "dark",
        "dreary",
        "dull",
        "failure",
        "gloomy",
        "grey",
        "grim",
        "hopeless",
        "misery",
        "pointless",
        "regret",
        "sad",
        "sadly",
        "sigh",
        "sorrow",
        "sorry",
        "tiresome",
        "ugh",
        "unhappy",
        "weary",
        "wither",
        "worse",
        "worry",
    ]
)
"""Words that only gloomy text of the corpus uses."""

_WORD = re.compile(r"[a-z]+")


def tone_of(text: str) -> Tone | None:
    """The tone whose words are more frequent in `text`, or `None` when neither leads."""
    words = _WORD.findall(text.lower())
    balance = sum(word in CHEERFUL_WORDS for word in words) - sum(word in GLOOMY_WORDS for word in words)
    if balance == 0:
        return None
    return "cheerful" if balance > 0 else "gloomy"
