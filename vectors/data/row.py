"""Row: one record of a labelled file, with the line where it began, and what its texts may be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from vectors.errors import InvalidData

MAX_TEXT_BYTES = 1 << 20
"""The longest line of JSONL and CSV, and the longest text of any format."""

Format = Literal["parquet", "json", "jsonl", "csv"]


class UnusableRow(InvalidData):
    """A row that no item can be made of, while the rest of its file may be used. `kind` says why, for counting."""

    def __init__(self, message: str, file: str, line: int, kind: str) -> None:
        super().__init__(message, file, line)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Row:
    """One record: its fields except nulls, and where it was read.

    `line` is the physical line (JSONL, CSV: where the record begins) or, for other JSON and Parquet, the row; both
    count from 1.
    """

    file: str
    line: int
    fields: Mapping[str, Any]
    format: Format

    def error(self, message: str) -> InvalidData:
        """The error for a record that says that the file is not what it seems."""
        return InvalidData(self._numbered(message), self.file, self.line)

    def unusable(self, message: str, kind: str = "a field that is missing or wrong") -> UnusableRow:
        """The error for a record of which no item can be made."""
        return UnusableRow(self._numbered(message), self.file, self.line, kind)

    def value(self, name: str) -> Any:
        """A required field. Raises `UnusableRow`."""
        if name not in self.fields:
            raise self.unusable(f"the field {name!r} is missing")
        return self.fields[name]

    def text(self, name: str) -> str:
        """A required field of text that is not blank, unchanged. Raises `UnusableRow`."""
        return self.clean(self.value(name), name)

    def optional_text(self, name: str) -> str | None:
        """A field that may be absent or blank (both give None). Raises `UnusableRow` for anything but text."""
        value = self.fields.get(name)
        if value is None or (isinstance(value, str) and not value.strip()):
            return None
        return self.clean(value, name)

    def clean(self, value: object, what: str) -> str:
        """The value, if it is text that a model can be given. Raises `UnusableRow` naming it `what`."""
        if not isinstance(value, str):
            raise self.unusable(f"{what}: expected text, got {shown(value)}")
        if not value.strip():
            raise self.unusable(f"{what} is empty", "an empty text")
        if "\0" in value:
            raise self.unusable(f"{what} contains a NUL character")
        try:
            too_long = len(value) > MAX_TEXT_BYTES // 4 and len(value.encode()) > MAX_TEXT_BYTES
            if not too_long:
                value.encode()
        except UnicodeEncodeError:
            raise self.unusable(f"{what} contains half of a surrogate pair, which is not valid Unicode") from None
        if too_long:
            raise self.unusable(f"{what} is longer than 1 MiB", "a text that is too long")
        return value

    @property
    def group(self) -> str | None:
        """What the record's item has in common with others: the field `group`. Raises `UnusableRow`."""
        group = self.fields.get("group")
        if group is None or (isinstance(group, str) and not group.strip()):
            return None
        if isinstance(group, bool) or not isinstance(group, str | int):
            raise self.unusable(f"group: expected text or a whole number, got {shown(group)}")
        return str(group).strip()

    def _numbered(self, message: str) -> str:
        return message if self.format in ("jsonl", "csv") else f"row {self.line}: {message}"


def shown(value: object) -> str:
    """A value in an error message: short, and safe for values nested too deep to print."""
    return repr(value)[:60] if isinstance(value, str | int | float | bool | None) else f"a {type(value).__name__}"
