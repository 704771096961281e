"""Reads a user's labelled data: bytes in any accepted format -> a `DataSet`, with what it was taken for.

The content tells the format, and the names of the fields tell the kind of item (`shapes.py`). An error names the file
and the line. A row that no item can be made of is left out and counted, up to a share. Fields without a role are
ignored, since published data sets have many beyond those needed here.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from vectors.data.choices import NAMING, Draft, choice_of, settle
from vectors.data.csv_rows import csv_header
from vectors.data.items import ChoiceItem, DataSet, PairItem, TextItem, Understood
from vectors.data.json_rows import check_line_lengths
from vectors.data.options import ReadOptions
from vectors.data.pairs import ClassText, class_text_of, pair_of, paired, side_text_of
from vectors.data.parquet_rows import is_parquet
from vectors.data.row import Row, UnusableRow
from vectors.data.rows import MAX_ROWS, decode_text, format_name, read_rows, text_format
from vectors.data.shapes import TEXT, Fitted, fit, is_known, labels_of, side_fields
from vectors.errors import InvalidData

MIN_ITEMS = 8
"""The fewest items that can be split and trained on."""

_DEFAULTS = ReadOptions()

_JSON_START = re.compile(r"\s*(?:\{|\[\s*[{\]])")

_Made = ChoiceItem | Draft | PairItem | ClassText | TextItem


def read_data(
    content: bytes,
    name: str,
    options: ReadOptions = _DEFAULTS,
    *,
    negative: tuple[bytes, str] | None = None,
    smallest: int = MIN_ITEMS,
) -> DataSet:
    """Choice items or pairs from Parquet, JSON in any arrangement, or CSV; `name` is for messages only.

    docs/training.md lists the kinds of rows; all rows of a file must be of the same kind. `negative` is a second file,
    with its name: then the first file has the texts of the wanted class only, and the second those of the other. In
    CSV, lists and objects are JSON in a cell, an empty optional cell is an absent field, and empty options at the end
    are absent. Raises `InvalidData` (also for fewer than `smallest` items, or if more rows than `options.max_skipped`
    allows cannot be used) and `MissingDependency` (Parquet without pyarrow).
    """
    reader = _Reader(name, options)
    digest = hashlib.sha256(content)
    if negative is None:
        reader.read(content, name)
    else:
        if options.positive_class is not None:
            raise InvalidData("positive_class: not used with a second file, which is the unwanted class", name)
        reader.read(content, name, label="positive")
        reader.read(*negative, label="negative")
        digest.update(negative[0])
    return reader.data_set(digest.hexdigest(), smallest)


def read_retention(
    content: bytes, name: str, options: ReadOptions = _DEFAULTS
) -> tuple[DataSet | None, tuple[TextItem, ...]]:
    """Data for retention: choice items (None without any) and plain texts, at least one of either.

    Accepts the formats of `read_data` and rows `{"text"}`, mixed in any way; plain prose gives one text per paragraph,
    separated by blank lines. Raises `InvalidData` and `MissingDependency`.
    """
    text = None if is_parquet(content) else decode_text(content, name)
    if text is not None and _is_prose(text):
        return None, tuple(_paragraphs(text, name))
    reader = _Reader(name, options, retains=True)
    reader.read(content, name)
    reader.check_share()
    texts = tuple(item for item in reader.made if isinstance(item, TextItem))
    reader.made = [item for item in reader.made if not isinstance(item, TextItem)]
    if not reader.made and not texts:
        raise InvalidData("expected at least one question or text, got none", name)
    digest = hashlib.sha256(content).hexdigest()
    return reader.data_set(digest, 1) if reader.made else None, texts


def check_size(items: Sequence[Any], name: str, smallest: int = MIN_ITEMS) -> None:
    """Raise `InvalidData` when there are fewer than `smallest` items."""
    if len(items) < smallest:
        raise InvalidData(f"expected at least {smallest} items, got {len(items)}", name)


class _Reader:
    """Makes items of the rows of one file, or of two with a class each.

    `retains`: plain texts are expected beside questions, and pairs are not.
    """

    def __init__(self, name: str, options: ReadOptions, *, retains: bool = False) -> None:
        self._name = name
        self._options = options
        self._retains = retains
        self._roles = {role: names for role, names in options.map.items() if role != "rows"}
        self._given = {name for names in self._roles.values() for name in names}
        self._first: tuple[Fitted, Row] | None = None
        self._by_names: dict[tuple[str, ...], Fitted] = {}
        self._unusable: list[UnusableRow] = []
        self._num_rows = 0
        self._format = ""
        self.made: list[_Made] = []

    def read(self, content: bytes, name: str, label: str | None = None) -> None:
        """Read the rows of a file; with `label`, they all belong to that class."""
        rows_field = self._options.map.get("rows", (None,))[0]
        first: Row | None = None
        for record in read_rows(content, name, knows=self._knows, rows_field=rows_field, given=self._given):
            row = _opened(record)
            first = first or row
            self._num_rows += 1
            try:
                self.made.append(self._make(row, label))
            except UnusableRow as error:
                self._unusable.append(error)
        if first is not None and not self._format:
            self._format = format_name(content, first.format)

    def data_set(self, sha256: str, smallest: int) -> DataSet:
        """The items and what was understood. Raises `InvalidData`."""
        drafts = [made for made in self.made if isinstance(made, ChoiceItem | Draft)]
        items: list[Any] = [made for made in self.made if isinstance(made, PairItem)]
        notes: list[str] = []
        classes: dict[str, int] = {}
        if drafts:
            settled, notes = settle(drafts, self._options)
            items = [item for item in settled if isinstance(item, ChoiceItem)]
            self._unusable += [error for error in settled if isinstance(error, UnusableRow)]
        self.check_share()
        if texts := [made for made in self.made if isinstance(made, ClassText)]:
            items, classes, notes = paired(texts, self._options, self._name)
        self._check_size(texts or items, smallest)
        fitted = None if self._first is None else self._first[0]
        understood = Understood(
            format=self._format,
            shape="" if fitted is None else fitted.shape.name,
            fields={} if fitted is None else fitted.described(),
            rows=self._num_rows,
            skipped=dict(Counter(error.kind for error in self._unusable)),
            classes=classes,
            notes=tuple(notes),
        )
        return DataSet(self._name, sha256, tuple(items), understood)

    def check_share(self) -> None:
        """Raise `InvalidData` if more rows cannot be used than may be left out.

        Options that name others are no fault of the file, so their rows do not count.
        """
        faults = [error for error in self._unusable if error.kind != NAMING]
        if not faults or len(faults) <= self._options.max_skipped * self._num_rows:
            return
        first = _first_of(faults)
        more = ""
        if len(faults) > 1 or self._options.max_skipped:
            more = (
                f" ({len(faults)} of {self._num_rows} rows cannot be used, which is more than the share that "
                f"may be left out, max_skipped {self._options.max_skipped:g})"
            )
        raise InvalidData(f"{first.reason}{more}", first.file, first.line)

    def _check_size(self, items: Sequence[Any], smallest: int) -> None:
        if len(items) < smallest and self._unusable:
            first = _first_of(self._unusable)
            raise InvalidData(
                f"expected at least {smallest} items, got {len(items)}, as {len(self._unusable)} of {self._num_rows} "
                f"rows cannot be used; the first: {first.reason}",
                first.file,
                first.line,
            )
        check_size(items, self._name, smallest)

    def _knows(self, fields: Any) -> bool:
        return is_known(fields) or any(name in fields for name in self._given)

    def _make(self, row: Row, label: str | None) -> _Made:
        fitted = self._fitted_side(row) if label is not None else self._fitted(row)
        kind = fitted.shape.kind
        if self._retains and kind not in ("choice", "text"):
            raise row.error("expected a question with choices or a text for retention, got a pair of texts")
        if kind == "choice":
            return choice_of(row, fitted)
        if kind == "pair":
            return pair_of(row, fitted, self._options)
        if kind == "class":
            return class_text_of(row, fitted)
        if kind == "one side":
            return side_text_of(row, fitted, label)
        return TextItem(row.text("text"), row.line)

    def _fitted_side(self, row: Row) -> Fitted:
        found = side_fields(row.fields, self._roles)
        if found is None:
            raise row.error("expected a field with a text, such as instruction or text; name it with --map text=FIELD")
        self._first = self._first or (found, row)
        return found

    def _fitted(self, row: Row) -> Fitted:
        """The shape of a row, which must be that of the first one (for retention: of any that is accepted)."""
        names = tuple(row.fields)
        known = self._by_names.get(names)
        if known is not None:
            return known
        try:
            found = fit(row, self._roles, texts=self._retains)
            _check_labels(row, found, self._roles)
        except UnusableRow:
            raise
        except InvalidData:
            if self._first is not None and self._lacks_a_field(row):
                return self._first[0]  # whose reader says which one
            raise
        if self._first is not None and not self._retains and found.shape.kind != self._first[0].shape.kind:
            if self._lacks_a_field(row):
                return self._first[0]
            first, at = self._first
            raise row.error(
                f"expected {_kind_name(first)} like the first item (line {at.line}), got {_kind_name(found)}"
            )
        self._first = self._first or (found, row)
        if found.shape is not TEXT:
            self._by_names[names] = found
        return found

    def _lacks_a_field(self, row: Row) -> bool:
        """True for a row of the first one's kind without one of its fields."""
        assert self._first is not None
        shape, fields = self._first[0].shape, self._first[0].fields
        needed = [name for role in shape.needs for name in fields[role]]
        have = sum(name in row.fields for name in needed)
        return 0 < have < len(needed)


def _first_of(errors: Sequence[UnusableRow]) -> UnusableRow:
    return min(errors, key=lambda error: error.line or 0)


def _opened(row: Row) -> Row:
    """A row whose question is an object, as in AI2's files, with the fields of that object for its own."""
    inner = row.fields.get("question")
    if not isinstance(inner, dict):
        return row
    rest = {name: value for name, value in row.fields.items() if name != "question"}
    return Row(
        row.file, row.line, rest | {name: value for name, value in inner.items() if value is not None}, row.format
    )


def _check_labels(row: Row, fitted: Fitted, given: Any) -> None:
    """Refuse a row with several labels of which none is just named that."""
    if fitted.shape.kind != "class" or "label" in given or not fitted.one("label").lower().endswith("_label"):
        return
    labels = labels_of(row.fields)
    if len(labels) > 1:
        ways = " or ".join(f"--map {_text_for(row, label, fitted)},label={label}" for label in labels[:6])
        raise row.error(f"the file has several labels; say which one with {ways}")


def _text_for(row: Row, label: str, fitted: Fitted) -> str:
    """The text that a label such as `prompt_harm_label` is about."""
    about = label.lower().partition("_")[0]
    return f"text={about if about in row.fields else fitted.one('text')}"


def _kind_name(fitted: Fitted) -> str:
    return {"choice": "a question with choices", "pair": "a pair of texts"}.get(fitted.shape.kind, fitted.shape.name)


def _is_prose(text: str) -> bool:
    """True for text that neither begins like JSON nor has a CSV header with known fields."""
    if text_format(text) != "csv":
        return _JSON_START.match(text) is None
    return not is_known(dict.fromkeys(csv_header(text), ""))


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
            yield TextItem(row.text("text"), row.line)
            lines = []
