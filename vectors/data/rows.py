"""Rows: the bytes of a labelled file -> its records, each with the line where it began.

Parquet, JSON lists, JSONL and CSV are told apart by their content, and the cost of a hostile file is bounded.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vectors.errors import InvalidData, MissingDependency

MAX_ROWS = 1_000_000
MAX_TEXT_BYTES = 1 << 20
"""The longest line of JSONL and CSV, and the longest text of any format."""

MAX_UNPACKED_BYTES = 1 << 30
"""The memory that all rows of a Parquet file may take; the file itself may be far smaller."""

Format = Literal["parquet", "json", "jsonl", "csv"]

_BATCH_ROWS = 256
_PACKED = {b"\x1f\x8b": "one compressed with gzip", b"PK\x03\x04": "a zip archive or an Excel workbook"}
_DELIMITERS = (",", ";", "\t")

csv.field_size_limit(MAX_TEXT_BYTES)  # the library's own limit is smaller, and only one for the whole process


@dataclass(frozen=True, slots=True)
class Row:
    """One record: its fields except nulls, and where it was read.

    `line` is the physical line (JSONL, CSV: where the record begins) or, for JSON lists and Parquet, the row; both
    count from 1.
    """

    file: str
    line: int
    fields: Mapping[str, Any]
    format: Format

    def error(self, message: str) -> InvalidData:
        """The error for something wrong in this record."""
        numbered = message if self.format in ("jsonl", "csv") else f"row {self.line}: {message}"
        return InvalidData(numbered, self.file, self.line)

    def value(self, name: str) -> Any:
        """A required field. Raises `InvalidData`."""
        if name not in self.fields:
            raise self.error(f"the field {name!r} is missing")
        return self.fields[name]

    def text(self, name: str) -> str:
        """A required field of text that is not blank, unchanged. Raises `InvalidData`."""
        return self.clean(self.value(name), name)

    def optional_text(self, name: str) -> str | None:
        """A field that may be absent or blank (both give None). Raises `InvalidData` for anything but text."""
        value = self.fields.get(name)
        if value is None or (isinstance(value, str) and not value.strip()):
            return None
        return self.clean(value, name)

    def clean(self, value: object, what: str) -> str:
        """The value, if it is text that a model can be given. Raises `InvalidData` naming it `what`."""
        if not isinstance(value, str):
            raise self.error(f"{what}: expected text, got {shown(value)}")
        if not value.strip():
            raise self.error(f"{what} is empty")
        if "\0" in value:
            raise self.error(f"{what} contains a NUL character")
        try:
            too_long = len(value) > MAX_TEXT_BYTES // 4 and len(value.encode()) > MAX_TEXT_BYTES
            if not too_long:
                value.encode()
        except UnicodeEncodeError:
            raise self.error(f"{what} contains half of a surrogate pair, which is not valid Unicode") from None
        if too_long:
            raise self.error(f"{what} is longer than 1 MiB")
        return value


def shown(value: object) -> str:
    """A value in an error message: short, and safe for values nested too deep to print."""
    return repr(value)[:60] if isinstance(value, str | int | float | bool | None) else f"a {type(value).__name__}"


def is_parquet(content: bytes) -> bool:
    """True when the bytes begin like a Parquet file."""
    return content.startswith(b"PAR1")


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
        raise InvalidData("the file is not UTF-8 text", file, content.count(b"\n", 0, place) + 1) from None
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
    """JSON list, JSONL or CSV, told by the first character that is not white space."""
    match = re.search(r"\S", text)
    first = match[0] if match else ""
    return "json" if first == "[" else "jsonl" if first == "{" else "csv"


def read_rows(content: bytes, file: str, *, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """The records of a file, in order. Raises `InvalidData`, and `MissingDependency` for Parquet without pyarrow.

    `columns` names the columns of a CSV that is published without a header; a file whose first record has the first and
    last of these names keeps its own header.
    """
    records = _parquet_rows(content, file) if is_parquet(content) else _text_rows(content, file, columns)
    for count, row in enumerate(records):
        if count == MAX_ROWS:
            raise row.error(f"expected at most {MAX_ROWS:,} rows, got more")
        yield row


def csv_header(text: str) -> list[str]:
    """The first record of a CSV with its cells stripped; empty if there is none."""
    try:
        return next(([cell.strip() for cell in cells] for _, cells in _records(text, "")), [])
    except InvalidData:
        return []


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
    except json.JSONDecodeError as error:
        place = f"{error.msg} at column {error.colno}"
        raise InvalidData(f"not JSON: {place}", file, error.lineno if line is None else line) from None
    except RecursionError:
        raise InvalidData("not JSON: nested too deep", file, line) from None
    except ValueError:  # an integer of thousands of digits
        raise InvalidData("not JSON: a number is too long", file, line) from None


def _text_rows(content: bytes, file: str, columns: Sequence[str] | None) -> Iterator[Row]:
    text = decode_text(content, file)
    form = text_format(text)
    if form == "csv":
        yield from _csv_rows(text, file, columns)
    elif form == "jsonl":
        for number, line in check_line_lengths(text, file):
            if line.strip():
                yield _json_row(parse_json(line, file, number), file, number, "jsonl")
    else:
        for number, record in enumerate(parse_json(text, file), 1):
            yield _json_row(record, file, number, "json")


def _json_row(record: object, file: str, line: int, form: Format) -> Row:
    if not isinstance(record, dict):
        raise Row(file, line, {}, form).error(f"expected a JSON object, got {shown(record)}")
    return Row(file, line, {name: value for name, value in record.items() if value is not None}, form)


def _csv_rows(text: str, file: str, columns: Sequence[str] | None) -> Iterator[Row]:
    for _ in check_line_lengths(text, file):
        pass
    records = _records(text, file)
    line, first = next(records, (1, []))
    if not first:
        raise InvalidData("the file is empty", file)
    header = [cell.strip() for cell in first]
    if columns is not None and not {columns[0], columns[-1]} <= set(header):
        header = list(columns)
        yield _csv_row(header, first, file, line)
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise InvalidData(f"two columns are named {twice[:60]!r}", file, line)
    for line, cells in records:
        yield _csv_row(header, cells, file, line)


def _csv_row(header: list[str], cells: list[str], file: str, line: int) -> Row:
    if len(cells) != len(header):
        raise InvalidData(f"expected {len(header)} cells as in the header, got {len(cells)}", file, line)
    return Row(file, line, dict(zip(header, cells, strict=True)), "csv")


def _records(text: str, file: str) -> Iterator[tuple[int, list[str]]]:
    """Records of a CSV with the line where each begins; blank lines are skipped.

    Cells are separated by the first of comma, semicolon and tab that the first line has.
    """
    header = text.lstrip().split("\n", 1)[0]
    delimiter = next((each for each in _DELIMITERS if each in header), ",")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise InvalidData(f"not CSV: {error}", file, line) from None
        if cells is None:
            return
        if len(cells) > 1 or "".join(cells).strip():
            yield line, cells


def _parquet_rows(content: bytes, file: str) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingDependency("Parquet files need pyarrow: pip install 'tiller[train]'") from None
    try:
        source = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(content))
        _check_columns(source, file)
        batches = source.iter_batches(batch_size=_BATCH_ROWS, use_threads=False)
    except InvalidData:
        raise
    except Exception as error:  # the library raises many kinds for damaged bytes
        raise _damaged(error, file) from None
    unpacked = line = 0
    while True:
        try:
            batch = next(batches, None)
            if batch is None:
                return
            coded = [column.dictionary.nbytes for column in batch.columns if pyarrow.types.is_dictionary(column.type)]
            unpacked += batch.nbytes
            # a dictionary stores a long text once, but every row unpacks its own copy
            swells = unpacked > MAX_UNPACKED_BYTES or max(coded, default=0) > MAX_TEXT_BYTES
            records = [] if swells else batch.to_pylist()
        except Exception as error:
            raise _damaged(error, file) from None
        if swells:
            raise InvalidData(f"the rows take more than {MAX_UNPACKED_BYTES >> 20} MiB unpacked", file, line + 1)
        for record in records:
            line += 1
            yield _json_row(record, file, line, "parquet")


def _check_columns(source: Any, file: str) -> None:
    """Reject what the schema shows to be ambiguous, or far larger unpacked than the file.

    Details of row groups and columns are not read: damaged ones crash the process.
    """
    names = source.schema_arrow.names
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidData(f"two columns are named {twice[:60]!r}", file)
    for name, kind in zip(names, source.schema_arrow.types, strict=True):
        if "dictionary<" in str(kind)[1:]:
            raise InvalidData(f"column {name[:60]!r}: a dictionary inside a list or struct is not supported", file)


def _damaged(error: Exception, file: str) -> InvalidData:
    reason = " ".join(str(error).split())[:200]
    return InvalidData(f"the Parquet file is damaged or cannot be read: {reason}", file)
