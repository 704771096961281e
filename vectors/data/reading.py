"""Reading: a user's labelled data, from bytes in any accepted format -> a `DataSet`.

The format is told from the content and the kind of item from the fields; every error names the file and the line. It
does not know published tasks (`tasks.py`), prompts or models. Fields that it does not know are ignored, since published
data sets carry many beside those that are needed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from vectors.data.items import LETTERS, MAX_CHOICES, ChoiceItem, DataSet, Message, PairItem, TextItem
from vectors.data.rows import (
    MAX_ROWS,
    Row,
    check_line_lengths,
    csv_header,
    decode_text,
    is_parquet,
    read_rows,
    shown,
    text_format,
)
from vectors.errors import InvalidData

MIN_ITEMS = 8
"""The fewest items that can be split and trained on."""

_LETTER = re.compile(r"\(?([A-Z])\)?")
_CHOICES = re.compile(r"\n[ \t]*Choices:[ \t]*\n")
_ANSWER = re.compile(r"\n[ \t]*Answer:[ \t]*\n*\Z")
_OPTION = re.compile(r"[ \t]*\(([A-Z])\)[ \t]*(.*)")
_JSON_START = re.compile(r"\s*(?:\{|\[\s*[{\]])")

_Read = Callable[[Row], ChoiceItem | PairItem | TextItem]


def read_data(content: bytes, name: str, *, smallest: int = MIN_ITEMS) -> DataSet:
    """Choice items or pairs from Parquet, a JSON list, JSONL or CSV with a header; `name` is for messages only.

    Rows are one of `{"question","choices","answer","context"?}` (in place of `choices` also fields `choice0`,
    `choice1`, … or `A`, `B`, …), `{"question","answer_matching_behavior","answer_not_matching_behavior"}`,
    `{"input","preferred_output","non_preferred_output"}`, `{"positive","negative","prompt"?}`; all rows of a file give
    the same kind of item, and other fields are ignored. In CSV lists and objects are JSON inside a cell, an empty
    optional cell is an absent field, and empty choice columns at the end are options that an item lacks.
    Raises `InvalidData` (also for fewer than `smallest` items) and `MissingDependency` (Parquet without pyarrow).
    """
    items: list[Any] = []
    for row in read_rows(content, name):
        item = _form(row, texts=False)(row)
        if items and type(item) is not type(items[0]):
            first = items[0]
            raise row.error(f"is {_named(item)}, while the first one, {first.line}, is {_named(first)}")
        items.append(item)
    return data_set(name, hashlib.sha256(content).hexdigest(), items, smallest)


def read_retention(content: bytes, name: str) -> tuple[DataSet | None, tuple[TextItem, ...]]:
    """What must not get worse: choice items (None when there are none) and plain texts, at least one of either.

    The formats of `read_data` and rows `{"text"}`, mixed at will; a file of plain prose gives one text a paragraph
    (blank lines part them). Raises `InvalidData` and `MissingDependency`.
    """
    items: list[ChoiceItem] = []
    texts: list[TextItem] = []
    for item in _retention_items(content, name):
        if isinstance(item, TextItem):
            texts.append(item)
        else:
            items.append(item)
    if not items and not texts:
        raise InvalidData("holds neither a question nor a text", name)
    digest = hashlib.sha256(content).hexdigest()
    return data_set(name, digest, items, 1) if items else None, tuple(texts)


def data_set(name: str, sha256: str, items: Sequence[Any], smallest: int = MIN_ITEMS) -> DataSet:
    """A data set of items of one kind. Raises `InvalidData` when there are fewer than `smallest`."""
    if len(items) < smallest:
        raise InvalidData(f"{len(items)} items; at least {smallest} are needed", name)
    return DataSet(name, sha256, tuple(items))


def choice_item(row: Row, question: str, choices: Sequence[str], answer: int, context: str | None = None) -> ChoiceItem:
    """An item, its texts without the white space around them. Raises `InvalidData` at the row for wrong options."""
    if not 2 <= len(choices) <= MAX_CHOICES:
        raise row.error(f"{len(choices)} choices; there must be 2 to {MAX_CHOICES}")
    stripped = tuple(choice.strip() for choice in choices)
    if twice := same_choices(stripped):
        first, second = twice
        raise row.error(f"choices {LETTERS[first]} and {LETTERS[second]} share a text: {shown(stripped[first])}")
    if not 0 <= answer < len(stripped):
        raise row.error(f"answer {shown(answer)} is beyond the {len(stripped)} choices, which count from 0")
    return ChoiceItem(question.strip(), stripped, answer, context.strip() if context else None, row.line)


def same_choices(choices: Sequence[str]) -> tuple[int, int] | None:
    """The places of the first two options that are the same text, white space around them aside."""
    seen: dict[str, int] = {}
    for place, choice in enumerate(choices):
        first = seen.setdefault(choice.strip(), place)
        if first != place:
            return first, place
    return None


def behaviour_item(row: Row) -> ChoiceItem:
    """A question whose right answer is the one that matches the behaviour. Raises `InvalidData`.

    Where the answers are letters, the options are taken out of the question, so that they can be put in any order.
    """
    question = row.text("question")
    right = row.text("answer_matching_behavior").strip()
    wrong = row.text("answer_not_matching_behavior").strip()
    letters = _LETTER.fullmatch(right), _LETTER.fullmatch(wrong)
    if letters[0] is None or letters[1] is None:
        return choice_item(row, question, (right, wrong), 0)
    if letters[0][1] == letters[1][1]:
        raise row.error(f"both answers are {shown(right)}")
    question, options = _options_of(row, question)
    for letter in (letters[0][1], letters[1][1]):
        if letter not in options:
            raise row.error(f"the answer ({letter}) is not among the options of the question: {', '.join(options)}")
    choices = [row.clean(text, f"option ({letter})") for letter, text in options.items()]
    return choice_item(row, question, choices, list(options).index(letters[0][1]))


def _options_of(row: Row, question: str) -> tuple[str, dict[str, str]]:
    """The question without its list of options, and the options by letter."""
    parts = list(_CHOICES.finditer(question))
    if not parts:
        raise row.error("the answers are letters, but the question has no list 'Choices:' to find them in")
    options: dict[str, list[str]] = {}
    letter, after_blank = "", False
    for line in _ANSWER.sub("", question[parts[-1].end() :]).split("\n"):
        if match := _OPTION.fullmatch(line):
            letter, after_blank = match[1], False
            if letter in options:
                raise row.error(f"two options carry the letter ({letter})")
            options[letter] = [match[2]]
        elif not line.strip():
            after_blank = True
        elif not letter or after_blank:
            raise row.error(f"the list of options holds something else: {shown(line.strip())}")
        else:
            options[letter].append(line)
    return row.clean(question[: parts[-1].start()], "question"), {
        letter: "\n".join(lines) for letter, lines in options.items()
    }


def _choice(row: Row) -> ChoiceItem:
    choices = _choices(row)
    answer = row.value("answer")
    return choice_item(
        row, row.text("question"), choices, _index(row, answer, len(choices)), row.optional_text("context")
    )


def _choices(row: Row) -> list[str]:
    """The options, from a list or from fields of their own."""
    names = _choice_fields(row.fields)
    if "choices" in row.fields:
        if names:
            raise row.error(f"has both choices and {names[0]}")
        given = _decoded(row, "choices")
        if not isinstance(given, list):
            raise row.error(f"choices must be a list, not {shown(given)}")
        values = given
    else:
        values = [row.fields[name] for name in names]
        while row.format == "csv" and values and not values[-1].strip():
            values.pop()
    if not 2 <= len(values) <= MAX_CHOICES:
        raise row.error(f"{len(values)} choices; there must be 2 to {MAX_CHOICES}")
    return [row.clean(value, f"choice {LETTERS[place]}") for place, value in enumerate(values)]


def _choice_fields(fields: Mapping[str, Any]) -> list[str]:
    """The names of fields that hold one option each, in their order; empty when there are none."""
    for names in ([f"choice{number}" for number in range(MAX_CHOICES + 1)], list(LETTERS)):
        if names[0] in fields and names[1] in fields:
            return [name for name in names if name in fields]
    return []


def _index(row: Row, answer: object, count: int) -> int:
    """The index that an answer means: a number from 0, or a letter."""
    if isinstance(answer, str):
        text = answer.strip()
        if len(text) == 1 and text.upper() in LETTERS:
            place = LETTERS.index(text.upper())
            if place >= count:
                raise row.error(f"answer {shown(answer)} is beyond the {count} choices")
            return place
        if row.format == "csv" and re.fullmatch(r"[0-9]{1,3}", text):  # a CSV has no other numbers
            return int(text)
    if type(answer) is not int:
        raise row.error(f"answer must be an index (a number from 0) or a letter, not {shown(answer)}")
    return answer


def _pair(row: Row) -> PairItem:
    prompt = row.optional_text("prompt") or ""
    return _pair_item(row, row.text("positive"), row.text("negative"), prompt)


def _pair_item(row: Row, positive: str, negative: str, prompt: str | tuple[Message, ...]) -> PairItem:
    if positive.strip() == negative.strip():
        raise row.error("the two texts of the pair are the same")
    return PairItem(positive, negative, prompt, row.line)


def _preference(row: Row) -> PairItem:
    given = _decoded(row, "input")
    if not isinstance(given, dict):
        raise row.error(f"input must be an object with messages, not {shown(given)}")
    if given.get("tools"):
        raise row.error("input.tools: tools cannot be trained on")
    turns = _messages(row, given.get("messages"), "input.messages")
    outputs = []
    for name in ("preferred_output", "non_preferred_output"):
        messages = _messages(row, _decoded(row, name), name)
        if len(messages) != 1 or messages[0].role != "assistant":
            raise row.error(f"{name} must be one message of the assistant")
        outputs.append(messages[0].content)
    return _pair_item(row, outputs[0], outputs[1], turns)


def _messages(row: Row, given: object, what: str) -> tuple[Message, ...]:
    if not isinstance(given, list) or not given:
        raise row.error(f"{what} must be a list of messages, not {shown(given)}")
    messages = []
    for place, message in enumerate(given):
        where = f"{what}[{place}]"
        if not isinstance(message, dict):
            raise row.error(f"{where} must be an object with role and content, not {shown(message)}")
        if any(message.get(name) for name in ("tool_calls", "function_call", "audio")):
            raise row.error(f"{where}: tool calls and audio cannot be trained on")
        role = message.get("role")
        if role not in ("system", "developer", "user", "assistant") or not isinstance(role, str):
            raise row.error(f"{where}.role must be system, user or assistant, not {shown(role)}")
        if isinstance(message.get("content"), list):
            raise row.error(f"{where}.content must be text: parts and images cannot be trained on")
        content = row.clean(message.get("content"), f"{where}.content")
        # the newer word for the same turn, which chat templates do not know
        messages.append(Message("system" if role == "developer" else role, content))  # type: ignore[arg-type]
    return tuple(messages)


def _text(row: Row) -> TextItem:
    return TextItem(row.text("text"), row.line)


def _decoded(row: Row, name: str) -> Any:
    """A field that is a list or an object: as it is, or JSON inside a cell of a CSV."""
    value = row.value(name)
    if row.format != "csv":
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise row.error(f"{name} must be JSON inside the cell, not {shown(value)}") from None


_FORMS: Final[tuple[tuple[tuple[str, ...], tuple[str, ...], _Read], ...]] = (
    (("preferred_output", "non_preferred_output"), ("input",), _preference),
    (("answer_matching_behavior", "answer_not_matching_behavior"), ("question",), behaviour_item),
    (("positive", "negative"), (), _pair),
    (("choices",), ("question", "answer"), _choice),
)
"""Fields of which one tells the form, fields that it needs besides, and its reader."""


def _form(row: Row, *, texts: bool) -> _Read:
    """The reader for a row's fields."""
    found = [read for tells, _, read in _FORMS if any(name in row.fields for name in tells)]
    if not found and _choice_fields(row.fields):
        return _choice
    if not found and texts and "text" in row.fields:
        return _text
    if len(found) == 1:
        return found[0]
    given = ", ".join(name[:40] for name in list(row.fields)[:12]) or "none"
    known = "; ".join(", ".join(needs + tells) for tells, needs, _ in _FORMS) + ("; text" if texts else "")
    problem = "the fields fit several kinds of row" if found else "the fields are of no known kind of row"
    raise row.error(f"{problem}: found {given}; known are {known}")


def _retention_items(content: bytes, name: str) -> Iterator[ChoiceItem | TextItem]:
    text = None if is_parquet(content) else decode_text(content, name)
    if text is not None and _is_prose(text):
        yield from _paragraphs(text, name)
        return
    for row in read_rows(content, name):
        item = _form(row, texts=True)(row)
        if isinstance(item, PairItem):
            raise row.error("is a pair; retention is measured on questions with choices and on texts")
        yield item


def _is_prose(text: str) -> bool:
    """True for text that neither begins like JSON nor has the header of a CSV with known fields."""
    if text_format(text) != "csv":
        return _JSON_START.match(text) is None
    header = dict.fromkeys(csv_header(text), "")
    known = [{*tells, *needs} for tells, needs, _ in _FORMS] + [{"text"}]
    fields = set(header) | ({"choices"} if _choice_fields(header) else set())
    return not any(needed <= fields for needed in known)


def _paragraphs(text: str, name: str) -> Iterator[TextItem]:
    lines: list[str] = []
    count = begin = 0
    for number, line in [*check_line_lengths(text, name), (0, "")]:  # the last one ends the last paragraph
        if line.strip():
            begin = begin if lines else number
            lines.append(line.rstrip("\r"))
        elif lines:
            count += 1
            row = Row(name, begin, {"text": "\n".join(lines).strip()}, "jsonl")
            if count > MAX_ROWS:
                raise row.error(f"more than {MAX_ROWS:,} paragraphs")
            yield _text(row)
            lines = []


def _named(item: ChoiceItem | PairItem | TextItem) -> str:
    return "a question with choices" if isinstance(item, ChoiceItem) else "a pair of texts"
