"""Labelled files as people's tools write them: read as they were meant, or refused in words."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest

from vectors.data.items import ChoiceItem
from vectors.data.reading import read_data
from vectors.errors import InvalidData

MARKS = [(f"{before}{a}{after}", f"{before}{b}{after}")
         for a, b in ("AB", "ab", "12") for before, after in (("(", ")"), ("", ")"), ("", "."), ("", ":"))]  # fmt: skip


def read(*rows: dict[str, Any]) -> list[ChoiceItem]:
    return items(b"\n".join(json.dumps(row).encode() for row in rows))


def items(content: bytes) -> list[ChoiceItem]:
    found = read_data(content, "file", smallest=1).items
    return [item for item in found if isinstance(item, ChoiceItem)]


def refusal(content: bytes) -> str:
    with pytest.raises(InvalidData) as caught:
        read_data(content, "file", smallest=1)
    return str(caught.value)


def question(answer: Any, choices: Any = ("x", "y", "z"), **fields: Any) -> dict[str, Any]:
    return {"question": "Q?", "choices": choices, "answer": answer, **fields}


def behaviour(listed: str, right: str, wrong: str) -> dict[str, Any]:
    return {"question": listed, "answer_matching_behavior": right, "answer_not_matching_behavior": wrong}


@pytest.mark.parametrize("marks", MARKS, ids=" ".join)
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["", "CRLF"])
def test_options_in_a_question_are_its_choices(marks: tuple[str, str], end: str) -> None:
    """The answers may name an option in another style than the list does."""
    a, b = marks
    listed = end.join(["Nice?", "", "Choices:", f" {a} yes, it is", f" {b} no: it", "isn't"])
    for right, wrong in ((b, a), (f" {b}", f" {a}"), (f"({b.strip('().:')})", a.strip("().:").upper())):
        (item,) = read(behaviour(listed, right, wrong))
        assert (item.question, item.choices, item.answer) == ("Nice?", ("yes, it is", "no: it\nisn't"), 1)


def test_lines_in_another_style_belong_to_the_option() -> None:
    (item,) = read(behaviour("Q\n\nChoices:\n(A) first\n1. a\nB. b\n(B) second", "(A)", "(B)"))
    assert item.choices == ("first\n1. a\nB. b", "second")


def test_answers_that_name_no_option_are_texts_or_refused() -> None:
    (item,) = read(behaviour("What is 1 and 1?", "2", "3"))
    assert item.choices == ("2", "3")
    for right, wrong in (("a", "b"), ("(1)", "(2)"), ("A.", "B.")):
        assert "no 'Choices:' list" in refusal(json.dumps(behaviour("Which?", right, wrong)).encode())


@pytest.mark.parametrize("answer", ["B", "b", "(B)", "(b)", "B.", "B)", "B:", " B ", 1, 1.0, "y"])
def test_an_answer_is_an_index_a_letter_or_a_text(answer: Any) -> None:
    assert read(question(answer))[0].answer == 1


def test_an_answer_with_two_meanings_is_refused() -> None:
    assert "letter of one choice and the text of another" in refusal(json.dumps(question("A", ["B", "A"])).encode())
    assert read(question("A", ["A", "B"]))[0].answer == 0
    assert read(question("z"))[0].answer == 2  # no letter of three choices
    assert "may mean from 0: '2', from 1: '1'" in refusal(json.dumps(question("1", ["1", "2"])).encode())
    for answer in (True, [0, 1], 0.5, "word"):
        assert "expected an index (from 0) or a letter" in refusal(json.dumps(question(answer, ["1", "2"])).encode())


def test_choices_come_with_labels_too() -> None:
    labelled = {"text": ["x", "y"], "label": ["1", "2"]}
    assert read(question("2", labelled))[0].answer_text == "y"
    row = {"question": "Q?", "choices": labelled, "answerKey": "2"}
    assert read(row)[0].answer_text == "y"
    assert read(question("B", {"A": "x", "B": "y"}))[0].answer_text == "y"
    for wrong in ({"text": ["x"], "label": []}, {"B": "x", "A": "y"}, {"one": "x"}, {}):
        assert "choices: expected" in refusal(json.dumps(question("A", wrong)).encode())
    assert "label of one choice" in refusal(json.dumps(question("3", labelled)).encode())


CSV = "question,A,B,answer\nQ?,x,y,B\nR?,x,y,1\nS?,x,y,1.0\n"


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_csv_is_read_whoever_wrote_it(delimiter: str, encoding: str) -> None:
    found = items(CSV.replace(",", delimiter).encode(encoding))
    assert [(item.question, item.answer_text) for item in found] == [("Q?", "y"), ("R?", "y"), ("S?", "y")]


def test_long_cells_are_as_long_as_long_texts() -> None:
    text = "word " * 28_000
    assert items(f"question,A,B,answer\n{text},x,y,A\n".encode())[0].question == text.strip()


def test_packed_files_are_named() -> None:
    assert "gzip" in refusal(gzip.compress(CSV.encode()))
    assert "Excel" in refusal(b"PK\x03\x04" + bytes(30))
