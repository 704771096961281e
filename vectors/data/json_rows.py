"""The records of JSON text: JSONL, a list, objects one after the other, or one object with the list inside.

{"data": [{…}, {…}]}                    the list, whatever its field is named
{"train": [{…}], "test": [{…}]}         published parts, joined
{"harmful": ["…"], "harmless": ["…"]}   two lists of texts: a class each, as rows {"text", "label"}
{"question": ["…"], "answer": [0]}      a column each, as pandas and datasets write it
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from vectors.data.row import MAX_TEXT_BYTES, Format, Row, shown
from vectors.errors import InvalidData

_PARTS = ("train", "training", "validation", "valid", "val", "dev", "test")
_SPACE = re.compile(r"\s*")

Knows = Callable[[Mapping[str, Any]], bool]
"""True for the fields of a record that can be read."""


def check_line_lengths(text: str, file: str) -> Iterator[tuple[int, str]]:
    """The physical lines with their numbers. Raises `InvalidData` for one that is longer than `MAX_TEXT_BYTES`."""
    for number, line in enumerate(text.split("\n"), 1):
        if len(line) > MAX_TEXT_BYTES // 4 and len(line.encode()) > MAX_TEXT_BYTES:
            raise InvalidData("the line is longer than 1 MiB", file, number)
        yield number, line


def parse_json(text: str, file: str, line: int | None = None) -> Any:
    """A JSON value. Raises `InvalidData` at `line`, or at the line inside the text where it goes wrong."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _not_json(error, file, line) from None


def json_row(record: object, file: str, line: int, form: Format) -> Row:
    """A record without its nulls; a text on its own is one of `{"text"}`. Raises `InvalidData` for anything else."""
    if isinstance(record, str) and form == "json":
        record = {"text": record}
    if not isinstance(record, dict):
        raise Row(file, line, {}, form).error(f"expected a JSON object, got {shown(record)}")
    fields = record["row"] if isinstance(record.get("row"), dict) else record  # the hub's viewer wraps them
    return Row(file, line, {name: value for name, value in fields.items() if value is not None}, form)


def json_rows(text: str, file: str, knows: Knows, rows_field: str | None = None) -> Iterator[Row]:
    """The records of JSON text that begins with a list or an object.

    `rows_field` names the list inside one object, `knows` says what is a record already. Raises `InvalidData`.
    """
    if text.lstrip().startswith("["):
        yield from _numbered(parse_json(text, file), file)
        return
    if rows_field is None and _is_jsonl(text):
        for number, line in check_line_lengths(text, file):
            if line.strip():
                yield json_row(parse_json(line, file, number), file, number, "jsonl")
        return
    values = list(_values(text, file))
    if len(values) == 1 and isinstance(values[0], dict):
        values = list(_records_inside(values[0], file, knows, rows_field))
    yield from _numbered(values, file)


def _numbered(records: Sequence[Any], file: str) -> Iterator[Row]:
    for number, record in enumerate(records, 1):
        yield json_row(record, file, number, "json")


def _is_jsonl(text: str) -> bool:
    """True if the first line is a whole value and more lines follow, so that an error can name its line."""
    first, _, rest = text.lstrip().partition("\n")
    if not rest.strip():
        return False
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        # a broken first line, and not the beginning of a longer value, if the second is whole
        second = next(line for line in rest.split("\n") if line.strip())
        try:
            return isinstance(json.loads(second), dict)
        except (ValueError, RecursionError):
            return False
    return True


def _values(text: str, file: str) -> Iterator[Any]:
    """JSON values one after the other, on any number of lines. Raises `InvalidData` at the line."""
    decoder = json.JSONDecoder()
    text = text.rstrip()
    place = len(text) - len(text.lstrip())
    while place < len(text):
        try:
            value, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            raise _not_json(error, file, None) from None
        yield value
        found = _SPACE.match(text, place)
        assert found is not None
        place = found.end()


def _not_json(error: ValueError | RecursionError, file: str, line: int | None) -> InvalidData:
    if isinstance(error, json.JSONDecodeError):
        where = error.lineno if line is None else line
        return InvalidData(f"not JSON: {error.msg} at column {error.colno}", file, where)
    if isinstance(error, RecursionError):
        return InvalidData("not JSON: nested too deep", file, line)
    return InvalidData("not JSON: a number is too long", file, line)


def _records_inside(whole: Mapping[str, Any], file: str, knows: Knows, rows_field: str | None) -> Sequence[Any]:
    """The records of one object. Raises `InvalidData` if it has several lists and no rule says which is meant."""
    lists = {name: value for name, value in whole.items() if isinstance(value, list) and value}
    if rows_field is not None:
        if rows_field not in lists:
            raise InvalidData(
                f"rows: expected the name of a list, one of {_named(lists)}, got {rows_field!r:.60}", file
            )
        return lists[rows_field]
    columns = _columns(whole)
    if columns and knows(columns[0]):
        return columns
    objects = [name for name, value in lists.items() if all(isinstance(entry, dict) for entry in value)]
    texts = [name for name, value in lists.items() if all(isinstance(entry, str) for entry in value)]
    if len(texts) == len(whole) == 2:
        return [{"text": text, "label": name} for name in texts for text in lists[name]]
    if knows(whole) or not lists:
        return [whole]
    if objects and all(name.lower() in _PARTS for name in objects):
        return [record for name in objects for record in lists[name]]
    if len(objects) == 1 and all(len(value) <= len(lists[objects[0]]) for value in lists.values()):
        return lists[objects[0]]
    if len(texts) == len(lists) == 1:
        return lists[texts[0]]
    raise InvalidData(
        f"the file has several lists: {_named(lists)}; name the one that holds the rows: --map rows=NAME", file
    )


def _columns(whole: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The records of an object whose values are columns: lists of one length, or objects with the same keys."""
    values = list(whole.values())
    if len(values) < 2 or not values[0]:
        return []
    if all(isinstance(value, list) and len(value) == len(values[0]) for value in values):
        return [dict(zip(whole, record, strict=True)) for record in zip(*values, strict=True)]
    if all(isinstance(value, dict) and value.keys() == values[0].keys() for value in values):
        return [{name: column[key] for name, column in whole.items()} for key in values[0]]
    return []


def _named(lists: Mapping[str, list[Any]]) -> str:
    return ", ".join(f"{name[:40]} ({len(value)})" for name, value in list(lists.items())[:8]) or "none"
