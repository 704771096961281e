"""Rows: the bytes of a labelled file -> its records, each with the line where it began.

Parquet, JSON and CSV are told apart by their content, and the cost of a hostile file is bounded.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from vectors.cancellation import check_cancelled
from vectors.data.csv_rows import csv_rows, delimiter_of
from vectors.data.json_rows import json_rows
from vectors.data.parquet_rows import is_parquet, parquet_rows
from vectors.data.row import Format, Row
from vectors.errors import InvalidData

MAX_ROWS = 1_000_000

_PACKED = {b"\x1f\x8b": "one compressed with gzip", b"PK\x03\x04": "a zip archive or an Excel workbook"}
_SEPARATED = {",": "CSV", ";": "CSV with semicolons", "\t": "CSV with tabs"}


def decode_text(content: bytes, file: str) -> str:
    """The text of a file without its byte order mark: UTF-8, or UTF-16 with a mark.

    Raises `InvalidData`, naming the line of what is not UTF-8.
    """
    if not content.strip():
        raise InvalidData("the file is empty", file)
    for magic, what in _PACKED.items():
        if content.startswith(magic):
            raise InvalidData(f"expected the file itself, got {what}", file)
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return _decode_utf16(content, file)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # the mark is counted out of the error's position
        place = error.start + (3 if content.startswith(b"\xef\xbb\xbf") else 0)
        raise InvalidData(
            "the file is not UTF-8 text; save it as UTF-8", file, content.count(b"\n", 0, place) + 1
        ) from None
    return _without_nul(text, file)


def _decode_utf16(content: bytes, file: str) -> str:
    """The text of a file as PowerShell writes it, whose byte order mark says that it is UTF-16."""
    try:
        return _without_nul(content.decode("utf-16"), file)
    except UnicodeDecodeError:
        raise InvalidData("the file is not UTF-16 text, although it begins like one", file, 1) from None


def _without_nul(text: str, file: str) -> str:
    if "\0" in text:
        raise InvalidData("the file contains a NUL character", file, text.count("\n", 0, text.index("\0")) + 1)
    return text


def text_format(text: str) -> Format:
    """JSON (a list, or objects) or CSV, told by the first character that is not white space."""
    match = re.search(r"\S", text)
    return "json" if match is not None and match[0] in "[{" else "csv"


def read_rows(
    content: bytes,
    file: str,
    *,
    columns: Sequence[str] | None = None,
    knows: Callable[[Mapping[str, Any]], bool] = lambda fields: True,
    rows_field: str | None = None,
    given: Collection[str] | None = None,
) -> Iterator[Row]:
    """The records of a file, in order. Raises `InvalidData`, and `MissingDependency` for Parquet without pyarrow.

    `columns`: see `csv_rows`. `rows_field` names the list inside a JSON object. `knows` is true for the fields of a
    record, which tells it from what holds records. `given`: see `parquet_rows`.
    """
    records: Iterator[Row]
    if is_parquet(content):
        if rows_field is not None:
            raise InvalidData("rows: expected one JSON object with a list inside, got Parquet", file)
        records = parquet_rows(content, file, given)
    else:
        text = decode_text(content, file)
        is_object = text.lstrip().startswith("{")
        if rows_field is not None and not is_object:
            raise InvalidData("rows: expected one JSON object with a list inside", file)
        if text_format(text) == "csv":
            records = csv_rows(text, file, lambda header: knows(dict.fromkeys(header, "")), columns)
        else:
            records = json_rows(text, file, knows, rows_field)
    for count, row in enumerate(records):
        check_cancelled()
        if count == MAX_ROWS:
            raise row.error(f"expected at most {MAX_ROWS:,} rows, got more")
        yield row


def format_name(content: bytes, form: Format) -> str:
    """How a report names the format of a file whose rows have `form`."""
    if form == "csv":
        return _SEPARATED[delimiter_of(decode_text(content, ""))]
    return {"parquet": "Parquet", "json": "JSON", "jsonl": "JSONL"}[form]
