"""The records of a CSV: cells separated by commas, semicolons or tabs, with a header or without one."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence

from vectors.data.json_rows import check_line_lengths
from vectors.data.row import MAX_TEXT_BYTES, Row
from vectors.errors import InvalidData

_DELIMITERS = (",", ";", "\t")
_LETTERS = "ABCDEFGHIJ"

csv.field_size_limit(MAX_TEXT_BYTES)  # the library's own limit is smaller, and only one for the whole process

KnowsHeader = Callable[[Sequence[str]], bool]
"""True for the names of columns that can be read."""


def csv_rows(text: str, file: str, knows: KnowsHeader, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """The records of a CSV. Raises `InvalidData`.

    `columns` names the columns of one that is published without a header; a file whose first record has the first and
    last of these names keeps its own. Without `columns`, a first record that is a question, options and the letter of
    one, as in MMLU, is taken for data. Columns without a name are left out.
    """
    for _ in check_line_lengths(text, file):
        pass
    records = _records(text, file)
    line, first = next(records, (1, []))
    if not first:
        raise InvalidData("the file is empty", file)
    header = [cell.strip() for cell in first]
    if columns is not None and not {columns[0], columns[-1]} <= set(header):
        header = list(columns)
        yield _row(header, first, file, line)
    elif columns is None and _is_question(first) and not knows(header):
        header = ["question", *_LETTERS[: len(first) - 2], "answer"]
        yield _row(header, first, file, line)
    named = [name for name in header if name]
    if len(set(named)) < len(named):
        twice = next(name for name in named if named.count(name) > 1)
        raise InvalidData(f"two columns are named {twice[:60]!r}", file, line)
    for line, cells in records:
        yield _row(header, cells, file, line)


def csv_header(text: str) -> list[str]:
    """The first record of a CSV with its cells stripped; empty if there is none."""
    try:
        return next(([cell.strip() for cell in cells] for _, cells in _records(text, "")), [])
    except InvalidData:
        return []


def delimiter_of(text: str) -> str:
    """What separates the cells: of comma, semicolon and tab, the one that the first line has most of."""
    header = text.lstrip().split("\n", 1)[0]
    return max(_DELIMITERS, key=header.count)


def _is_question(cells: Sequence[str]) -> bool:
    """True for a question, 2 to 10 options and the letter of one of them."""
    count = len(cells) - 2
    return 2 <= count <= len(_LETTERS) and all(cell.strip() for cell in cells) and cells[-1] in (*_LETTERS[:count],)


def _row(header: Sequence[str], cells: Sequence[str], file: str, line: int) -> Row:
    if len(cells) != len(header):
        raise InvalidData(f"expected {len(header)} cells as in the header, got {len(cells)}", file, line)
    return Row(file, line, {name: cell for name, cell in zip(header, cells, strict=True) if name}, "csv")


def _records(text: str, file: str) -> Iterator[tuple[int, list[str]]]:
    """Records of a CSV with the line where each begins; blank lines are skipped."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter_of(text))
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
