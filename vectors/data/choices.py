"""Choice items from rows: questions, their options in any layout, and the answer in any spelling.

An answer that is a number is not settled by its own row: whether the file counts from 0 or from 1, or writes the right
option itself, is decided over all rows (`settle`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vectors.cancellation import check_cancelled
from vectors.data.cells import decoded, from_text
from vectors.data.items import LETTERS, MAX_CHOICES, ChoiceItem
from vectors.data.marks import NoOptions, mark_of, names_options, options_in, without_marks
from vectors.data.options import ReadOptions
from vectors.data.row import Row, UnusableRow, shown
from vectors.data.shapes import IN_FIELDS, LISTED, RIGHT_WRONG, SCORED, Fitted, option_marks, plain_name
from vectors.errors import InvalidData

TWINS = "options that are the same"
NAMING = "options that name other options"

_DIGITS = re.compile(r"[0-9]{1,3}(\.0+)?")
_ENOUGH = 8
"""With fewer numbers than this, that none of them is 0 tells nothing, and they count from 0 as documented."""

_COUNTS = ("from 0", "from 1", "text")
_WORDS = {"cause": "What was the cause of this?", "effect": "What happened as a result?"}
_TRUE = ("true", "yes", "1")

_PUBLISHED_COUNTS: tuple[tuple[frozenset[str], str], ...] = (
    (frozenset({"sol1", "sol2"}), "from 0"),
    (frozenset({"premise", "choice1", "choice2"}), "from 0"),
    (frozenset({"ctx", "endings"}), "from 0"),
    (frozenset({"sentence", "option1", "option2"}), "from 1"),
    (frozenset({"context", "answera", "answerb"}), "from 1"),
    (frozenset({"subject", "choices"}), "from 0"),
)
"""Fields of published data sets (PIQA, COPA, HellaSwag, Winogrande, SIQA, MMLU), and how their answers count."""


@dataclass(frozen=True, slots=True)
class Draft:
    """An item whose answer is a number: `places` is the option that it means under each way of counting."""

    row: Row
    question: str
    choices: tuple[str, ...]
    context: str | None
    places: Mapping[str, int]
    given: object
    fields: tuple[str, ...]


def choice_of(row: Row, fitted: Fitted) -> ChoiceItem | Draft:
    """The item of a row, or its draft. Raises `UnusableRow`."""
    if fitted.shape is LISTED:
        return _listed(row, fitted)
    if fitted.shape is IN_FIELDS:
        return _in_fields(row, fitted)
    if fitted.shape is SCORED:
        return _scored(row, fitted)
    if fitted.shape is RIGHT_WRONG:
        wrong = _wrong_answers(row, fitted.fields["incorrect"])
        return right_wrong_item(row, _question(row, fitted), row.text(fitted.one("correct")), wrong)
    given = row.value(fitted.one("verdict"))
    text = str(given).strip().lower()
    if text not in (*_TRUE, "false", "no", "0"):
        raise row.unusable(f"{fitted.one('verdict')}: expected true or false, got {shown(given)}")
    return choice_item(row, _question(row, fitted), ("Yes", "No"), 0 if text in _TRUE else 1)


def choice_item(row: Row, question: str, choices: Sequence[str], answer: int, context: str | None = None) -> ChoiceItem:
    """An item with its texts stripped. Raises `UnusableRow` for options that cannot be told apart or moved."""
    if not 2 <= len(choices) <= MAX_CHOICES:
        raise row.unusable(f"expected 2 to {MAX_CHOICES} choices, got {len(choices)}", "too few or too many options")
    stripped = tuple(choice.strip() for choice in choices)
    if twice := same_choices(stripped):
        first, second = twice
        raise row.unusable(
            f"choices {LETTERS[first]} and {LETTERS[second]} are the same: {shown(stripped[first])}", TWINS
        )
    _check_movable(row, stripped)
    if not 0 <= answer < len(stripped):
        raise row.unusable(f"answer: expected an index from 0 to {len(stripped) - 1}, got {shown(answer)}")
    return ChoiceItem(question.strip(), stripped, answer, context.strip() if context else None, row.line, row.group)


def _check_movable(row: Row, choices: Sequence[str]) -> None:
    for choice in choices:
        if names_options(choice, len(choices)):
            raise row.unusable(f"the option {shown(choice)} names others, so it cannot be moved", NAMING)


def same_choices(choices: Sequence[str]) -> tuple[int, int] | None:
    """The places of the first two options with the same text, ignoring surrounding white space."""
    seen: dict[str, int] = {}
    for place, choice in enumerate(choices):
        first = seen.setdefault(choice.strip(), place)
        if first != place:
            return first, place
    return None


def right_wrong_item(row: Row, question: str, right: str, wrong: Sequence[str]) -> ChoiceItem:
    """An item of a right answer and wrong ones. Raises `UnusableRow`.

    If all of them are letters or numbers of options, the options are taken out of the question: they can then be
    reordered.
    """
    question = question.replace("\r\n", "\n")
    right, *others = (text.strip() for text in (right, *wrong))
    marks = [mark_of(text) for text in (right, *others)]
    if None in marks:
        return choice_item(row, question, (right, *others), 0)
    try:
        question, options = options_in(question)
    except NoOptions as error:
        if all(text.isdigit() for text in (right, *others)):
            return choice_item(row, question, (right, *others), 0)
        raise row.unusable(str(error)) from None
    if marks[0] in marks[1:]:
        raise row.unusable(f"the two answers are the same: {shown(right)}", TWINS)
    for mark in marks:
        if mark not in options:
            raise row.unusable(f"expected an answer among the question's options {', '.join(options)}, got ({mark})")
    choices = [row.clean(text, f"option ({mark})") for mark, text in options.items()]
    return choice_item(row, row.clean(question, "question"), choices, list(options).index(str(marks[0])))


def settle(
    drafts: Sequence[Draft | ChoiceItem], options: ReadOptions
) -> tuple[list[ChoiceItem | UnusableRow], list[str]]:
    """Items for drafts, in the same order, and sentences on how the answers were counted.

    The way of counting under which most rows have an answer is taken. Where several are equally good and disagree, what
    is known of published files decides. Raises `InvalidData` if nothing does.
    """
    open_drafts = [draft for draft in drafts if isinstance(draft, Draft)]
    notes: list[str] = []
    count = _count_of(open_drafts, options) if open_drafts else "from 0"
    if open_drafts and count != "from 0":
        notes.append("the answers are numbers that count from 1" if count == "from 1" else "the answers are options")
    return [draft if isinstance(draft, ChoiceItem) else _settled(draft, count) for draft in drafts], notes


def _settled(draft: Draft, count: str) -> ChoiceItem | UnusableRow:
    check_cancelled()
    row, most = draft.row, len(draft.choices)
    place = draft.places.get(count)
    try:
        if place is None:
            expected = f"a number from 1 to {most}" if count == "from 1" else f"an index from 0 to {most - 1}"
            raise row.unusable(f"answer: expected {expected}, got {shown(draft.given)}")
        return choice_item(row, draft.question, draft.choices, place, draft.context)
    except UnusableRow as error:
        return error


def _count_of(drafts: Sequence[Draft], options: ReadOptions) -> str:
    if options.first_answer is not None:
        return f"from {options.first_answer}"
    valid = {count: sum(count in draft.places for draft in drafts) for count in _COUNTS}
    best = [count for count in _COUNTS if valid[count] == max(valid.values())]
    first = best[0]
    if all(draft.places.get(count) == draft.places.get(first) for draft in drafts for count in best):
        return first
    known = _known_count(drafts[0].fields)
    if known is None and len(drafts) < _ENOUGH:
        known = "from 0"
    if known in best and ("text" not in best or len(best) == 1):
        return known
    draft = next(draft for draft in drafts if len({draft.places.get(count) for count in best}) > 1)
    means = ", ".join(
        f"{count}: {shown(draft.choices[draft.places[count]])}" for count in best if count in draft.places
    )
    raise InvalidData(
        f"the answers are numbers, and nothing says how they count ({shown(draft.given)} may mean {means}); "
        "say it with --first-answer 0 or 1 (first_answer), or write letters",
        draft.row.file,
        draft.row.line,
    )


def _known_count(fields: Sequence[str]) -> str | None:
    plain = {plain_name(name) for name in fields}
    if any(name.endswith(("index", "idx")) for name in plain) or any(name.endswith("0") for name in plain):
        return "from 0"
    return next((count for names, count in _PUBLISHED_COUNTS if names <= plain), None)


def _listed(row: Row, fitted: Fitted) -> ChoiceItem | Draft:
    name = fitted.one("choices")
    given = decoded(row, name)
    labels: list[Any] = []
    if isinstance(given, dict):
        given, labels = _labelled(row, given)
    elif isinstance(given, list) and given and all(isinstance(entry, dict) for entry in given):
        labels = [entry.get("label") for entry in given]
        given = [entry.get("text", entry.get("content", entry.get("value"))) for entry in given]
    if not isinstance(given, list):
        raise row.unusable(f"{name}: expected a list, got {shown(given)}")
    if not 2 <= len(given) <= MAX_CHOICES:
        raise row.unusable(f"expected 2 to {MAX_CHOICES} choices, got {len(given)}", "too few or too many options")
    choices = [row.clean(value, f"choice {LETTERS[place]}") for place, value in enumerate(given)]
    return _answered(row, fitted, choices, labels)


def _labelled(row: Row, given: Mapping[str, Any]) -> tuple[list[Any], list[Any]]:
    """Options and their labels: from `{"text": [...], "label": [...]}` or `{"A": ..., "B": ...}`."""
    if set(given) == {"text", "label"}:
        texts, labels = given["text"], given["label"]
        if isinstance(texts, list) and isinstance(labels, list) and len(texts) == len(labels):
            return texts, labels
        raise row.unusable("choices: expected a text and a label for each")
    names = [name for name, value in given.items() if value is not None]
    if names and [name.upper() for name in names] == list(LETTERS[: len(names)]):
        return [given[name] for name in names], names
    raise row.unusable("choices: expected a list, an object with text and label, or one with A, B, …")


def _in_fields(row: Row, fitted: Fitted) -> ChoiceItem | Draft:
    names = list(fitted.fields["options"])
    while row.format == "csv" and names and not str(row.fields[names[-1]]).strip():
        names.pop()
    if not 2 <= len(names) <= MAX_CHOICES:
        raise row.unusable(f"expected 2 to {MAX_CHOICES} choices, got {len(names)}", "too few or too many options")
    _, marks = option_marks(tuple(names))
    if len(marks) == len(names) and marks[0] in ("A", "0", "1"):
        numbers = [int(mark) if mark.isdigit() else ord(mark) for mark in marks]
        if numbers != list(range(numbers[0], numbers[0] + len(numbers))):
            raise row.unusable("an option between the first and the last one is missing", "an option that is missing")
    choices = [row.clean(row.fields[name], f"choice {LETTERS[place]}") for place, name in enumerate(names)]
    answer = row.fields.get(fitted.one("answer"))
    if isinstance(answer, str) and len(answer.strip()) > 1:
        for place, name in enumerate(names):
            if plain_name(answer) == plain_name(name):
                return choice_item(row, *_question_and_context(row, fitted, choices, place))
    return _answered(row, fitted, choices, [])


def _question_and_context(
    row: Row, fitted: Fitted, choices: Sequence[str], answer: int
) -> tuple[str, Sequence[str], int, str | None]:
    context = row.optional_text(fitted.one("context")) if "context" in fitted.fields else None
    return _question(row, fitted), choices, answer, context


def _scored(row: Row, fitted: Fitted) -> ChoiceItem:
    name = fitted.one("scored")
    given = decoded(row, name)
    if not isinstance(given, dict):
        raise row.unusable(f"{name}: expected an object, got {shown(given)}")
    choices, scores = given.get("choices"), given.get("labels")
    if not isinstance(choices, list) or not isinstance(scores, list):
        choices, scores = list(given), list(given.values())
    if len(choices) != len(scores) or not all(isinstance(score, int | float) for score in scores) or not scores:
        raise row.unusable(f"{name}: expected a score for every choice")
    if scores.count(max(scores)) != 1:
        raise row.unusable(
            f"{name}: expected one right choice, got {scores.count(max(scores))}", "several right options"
        )
    texts = [row.clean(choice, f"choice {place + 1}") for place, choice in enumerate(choices)]
    return choice_item(row, _question(row, fitted), texts, scores.index(max(scores)))


def _wrong_answers(row: Row, names: Sequence[str]) -> list[str]:
    found: list[Any] = []
    for name in names:
        value = row.fields.get(name)
        if isinstance(value, str) and (listed := from_text(value)) is not None:
            value = listed
        elif isinstance(value, str) and plain_name(name).endswith(("answers", "distractors")):
            value = [part for part in value.split(";") if part.strip()]
        found += value if isinstance(value, list) else [] if value is None or value == "" else [value]
    if not found:
        raise row.unusable(f"the field {names[0]!r} is missing")
    texts = [row.clean(value, names[0]).strip() for value in found]
    return list(dict.fromkeys(texts))


def _question(row: Row, fitted: Fitted) -> str:
    """The question after its passage; a bare `cause` or `effect`, as in COPA, is asked in words."""
    question = row.text(fitted.one("question"))
    question = _WORDS.get(question.strip().lower(), question)
    passage = row.optional_text(fitted.one("passage")) if "passage" in fitted.fields else None
    return question if passage is None else f"{passage.strip()}\n{question.strip()}"


def _answered(row: Row, fitted: Fitted, choices: Sequence[str], labels: Sequence[Any]) -> ChoiceItem | Draft:
    """The item, when the answer is a label, a letter or a text; its draft, when it is a number."""
    question, _, _, context = _question_and_context(row, fitted, choices, 0)
    name = fitted.one("answer")
    answer = row.value(name)
    if isinstance(answer, list) and len(answer) == 1:
        answer = answer[0]
    if labels:
        key = answer.strip() if isinstance(answer, str) else answer
        if labels.count(key) == 1:
            return choice_item(row, question, without_marks(choices)[0], labels.index(key), context)
        if isinstance(key, str) and [str(label).upper() for label in labels].count(str(mark_of(key))) == 1:
            place = [str(label).upper() for label in labels].index(str(mark_of(key)))
            return choice_item(row, question, without_marks(choices)[0], place, context)
        raise row.unusable(f"{name}: expected the label of one choice, got {shown(answer)}")
    if isinstance(answer, str):  # before marks are taken away: the answer may carry one, too
        same = [place for place, choice in enumerate(choices) if choice.strip() == answer.strip()]
        if len(same) == 1 and len(answer.strip()) > 2 and mark_of(answer) is None:
            return choice_item(row, *_plain(question, choices), same[0], context)
    question, texts, marks = _unlisted(question, choices)
    if marks is not None and isinstance(answer, str) and mark_of(answer) in marks:
        return choice_item(row, question, texts, marks.index(str(mark_of(answer))), context)
    found = _index(row, answer, texts)
    _check_movable(row, texts)
    if isinstance(found, int):
        return choice_item(row, question, texts, found, context)
    names = tuple(row.fields)
    return Draft(row, question, tuple(texts), context, found, answer, (name, *names))


def _plain(question: str, choices: Sequence[str]) -> tuple[str, list[str]]:
    question, texts, _ = _unlisted(question, choices)
    return question, texts


def _unlisted(question: str, choices: Sequence[str]) -> tuple[str, list[str], list[str] | None]:
    """The question without a list of the same options, and the options without their marks, which come last."""
    texts, marks = without_marks(choices)
    are_letters = [choice.strip() for choice in choices] == list(LETTERS[: len(choices)])
    if not are_letters and texts[-1].strip() not in question:
        return question, texts, marks
    try:
        stem, listed = options_in(question)
    except NoOptions:
        return question, texts, marks
    own = [text.strip() for text in listed.values()]
    if are_letters and len(own) == len(choices):
        return stem, own, list(LETTERS[: len(choices)])
    return (stem if own == [text.strip() for text in texts] and stem.strip() else question), texts, marks


def _index(row: Row, answer: object, choices: Sequence[str]) -> int | dict[str, int]:
    """The index that an answer stands for: a letter or the text of an option; a number gives one for each count."""
    if isinstance(answer, str):
        text = answer.strip()
        same = next((place for place, choice in enumerate(choices) if choice.strip() == text), None)
        if _DIGITS.fullmatch(text):
            return _numbered(int(text.partition(".")[0]), len(choices), same)
        mark = mark_of(text)
        if mark is not None and mark.isalpha():
            return _index_of_letter(row, answer, mark, same, len(choices))
        if same is not None:
            return same
        if mark is not None and mark.isascii() and mark.isdigit():
            return _numbered(int(mark), len(choices), None)
    if isinstance(answer, float) and answer.is_integer():  # pandas writes a column with gaps like that
        answer = int(answer)
    if type(answer) is not int:
        raise row.unusable(f"answer: expected an index (from 0) or a letter, got {shown(answer)}")
    return _numbered(answer, len(choices), None)


def _numbered(number: int, count: int, same: int | None) -> dict[str, int]:
    places = {"from 0": number, "from 1": number - 1}
    found = {name: place for name, place in places.items() if 0 <= place < count}
    return found if same is None else found | {"text": same}


def _index_of_letter(row: Row, answer: str, letter: str, same: int | None, count: int) -> int:
    """The index of a letter; `same` is the choice whose text the answer is, if there is one."""
    place = LETTERS.index(letter)
    if same is not None and same != place:
        if place < count:
            raise row.unusable(
                f"answer: {shown(answer)} is the letter of one choice and the text of another; expected an index"
            )
        return same
    if place >= count:
        raise row.unusable(f"answer: expected a letter from A to {LETTERS[count - 1]}, got {shown(answer)}")
    return place
