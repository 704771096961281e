"""Marks of options: `(A)`, `A)`, `A.`, `A:`, `[A]`, and the same with lower-case letters or digits.

Answers are told by them, questions list their options with them, options may carry them, and some options name others.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_MARK = re.compile(r"[(\[]?([A-Za-z0-9])[).:\]]?")
_WORDED = re.compile(r"(?:option|choice|answer)[ _:]*[(\[]?([A-Za-z0-9])[).:\]]?", re.IGNORECASE)

_SETS = ("A-Z", "a-z", "0-9")
_CLOSINGS = ((r"\(", r"\)"), (r"\[", r"\]"), ("", r"\)"), ("", r"\.(?=\s|$)"), ("", r":(?=\s|$)"))
_STYLES = [
    re.compile(rf"[ \t]*{opening}([{marks}]){closing}[ \t]*(.*)", re.DOTALL)
    for marks in _SETS
    for opening, closing in _CLOSINGS
]
"""The beginning of an option, in each style; all options of a list have the style of the first."""

_HEADING = re.compile(r"\n[ \t]*(?:Answer )?(?:Choices|Options):[ \t]*(?=\n)", re.IGNORECASE)
_ANSWER = re.compile(r"\n[ \t]*Answer:[ \t]*\n*\Z", re.IGNORECASE)
_INLINE = re.compile(r"(?<!\S)\(([A-Z])\)[ \t]*")

_M = r"(?:[(\[]([A-Za-z])[)\]]|([A-Z]))"
_NAMING = re.compile(
    rf"(?i:(?:both|either|neither|only|all of|options?|choices?|answers?)\s+)?{_M}"
    rf"(?:\s*(?:,|&|\+|(?i:and|or|nor))+\s*{_M})+(?i:\s+only|\s+(?:are|is)\s+\w+)?\.?"
    rf"|(?i:only)\s+{_M}\.?|{_M}\s+(?i:only)\.?",
)
_ABOVE = re.compile(
    r"\b(?:all|none|any|both|either|neither|each|some|one|two|three)(?: of)?(?: the)?"
    r"(?: \w+)? (?:above|below|preceding|foregoing)\b",
    re.IGNORECASE,
)


class NoOptions(ValueError):
    """The question lists no options, or lists them in a way that cannot be read; the message says how."""


def mark_of(answer: str) -> str | None:
    """The letter (a capital) or digit by which an answer names an option, None for any other text."""
    match = _MARK.fullmatch(answer.strip()) or _WORDED.fullmatch(answer.strip())
    return match[1].upper() if match is not None else None


def without_marks(choices: Sequence[str]) -> tuple[list[str], list[str] | None]:
    """The options without the marks that they carry in one style and in order, and the marks (None: they have none)."""
    for style in _STYLES:
        found = [style.fullmatch(choice) for choice in choices]
        marks = [match[1].upper() for match in found if match is not None]
        if len(marks) == len(choices) and _is_sequence(marks):
            texts = [match[2] for match in found if match is not None]
            if all(text.strip() for text in texts):
                return texts, marks
    return list(choices), None


def names_options(choice: str, count: int) -> bool:
    """True for an option such as `Both A and B` or `None of the above`, which means nothing in another place.

    `count`: how many options the item has.
    """
    if _ABOVE.search(choice):
        return True
    match = _NAMING.fullmatch(choice.strip())
    return match is not None and all(ord(letter.upper()) - ord("A") < count for letter in match.groups() if letter)


def options_in(question: str) -> tuple[str, dict[str, str]]:
    """A question without the options that it lists at its end, and these by their letter (a capital) or digit.

    The list is under a heading such as `Choices:`, or its lines, or its inline `(A) …`, are in order from the first.
    Raises `NoOptions`.
    """
    text = _ANSWER.sub("", question.replace("\r\n", "\n"))
    headings = list(_HEADING.finditer(text))
    if headings:
        return text[: headings[-1].start()], _listed(text[headings[-1].end() :].split("\n"))
    lines = text.split("\n")
    for number in range(len(lines) - 1, 0, -1):
        style = _style_of(lines[number])
        if style is not None and _first_mark(style, lines[number]) in "A10":
            try:
                options = _listed(lines[number:])
            except NoOptions:
                continue
            if len(options) > 1 and _is_sequence(list(options)):
                return "\n".join(lines[:number]), options
    return _inline(text)


def _style_of(line: str) -> re.Pattern[str] | None:
    return next((style for style in _STYLES if style.fullmatch(line)), None)


def _first_mark(style: re.Pattern[str], line: str) -> str:
    match = style.fullmatch(line)
    assert match is not None
    return str(match[1]).upper()


def _listed(lines: Sequence[str]) -> dict[str, str]:
    options: dict[str, list[str]] = {}
    letter, after_blank = "", False
    first = next((line for line in lines if line.strip()), "")
    style = _style_of(first) or _STYLES[0]
    for line in lines:
        if match := style.fullmatch(line):
            letter, after_blank = match[1].upper(), False
            if letter in options:
                raise NoOptions(f"two options have the letter ({letter})")
            options[letter] = [match[2]]
        elif not line.strip():
            after_blank = True
        elif not letter or after_blank:
            raise NoOptions(
                f"expected an option such as '(A) text' in the list of choices, got {repr(line.strip())[:60]}"
            )
        else:
            options[letter].append(line)
    return {letter: "\n".join(lines) for letter, lines in options.items()}


def _inline(text: str) -> tuple[str, dict[str, str]]:
    marks = list(_INLINE.finditer(text))
    starts = [number for number, mark in enumerate(marks) if mark[1] == "A"]
    if starts:
        marks = marks[starts[-1] :]
        ends = [*(mark.start() for mark in marks[1:]), len(text)]
        options = {mark[1]: text[mark.end() : end].strip() for mark, end in zip(marks, ends, strict=True)}
        if len(options) > 1 and _is_sequence(list(options)) and len(options) == len(marks):
            return text[: marks[0].start()], options
    raise NoOptions("the answers are letters or numbers of options, but the question has no 'Choices:' list")


def _is_sequence(marks: Sequence[str]) -> bool:
    """True for A, B, C, … or 1, 2, 3, … or 0, 1, 2, …"""
    first = marks[0]
    return first in "A10" and list(marks) == [chr(ord(first) + place) for place in range(len(marks))]
