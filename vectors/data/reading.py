"""Reads a user's labelled data: bytes in any accepted format -> a `DataSet`.

The content tells the format, and the fields tell the kind of item. Every error names the file and the line. Unknown
fields are ignored, since published data sets have many beyond those needed here.
"""

from __future__ import annotations

import dataclasses
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

_MARK = re.compile(r"\(?([A-Za-z0-9])[).:]?")
"""An answer that names an option: `A`, `(A)`, `A)`, `A.` or `A:`."""

_CHOICES = re.compile(r"\n[ \t]*Choices:[ \t]*\n")
_ANSWER = re.compile(r"\n[ \t]*Answer:[ \t]*\n*\Z")
_OPTIONS = [
    re.compile(rf"[ \t]*{opening}([{marks}]){closing}[ \t]*(.*)")
    for marks in ("A-Z", "a-z", "0-9")
    for opening, closing in ((r"\(", r"\)"), ("", r"\)"), ("", r"\."), ("", ":"))
]
"""The first line of an option, in each style; all options of a list have the style of the first."""

_JSON_START = re.compile(r"\s*(?:\{|\[\s*[{\]])")

_Read = Callable[[Row], ChoiceItem | PairItem | TextItem]


def read_data(content: bytes, name: str, *, smallest: int = MIN_ITEMS) -> DataSet:
    """Choice items or pairs from Parquet, a JSON list, JSONL or CSV with a header; `name` is for messages only.

    Rows are one of `{"question","choices","answer","context"?}`,
    `{"question","answer_matching_behavior","answer_not_matching_behavior"}`,
    `{"input","preferred_output","non_preferred_output"}`, `{"positive","negative","prompt"?}`; all rows of a file must
    be of the same kind, and other fields are ignored. A field `group` names what items have in common. `choices` is a
    list, `{"A","B",…}`, or `{"text","label"}` with an `answer` or `answerKey` among its labels; in its place there may
    be fields `choice0`, `choice1`, … or `A`, `B`, …. In CSV, lists and objects are JSON in a cell, an empty optional
    cell is an absent field, and empty choice columns at the end are absent options. Raises `InvalidData` (also for
    fewer than `smallest` items) and `MissingDependency`
    (Parquet without pyarrow).
    """
    items: list[Any] = []
    for row in read_rows(content, name):
        item = _in_group(row, _find_reader(row, texts=False)(row))
        if items and type(item) is not type(items[0]):
            first = items[0]
            raise row.error(f"expected {_named(first)} like the first item (line {first.line}), got {_named(item)}")
        items.append(item)
    return data_set(name, hashlib.sha256(content).hexdigest(), items, smallest)


def read_retention(content: bytes, name: str) -> tuple[DataSet | None, tuple[TextItem, ...]]:
    """Data for retention: choice items (None without any) and plain texts, at least one of either.

    Accepts the formats of `read_data` and rows `{"text"}`, mixed in any way; plain prose gives one text per paragraph,
    separated by blank lines. Raises `InvalidData` and `MissingDependency`.
    """
    items: list[ChoiceItem] = []
    texts: list[TextItem] = []
    for item in _retention_items(content, name):
        if isinstance(item, TextItem):
            texts.append(item)
        else:
            items.append(item)
    if not items and not texts:
        raise InvalidData("expected at least one question or text, got none", name)
    digest = hashlib.sha256(content).hexdigest()
    return data_set(name, digest, items, 1) if items else None, tuple(texts)


def data_set(name: str, sha256: str, items: Sequence[Any], smallest: int = MIN_ITEMS) -> DataSet:
    """A data set of items of one kind. Raises `InvalidData` when there are fewer than `smallest`."""
    if len(items) < smallest:
        raise InvalidData(f"expected at least {smallest} items, got {len(items)}", name)
    return DataSet(name, sha256, tuple(items))


def choice_item(row: Row, question: str, choices: Sequence[str], answer: int, context: str | None = None) -> ChoiceItem:
    """An item with its texts stripped. Raises `InvalidData` naming the row for wrong options."""
    if not 2 <= len(choices) <= MAX_CHOICES:
        raise row.error(f"expected 2 to {MAX_CHOICES} choices, got {len(choices)}")
    stripped = tuple(choice.strip() for choice in choices)
    if twice := same_choices(stripped):
        first, second = twice
        raise row.error(f"choices {LETTERS[first]} and {LETTERS[second]} are the same: {shown(stripped[first])}")
    if not 0 <= answer < len(stripped):
        raise row.error(f"answer: expected an index from 0 to {len(stripped) - 1}, got {shown(answer)}")
    return ChoiceItem(question.strip(), stripped, answer, context.strip() if context else None, row.line)


def same_choices(choices: Sequence[str]) -> tuple[int, int] | None:
    """The places of the first two options with the same text, ignoring surrounding white space."""
    seen: dict[str, int] = {}
    for place, choice in enumerate(choices):
        first = seen.setdefault(choice.strip(), place)
        if first != place:
            return first, place
    return None


def behaviour_item(row: Row) -> ChoiceItem:
    """A question whose right answer is the one that matches the behaviour. Raises `InvalidData`.

    If the answers are letters or numbers of options, these are taken out of the question: they can then be reordered.
    """
    question = row.text("question").replace("\r\n", "\n")
    right = row.text("answer_matching_behavior").strip()
    wrong = row.text("answer_not_matching_behavior").strip()
    found = [_MARK.fullmatch(right), _MARK.fullmatch(wrong)]
    marks = [match[1].upper() for match in found if match is not None]
    are_numbers = right.isdigit() and wrong.isdigit() and not _CHOICES.search(question)
    if len(marks) < 2 or are_numbers:
        return choice_item(row, question, (right, wrong), 0)
    if marks[0] == marks[1]:
        raise row.error(f"the two answers are the same: {shown(right)}")
    question, options = _options_of(row, question)
    for mark in marks:
        if mark not in options:
            raise row.error(f"expected an answer among the question's options {', '.join(options)}, got ({mark})")
    choices = [row.clean(text, f"option ({mark})") for mark, text in options.items()]
    return choice_item(row, question, choices, list(options).index(marks[0]))


def _options_of(row: Row, question: str) -> tuple[str, dict[str, str]]:
    """The question without its list of options, and the options by their letter (a capital) or digit."""
    parts = list(_CHOICES.finditer(question))
    if not parts:
        raise row.error("the answers are letters or numbers of options, but the question has no 'Choices:' list")
    options: dict[str, list[str]] = {}
    letter, after_blank = "", False
    lines = _ANSWER.sub("", question[parts[-1].end() :]).split("\n")
    first = next((line for line in lines if line.strip()), "")
    style = next((each for each in _OPTIONS if each.fullmatch(first)), _OPTIONS[0])
    for line in lines:
        if match := style.fullmatch(line):
            letter, after_blank = match[1].upper(), False
            if letter in options:
                raise row.error(f"two options have the letter ({letter})")
            options[letter] = [match[2]]
        elif not line.strip():
            after_blank = True
        elif not letter or after_blank:
            raise row.error(f"expected an option such as '(A) text' in the list of choices, got {shown(line.strip())}")
        else:
            options[letter].append(line)
    return row.clean(question[: parts[-1].start()], "question"), {
        letter: "\n".join(lines) for letter, lines in options.items()
    }


def _choice(row: Row) -> ChoiceItem:
    choices, labels = _choices(row)
    name = "answerKey" if labels and "answer" not in row.fields else "answer"
    answer = row.value(name)
    if labels:
        key = answer.strip() if isinstance(answer, str) else answer
        if labels.count(key) != 1:
            raise row.error(f"{name}: expected the label of one choice, got {shown(answer)}")
        place = labels.index(key)
    else:
        place = _index(row, answer, choices)
    return choice_item(row, row.text("question"), choices, place, row.optional_text("context"))


def _choices(row: Row) -> tuple[list[str], list[Any]]:
    """The options, from a list, an object or fields of their own, and their labels if they have any."""
    labels: list[Any] = []
    names = _choice_fields(row.fields)
    if "choices" in row.fields:
        if names:
            raise row.error(f"expected either choices or {names[0]}, got both")
        given = _decoded(row, "choices")
        if isinstance(given, dict):
            given, labels = _labelled(row, given)
        if not isinstance(given, list):
            raise row.error(f"choices: expected a list, got {shown(given)}")
        values = given
    else:
        values = [row.fields[name] for name in names]
        while row.format == "csv" and values and not values[-1].strip():
            values.pop()
    if not 2 <= len(values) <= MAX_CHOICES:
        raise row.error(f"expected 2 to {MAX_CHOICES} choices, got {len(values)}")
    return [row.clean(value, f"choice {LETTERS[place]}") for place, value in enumerate(values)], labels


def _labelled(row: Row, given: Mapping[str, Any]) -> tuple[list[Any], list[Any]]:
    """Options and their labels: from `{"text": [...], "label": [...]}` or `{"A": ..., "B": ...}`."""
    if set(given) == {"text", "label"}:
        texts, labels = given["text"], given["label"]
        if isinstance(texts, list) and isinstance(labels, list) and len(texts) == len(labels):
            return texts, labels
        raise row.error("choices: expected a text and a label for each")
    names = [name for name, value in given.items() if value is not None]
    if names and names == list(LETTERS[: len(names)]):
        return [given[name] for name in names], names
    raise row.error("choices: expected a list, an object with text and label, or one with A, B, …")


def _choice_fields(fields: Mapping[str, Any]) -> list[str]:
    """The names of fields that hold one option each, in their order; empty when there are none."""
    for names in ([f"choice{number}" for number in range(MAX_CHOICES + 1)], list(LETTERS)):
        if names[0] in fields and names[1] in fields:
            return [name for name in names if name in fields]
    return []


def _index(row: Row, answer: object, choices: Sequence[str]) -> int:
    """The index that an answer stands for: a number from 0, a letter, or the text of an option."""
    if isinstance(answer, str):
        text = answer.strip()
        same = next((place for place, choice in enumerate(choices) if choice.strip() == text), None)
        mark = _MARK.fullmatch(text)
        if mark is not None and mark[1].isalpha():
            return _index_of_letter(row, answer, mark[1].upper(), same, len(choices))
        if row.format == "csv" and re.fullmatch(r"[0-9]{1,3}(\.0+)?", text):  # numbers in a CSV are text
            return int(text.partition(".")[0])
        if same is not None and not text.isdigit():
            return same
    if isinstance(answer, float) and answer.is_integer():  # pandas writes a column with gaps like that
        return int(answer)
    if type(answer) is not int:
        raise row.error(f"answer: expected an index (from 0) or a letter, got {shown(answer)}")
    return answer


def _index_of_letter(row: Row, answer: str, letter: str, same: int | None, count: int) -> int:
    """The index of a letter; `same` is the choice whose text the answer is, if there is one."""
    place = LETTERS.index(letter)
    if same is not None and same != place:
        if place < count:
            raise row.error(
                f"answer: {shown(answer)} is the letter of one choice and the text of another; expected an index"
            )
        return same
    if place >= count:
        raise row.error(f"answer: expected a letter from A to {LETTERS[count - 1]}, got {shown(answer)}")
    return place


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
        raise row.error(f"input: expected an object with messages, got {shown(given)}")
    if given.get("tools"):
        raise row.error("input.tools: training with tools is not supported")
    turns = _messages(row, given.get("messages"), "input.messages")
    outputs = []
    for name in ("preferred_output", "non_preferred_output"):
        messages = _messages(row, _decoded(row, name), name)
        if len(messages) != 1 or messages[0].role != "assistant":
            raise row.error(f"{name}: expected one assistant message")
        outputs.append(messages[0].content)
    return _pair_item(row, outputs[0], outputs[1], turns)


def _messages(row: Row, given: object, what: str) -> tuple[Message, ...]:
    if not isinstance(given, list) or not given:
        raise row.error(f"{what}: expected a list of messages, got {shown(given)}")
    messages = []
    for place, message in enumerate(given):
        where = f"{what}[{place}]"
        if not isinstance(message, dict):
            raise row.error(f"{where}: expected an object with role and content, got {shown(message)}")
        if any(message.get(name) for name in ("tool_calls", "function_call", "audio")):
            raise row.error(f"{where}: tool calls and audio are not supported")
        role = message.get("role")
        if role not in ("system", "developer", "user", "assistant") or not isinstance(role, str):
            raise row.error(f"{where}.role: expected one of system, user, assistant, got {shown(role)}")
        if isinstance(message.get("content"), list):
            raise row.error(f"{where}.content: expected text; content parts and images are not supported")
        content = row.clean(message.get("content"), f"{where}.content")
        # the newer name of the same role, which chat templates do not know
        messages.append(Message("system" if role == "developer" else role, content))  # type: ignore[arg-type]
    return tuple(messages)


def _text(row: Row) -> TextItem:
    return TextItem(row.text("text"), row.line)


def _decoded(row: Row, name: str) -> Any:
    """A field that is a list or an object; in a CSV, JSON in a cell."""
    value = row.value(name)
    if row.format != "csv":
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise row.error(f"{name}: expected JSON in the cell, got {shown(value)}") from None


_FORMS: Final[tuple[tuple[tuple[str, ...], tuple[str, ...], _Read], ...]] = (
    (("preferred_output", "non_preferred_output"), ("input",), _preference),
    (("answer_matching_behavior", "answer_not_matching_behavior"), ("question",), behaviour_item),
    (("positive", "negative"), (), _pair),
    (("choices",), ("question", "answer"), _choice),
)
"""For each form: fields any of which identify it, further fields that it needs, and its reader."""


def _find_reader(row: Row, *, texts: bool) -> _Read:
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
    problem = "the fields match several kinds of row" if found else "the fields match no known kind of row"
    raise row.error(f"{problem}: got {given}; known kinds are {known}")


def _in_group(row: Row, item: ChoiceItem | PairItem | TextItem) -> ChoiceItem | PairItem | TextItem:
    """The item in the group that its row names, as text or a whole number."""
    group = row.fields.get("group")
    if isinstance(item, TextItem) or group is None or (row.format == "csv" and not group.strip()):
        return item
    if isinstance(group, bool) or not isinstance(group, str | int):
        raise row.error(f"group: expected text or a whole number, got {shown(group)}")
    return dataclasses.replace(item, group=str(group).strip())


def _retention_items(content: bytes, name: str) -> Iterator[ChoiceItem | TextItem]:
    text = None if is_parquet(content) else decode_text(content, name)
    if text is not None and _is_prose(text):
        yield from _paragraphs(text, name)
        return
    for row in read_rows(content, name):
        item = _in_group(row, _find_reader(row, texts=True)(row))
        if isinstance(item, PairItem):
            raise row.error("expected a question with choices or a text for retention, got a pair of texts")
        yield item


def _is_prose(text: str) -> bool:
    """True for text that neither begins like JSON nor has a CSV header with known fields."""
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
                raise row.error(f"expected at most {MAX_ROWS:,} paragraphs, got more")
            yield _text(row)
            lines = []


def _named(item: ChoiceItem | PairItem | TextItem) -> str:
    return "a question with choices" if isinstance(item, ChoiceItem) else "a pair of texts"
