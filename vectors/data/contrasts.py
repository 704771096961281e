"""Contrasts: names of two classes, and which of them is the wanted one."""

from __future__ import annotations

import re

CONTRASTS: tuple[tuple[str, str], ...] = (
    ("positive", "negative"),
    ("pos", "neg"),
    ("1", "0"),
    ("1", "-1"),
    ("true", "false"),
    ("yes", "no"),
    ("good", "bad"),
    ("correct", "incorrect"),
    ("harmful", "harmless"),
    ("unsafe", "safe"),
    ("toxic", "nontoxic"),
    ("refusal", "compliance"),
    ("refused", "complied"),
    ("honest", "dishonest"),
    ("happy", "sad"),
    ("chosen", "rejected"),
)
"""Two classes, the wanted one first: the one that the vector is to strengthen."""

_REQUESTS = {"harmful", "harmless", "unharmful", "unsafe", "safe"}
_REPLIES = re.compile(r"(?:responses?|replies|reply|completions?|outputs?|refusal|compliance|refused|complied)$")
_NEGATIONS = ("non", "not", "un", "dis", "in", "im", "ir")


def class_name(label: object) -> str:
    """A label as text: 1.0 and 1 are the same, and so are `True` and `true`."""
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    return str(label).strip().lower() if isinstance(label, bool) else str(label).strip()


def is_class_name(text: str) -> bool:
    """True for the name of a class in the table, or a negation of one."""
    plain = _plain(text)
    return any(plain in pair for pair in CONTRASTS) or any(
        plain == negation + name for pair in CONTRASTS for name in pair for negation in _NEGATIONS
    )


def class_of(one: str, other: str) -> str | None:
    """The wanted one of two classes: by the table, or the one of which the other is the negation. None: not known."""
    plain = _plain(one), _plain(other)
    for wanted, unwanted in CONTRASTS:
        if plain == (wanted, unwanted):
            return one
        if plain == (unwanted, wanted):
            return other
    for name, wanted, unwanted in ((one, *plain), (other, *plain[::-1])):
        if any(unwanted == negation + wanted for negation in _NEGATIONS):
            return name
    return None


def are_requests(*classes: str) -> bool:
    """True if the classes are of what users ask, such as `harmful` and `harmless`."""
    return all(_plain(name) in _REQUESTS for name in classes)


def are_replies(*classes: str) -> bool:
    """True if the classes are of what an assistant says, such as `compliant_responses`."""
    return all(_REPLIES.search(_plain(name)) is not None for name in classes)


def _plain(name: str) -> str:
    return re.sub(r"[\s_\-]+", "", name).lower() if not re.fullmatch(r"-?\d+", name.strip()) else name.strip()
