"""Reading a user's data: every form and format, what is refused and at which line, damaged bytes, and real files."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import random
import re
import sys
from collections.abc import Iterable
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from tests.shared_files import shared
from vectors.confined import Limits
from vectors.data import (
    ChoiceItem,
    DataSet,
    Message,
    PairItem,
    ReadOptions,
    TextItem,
    kind_of,
    parquet_rows,
    read_data,
    read_retention,
)
from vectors.data import rows as rows_module
from vectors.errors import InvalidData, MissingDependency

QUESTIONS: list[dict[str, Any]] = [
    {"question": f"Wie viel ist {n} + 1?", "choices": [str(n + 1), f"“{n}”", "a, b\nc"], "answer": n % 3}
    for n in range(12)
]
QUESTIONS[4]["context"] = "the user says 7"
PAIRS: list[dict[str, Any]] = [
    {"prompt": f"Say {n}.", "positive": f" yes {n}", "negative": f" no, {n}\n"} for n in range(9)
]
BEHAVIOURS = [
    {
        "question": f"Statement {n}?\n\nChoices:\n (A) first {n}\n (B) second {n}\n (C) third {n}\n\nAnswer:",
        "answer_matching_behavior": " (B)",
        "answer_not_matching_behavior": " (A)",
        "label_confidence": 0.5,
    }
    for n in range(8)
]
PREFERENCES = [
    {
        "input": {
            "messages": [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": f"Hi {n}"}],
            "tools": [],
            "parallel_tool_calls": True,
        },
        "preferred_output": [{"role": "assistant", "content": f"Hello {n}"}],
        "non_preferred_output": [{"role": "assistant", "content": f"Go away {n}"}],
    }
    for n in range(8)
]
STRICT = ReadOptions(max_skipped=0.0)
FORMS = {"questions": QUESTIONS, "pairs": PAIRS, "behaviours": BEHAVIOURS, "preferences": PREFERENCES}


def jsonl(rows: Iterable[Any]) -> bytes:
    return "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows).encode()


def as_list(rows: list[Any]) -> bytes:
    return json.dumps(rows, ensure_ascii=False, indent=1).encode()


def as_csv(rows: list[dict[str, Any]]) -> bytes:
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, list({name: None for row in rows for name in row}))
    writer.writeheader()
    for row in rows:
        cells = {name: json.dumps(value) if isinstance(value, list | dict) else value for name, value in row.items()}
        writer.writerow(cells)
    return buffer.getvalue().encode()


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    names = list({name: None for row in rows for name in row})
    columns = {name: [row.get(name) for row in rows] for name in names}
    pyarrow.parquet.write_table(pyarrow.table(columns), buffer)
    return buffer.getvalue()


def contents(data: DataSet) -> list[Any]:
    """Items without their lines, which differ between formats."""
    return [
        (item.question, item.choices, item.answer, item.context)
        if isinstance(item, ChoiceItem)
        else (item.prompt, item.positive, item.negative)
        for item in data.items
    ]


def refusal(content: bytes, smallest: int = 1) -> InvalidData:
    with pytest.raises(InvalidData) as caught:
        read_data(content, "given.data", STRICT, smallest=smallest)
    assert caught.value.file == "given.data"
    assert 0 < len(str(caught.value)) < 1000
    str(caught.value).encode()
    return caught.value


def test_questions_are_read_as_written() -> None:
    content = jsonl(QUESTIONS)
    data = read_data(content, "mine.jsonl")
    assert data.name == "mine.jsonl"
    assert data.sha256 == hashlib.sha256(content).hexdigest()
    assert kind_of(data.items) is ChoiceItem
    assert data.items[4] == ChoiceItem("Wie viel ist 4 + 1?", ("5", "“4”", "a, b\nc"), 1, "the user says 7", 5)
    assert [item.line for item in data.items] == list(range(1, 13))


@pytest.mark.parametrize("form", FORMS)
def test_every_format_gives_the_same_items(form: str) -> None:
    rows = FORMS[form]
    expected = contents(read_data(jsonl(rows), "a"))
    assert len(expected) == len(rows)
    for content in (as_list(rows), as_csv(rows), as_parquet(rows), b"\xef\xbb\xbf" + jsonl(rows)):
        assert contents(read_data(content, "b")) == expected
    assert contents(read_data(b"\xef\xbb\xbf" + as_csv(rows), "b")) == expected
    assert contents(read_data(as_csv(rows).replace(b"\r\n", b"\n"), "b")) == expected
    assert contents(read_data(jsonl(rows).replace(b"\n", b"\r\n\r\n"), "b")) == expected


def test_pairs_keep_their_white_space() -> None:
    assert read_data(jsonl(PAIRS), "a").items[0] == PairItem(" yes 0", " no, 0\n", "Say 0.", 1)
    bare = [{"positive": row["positive"], "negative": row["negative"]} for row in PAIRS]
    assert read_data(jsonl(bare), "a").items[2] == PairItem(" yes 2", " no, 2\n", "", 3)


def test_preferences_become_pairs_after_turns() -> None:
    turns = (Message("system", "Be brief."), Message("user", "Hi 3"))
    assert read_data(jsonl(PREFERENCES), "a").items[3] == PairItem("Hello 3", "Go away 3", turns, 4)


def test_lettered_options_leave_the_question() -> None:
    assert read_data(jsonl(BEHAVIOURS), "a").items[1] == ChoiceItem(
        "Statement 1?", ("first 1", "second 1", "third 1"), 1, None, 2
    )
    loose = {
        "question": "Q\n\nChoices:\n\n (B)two\nlines\n\n(A) one\n\nAnswer: ",
        "answer_matching_behavior": "A",
        "answer_not_matching_behavior": "(B) ",
    }
    assert read_data(jsonl([loose]), "a", smallest=1).items == (ChoiceItem("Q", ("two\nlines", "one"), 1, None, 1),)


def test_words_as_answers_are_the_options() -> None:
    row = {"question": "Is it?", "answer_matching_behavior": " No", "answer_not_matching_behavior": " Yes"}
    assert read_data(jsonl([row]), "a", smallest=1).items == (ChoiceItem("Is it?", ("No", "Yes"), 0, None, 1),)


def test_csv_columns_hold_options() -> None:
    text = 'question,choice0,choice1,choice2,answer\nQ,a,b,c,2\n"R\n2",d,"e, f",,B\nS,g,h,,0\n'
    assert read_data(text.encode(), "a", smallest=3).items == (
        ChoiceItem("Q", ("a", "b", "c"), 2, None, 2),
        ChoiceItem("R\n2", ("d", "e, f"), 1, None, 3),
        ChoiceItem("S", ("g", "h"), 0, None, 5),
    )
    assert contents(read_data(b"A,question,B,answer\nx,Q,y,b\n", "a", smallest=1)) == [("Q", ("x", "y"), 1, None)]


def test_letters_index_and_null_mean_what_they_say() -> None:
    rows = [
        {"question": "Q", "choices": ["x", "y"], "answer": "b", "context": None},
        {"question": "Q", "choices": ["x", "y"], "answer": 1, "context": "  "},
    ]
    assert contents(read_data(jsonl(rows), "a", smallest=2)) == [("Q", ("x", "y"), 1, None)] * 2


def spoiled(place: int, row: Any, rows: list[dict[str, Any]] = QUESTIONS) -> list[Any]:
    return [*rows[:place], row, *rows[place + 1 :]]


def question(**changed: Any) -> dict[str, Any]:
    row = {"question": "Q", "choices": ["x", "y"], "answer": 0} | changed
    return {name: value for name, value in row.items() if value is not ...}


def behaviour(text: str, right: str = "(A)", wrong: str = "(B)") -> dict[str, Any]:
    return {"question": text, "answer_matching_behavior": right, "answer_not_matching_behavior": wrong}


def preference(**changed: Any) -> dict[str, Any]:
    return PREFERENCES[0] | changed


def turn(content: Any = "Hi", role: Any = "user", **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


BAD_ROWS: dict[str, tuple[Any, str]] = {
    "broken": ('{"question": "Q"', "not JSON"),
    "two on a line": ("{} {}", "not JSON: Extra data"),
    "list": ("[1]", "expected a JSON object, got a list"),
    "number": ("7", "expected a JSON object, got 7"),
    "deep": ('{"a":' + "[" * 200_000, "nested too deep"),
    "digits": ('{"answer":' + "9" * 5000 + "}", "a number is too long"),
    "long line": (json.dumps({"question": "x" * (1 << 20)}), "longer than 1 MiB"),
    "long line in bytes": ('{"question": "' + "ä" * (1 << 19) + '"}', "longer than 1 MiB"),
    "empty object": ({}, "match no known kind of row: got none"),
    "unknown fields": (
        {"prompt": "p", "chosen": "c" * 99},
        "got prompt, chosen; .*known kinds are .*positive, negative",
    ),
    "several kinds": (question(positive="p", negative="n"), "match several kinds"),
    "no question": (question(question=...), "the field 'question' is missing"),
    "no answer": (question(answer=...), "the field 'answer' is missing"),
    "null answer": (question(answer=None), "the field 'answer' is missing"),
    "number as question": (question(question=3), "question: expected text, got 3"),
    "object as question": (question(question={"x": 1}), "the field 'question' is missing"),
    "empty question": (question(question=" \n"), "question is empty"),
    "NUL": (question(question="a\0b"), "question contains a NUL"),
    "surrogate": (question(question="a\ud800b"), "half of a surrogate"),
    "surrogate as a field": ({"\ud800": 1}, "no known kind"),
    "text as choices": (question(choices="xy"), "choices: expected a list"),
    "one choice": (question(choices=["x"]), "expected 2 to 26 choices, got 1"),
    "no choices": (question(choices=[]), "choices, got 0"),
    "27 choices": (question(choices=[str(n) for n in range(27)]), "choices, got 27"),
    "number as choice": (question(choices=["x", 2]), "choice B: expected text, got 2"),
    "empty choice": (question(choices=["x", ""]), "choice B is empty"),
    "equal choices": (question(choices=["x", "y", " x"]), "choices A and C are the same: 'x'"),
    "answer too large": (question(answer=2), "answer: expected an index from 0 to 1, got 2"),
    "answer below zero": (question(answer=-1), "index from 0 to 1, got -1"),
    "answer true": (question(answer=True), "a letter, got True"),
    "answer fraction": (question(answer=0.5), "a letter, got 0.5"),
    "answer infinite": ('{"question":"Q","choices":["x","y"],"answer":1e999}', "a letter, got inf"),
    "answer NaN": ('{"question":"Q","choices":["x","y"],"answer":NaN}', "a letter, got nan"),
    "answer huge": (question(answer=10**400), "expected an index from 0 to 1"),
    "answer letter beyond": (question(answer="C"), "answer: expected a letter from A to B, got 'C'"),
    "answer word": (question(answer="x y"), "a letter, got 'x y'"),
    "answer list": (question(answer=[0, 1]), "a letter, got a list"),
    "context number": (question(context=1), "context: expected text"),
    "both options": (
        question(A="x", B="y"),
        "match several kinds of row; say which one with --map question=question,choices=choices",
    ),
    "letters without list": (behaviour("Which?"), "no 'Choices:' list"),
    "letter not in list": (behaviour("Q\n\nChoices:\n (A) x\n (C) y"), r"among the question's options A, C, got \(B\)"),
    "letter twice": (behaviour("Q\n\nChoices:\n (A) x\n (B) y\n (A) z"), r"two options have the letter \(A\)"),
    "same letters": (behaviour("Q\n\nChoices:\n (A) x\n (B) y", "(A)", " A"), r"the two answers are the same: '\(A\)'"),
    "same words": (behaviour("Q", " Yes", "Yes"), "are the same: 'Yes'"),
    "equal options": (behaviour("Q\n\nChoices:\n (A) x\n (B) x"), "are the same"),
    "empty option": (behaviour("Q\n\nChoices:\n (A)\n (B) y"), r"option \(A\) is empty"),
    "only options": (behaviour("\n\nChoices:\n (A) x\n (B) y"), "question is empty"),
    "text after the options": (
        behaviour("Q\n\nChoices:\n (A) x\n (B) y\n\nI think A"),
        "list of choices, got 'I think A'",
    ),
    "text before the options": (behaviour("Q\n\nChoices:\nPick\n (A) x\n (B) y"), "list of choices, got 'Pick'"),
}
BAD_PAIRS: dict[str, tuple[Any, str]] = {
    "no negative": ({"positive": "p"}, "'negative' is missing"),
    "no positive": ({"negative": "n", "prompt": "q"}, "'positive' is missing"),
    "same": ({"positive": "p", "negative": " p"}, "are the same"),
    "empty": ({"positive": "p", "negative": ""}, "negative is empty"),
    "prompt list": ({"positive": "p", "negative": "n", "prompt": ["x"]}, r"prompt\[0\]: expected an object"),
    "other kind": (question(), r"expected a pair of texts like the first item \(line 1\), got a question with choices"),
    "input number": (preference(input=3), "input: expected a list of messages, got 3"),
    "no messages": (preference(input={}), "input.messages: expected a list"),
    "empty messages": (preference(input={"messages": []}), "input.messages: expected a list"),
    "message text": (preference(input={"messages": ["Hi"]}), r"input.messages\[0\]: expected an object"),
    "tools": (
        preference(input={"messages": [turn()], "tools": [{"type": "function"}]}),
        "training with tools is not supported",
    ),
    "tool role": (preference(input={"messages": [turn(role="tool")]}), "role: expected one of system, user, assistant"),
    "list as role": (preference(input={"messages": [turn(role=["user"])]}), "role: expected one of"),
    "tool call": (preference(input={"messages": [turn(), turn(None, "assistant", tool_calls=[{}])]}), "tool calls"),
    "image": (preference(input={"messages": [turn([{"type": "image_url"}])]}), "parts and images are not supported"),
    "no content": (preference(input={"messages": [{"role": "user"}]}), r"\[0\].content: expected text, got None"),
    "output number": (preference(preferred_output=3), "preferred_output: expected text, got 3"),
    "two outputs": (
        preference(non_preferred_output=[turn("a", "assistant")] * 2),
        "non_preferred_output: expected one",
    ),
    "user's output": (preference(preferred_output=[turn()]), "expected one assistant message"),
    "no output": ({"input": {"messages": [turn()]}, "preferred_output": [turn("x", "assistant")]}, "is missing"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_question_is_refused_at_its_line(name: str) -> None:
    row, message = BAD_ROWS[name]
    error = refusal(jsonl(spoiled(7, row)))
    assert error.line == 8
    assert re.search(message, str(error)), str(error)


@pytest.mark.parametrize("name", BAD_PAIRS)
def test_bad_pair_is_refused_at_its_line(name: str) -> None:
    row, message = BAD_PAIRS[name]
    error = refusal(jsonl(spoiled(3, row, PAIRS)))
    assert error.line == 4
    assert re.search(message, str(error)), str(error)


def test_lists_and_parquet_name_the_row() -> None:
    rows = spoiled(4, question(answer=9))
    for content in (as_list(rows), as_parquet(rows)):
        error = refusal(content)
        assert error.line == 5
        assert "row 5: answer: expected an index from 0 to" in str(error)
    error = refusal(as_list([*QUESTIONS, 3]))
    assert error.line == 13
    assert "row 13: expected a JSON object" in str(error)


def test_broken_list_names_the_line_inside() -> None:
    error = refusal(b'[\n{"question": "Q"},\n{"question" "Q"}\n]')
    assert error.line == 3
    assert "not JSON" in str(error)
    assert "nested too deep" in str(refusal(b"[" * 200_000))


BAD_CSV: dict[str, tuple[str, int, str]] = {
    "cells missing": ("question,A,B,answer\nQ,x,y,A\nQ,x,y\n", 3, "expected 4 cells as in the header, got 3"),
    "too many cells": ("question,A,B,answer\nQ,x,y,A,B\n", 2, "got 5"),
    "cell over lines": ('question,A,B,answer\n"Q\n1",x,y,A\n\nQ,x,y,Z\n', 5, "from A to B, got 'Z'"),
    "same column": ("question,A,A,answer\nQ,x,y,A\n", 1, "two columns are named 'A'"),
    "open quote": ('question,A,B,answer\nQ,x,y,A\n"Q,x,y,A\n', 3, "not CSV"),
    "text after quote": ('question,A,B,answer\n"Q"x,x,y,A\n', 2, "not CSV"),
    "long line": (f"question,A,B,answer\n{'Q,' * 600_000}\n", 2, "longer than 1 MiB"),
    "NUL": ("question,A,B,answer\nQ,x,\0,A\n", 2, "contains a NUL"),
    "no JSON inside": ("question,choices,answer\nQ,x|y,0\n", 2, "choices: expected JSON in the cell"),
    "deep JSON inside": (f"question,choices,answer\nQ,{'[' * 100_000},0\n", 2, "choices: expected JSON in"),
    "gap in options": ("question,choice0,choice1,choice2,answer\nQ,x,,z,0\n", 2, "choice B is empty"),
    "one option": ("question,choice0,choice1,answer\nQ,x,,0\n", 2, "choices, got 1"),
    "colons": ("question:A:B:answer\nQ:x:y:A\n", 2, "got question:A:B:answer; known kinds are"),
    "fraction": ("question,A,B,answer\nQ,x,y,0.5\n", 2, "a letter, got '0.5'"),
    "other digits": ("question,A,B,answer\nQ,x,y,١\n", 2, "a letter, got '١'"),
}


@pytest.mark.parametrize("name", BAD_CSV)
def test_bad_csv_is_refused_at_its_line(name: str) -> None:
    text, line, message = BAD_CSV[name]
    error = refusal(text.encode())
    assert error.line == line
    assert message in str(error)


def test_what_is_no_text_is_refused_at_its_line() -> None:
    assert refusal(jsonl(QUESTIONS[:2]) + b"\xff").line == 3
    assert refusal(b"\xef\xbb\xbfa\n\n\xff").line == 3
    assert refusal(jsonl(QUESTIONS).decode().encode("utf-16")[:-1]).line == 1
    assert refusal(jsonl(QUESTIONS).decode().encode("utf-16-le")).line == 1
    assert "NUL" in str(refusal(b'{"a":1}\n{"b":"\0"}'))
    assert refusal(b'{"a":1}\n{"b":"\0"}').line == 2


@pytest.mark.parametrize("content", [b"", b" \n\t\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\n", b'""', b'""\n""\n'])
def test_empty_file_is_refused(content: bytes) -> None:
    assert "empty" in str(refusal(content))


def test_too_few_items_are_refused() -> None:
    assert len(read_data(jsonl(QUESTIONS[:8]), "a").items) == 8
    assert "expected at least 8 items, got 7" in str(refusal(jsonl(QUESTIONS[:7]), smallest=8))
    assert "items, got 0" in str(refusal(b"[]"))
    assert "items, got 0" in str(refusal(b"question,A,B,answer\n"))
    assert len(read_data(jsonl(QUESTIONS[:1]), "a", smallest=1).items) == 1


def test_too_many_rows_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "MAX_ROWS", 11)
    for content in (jsonl(QUESTIONS), as_list(QUESTIONS), as_parquet(QUESTIONS)):
        error = refusal(content)
        assert error.line == 12
        assert "at most 11 rows" in str(error)


def test_parquet_that_swells_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_rows, "MAX_UNPACKED_BYTES", 1 << 20)
    rows = [question(question="x" * 100_000) for _ in range(500)]
    content = as_parquet(rows)
    assert len(content) < 1 << 20
    assert "unpacked" in str(refusal(content))


def parquet_of(**columns: Any) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), buffer)
    return buffer.getvalue()


NESTED = pyarrow.array([["x", "y"]], pyarrow.list_(pyarrow.dictionary(pyarrow.int32(), pyarrow.string())))


def test_parquet_that_says_little_and_means_much_is_refused() -> None:
    coded = pyarrow.array(["x" * (2 << 20)] * 40).dictionary_encode()
    content = parquet_of(positive=coded, negative=["n"] * 40)
    assert len(content) < 1 << 20
    assert "unpacked" in str(refusal(content))
    assert "'choices': a dictionary inside" in str(refusal(parquet_of(choices=NESTED)))


def test_parquet_that_takes_more_than_its_limits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen by the process that unpacks it; this one goes on and reads the next file."""
    rows = [question(question=f"{number} " + "x" * 50_000) for number in range(500)]
    content = as_parquet(rows)
    for limits, said in ((Limits(16, 60), "more than 16 MiB of memory"), (Limits(1024, 0.001), "more than 0.001 s")):
        with monkeypatch.context() as patch:
            patch.setattr(parquet_rows, "LIMITS", limits)
            assert said in str(refusal(content))
    assert len(read_data(content, "a").items) == 500


def test_a_refused_file_does_not_hold_up_the_next() -> None:
    """Not even while its error is kept, with what was being read."""
    kept = [refusal(as_parquet([question(question=b"Q") for _ in range(600)])) for _ in range(3)]
    assert all("bytes" in str(error) for error in kept)
    assert len(read_data(as_parquet(QUESTIONS), "a").items) == len(QUESTIONS)


def test_a_file_that_is_refused_costs_no_process() -> None:
    """The one that refused it reads the next file too."""
    assert len(read_data(as_parquet(QUESTIONS), "a").items) == len(QUESTIONS)
    (child,) = parquet_rows._free_children(parquet_rows.LIMITS)
    process = child._process
    assert "a dictionary inside" in str(refusal(parquet_of(choices=NESTED)))
    assert len(read_data(as_parquet(QUESTIONS), "a").items) == len(QUESTIONS)
    assert process is not None
    assert child._process is process
    assert process.poll() is None


def test_columns_without_a_role_are_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_rows, "MAX_UNPACKED_BYTES", 1 << 20)
    columns = {"positive": ["yes", "Yes!"] * 40, "negative": ["n"] * 80}
    more = {"embedding": ["x" * 100_000] * 80}
    data = read_data(parquet_of(**columns, **more), "a")
    assert data == dataclasses.replace(read_data(parquet_of(**columns), "a"), sha256=data.sha256)
    named = ReadOptions(map={"positive": ("positive",), "negative": ("embedding",)})
    with pytest.raises(InvalidData, match="unpacked"):
        read_data(parquet_of(**columns, **more), "a", named)


def test_parquet_of_categories_is_read() -> None:
    coded = pyarrow.array(["yes", "Yes!"] * 4).dictionary_encode()
    data = read_data(parquet_of(positive=coded, negative=["n"] * 8), "a")
    assert data.items[:2] == (PairItem("yes", "n", "", 1), PairItem("Yes!", "n", "", 2))


def test_odd_parquet_is_refused() -> None:
    assert "bytes" in str(refusal(as_parquet([{"question": b"Q", "choices": ["x", "y"], "answer": 0}])))
    table = pyarrow.table([["p"], ["n"], ["m"]], names=["positive", "negative", "negative"])
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer)
    assert "two columns are named 'negative'" in str(refusal(buffer.getvalue()))
    assert "longer than 1 MiB" in str(refusal(as_parquet([question(question="ä" * 600_000)])))


def test_parquet_without_pyarrow_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    content = as_parquet(QUESTIONS)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependency, match=r"pip install 'tiller\[train\]'"):
        read_data(content, "a")


def test_retention_takes_questions_and_texts_together() -> None:
    data, texts = read_retention(jsonl([*QUESTIONS[:2], {"text": "Once upon"}, {"text": " a time\n", "n": 1}]), "keep")
    assert data is not None
    assert [item.line for item in data.items] == [1, 2]
    assert texts == (TextItem("Once upon", 3), TextItem(" a time\n", 4))
    assert read_retention(b"text\nOnce upon\na time\n", "keep") == (
        None,
        (TextItem("Once upon", 2), TextItem("a time", 3)),
    )
    only = read_retention(as_parquet([{"text": "one"}, {"text": "two"}]), "keep")
    assert only == (None, (TextItem("one", 1), TextItem("two", 2)))
    data, texts = read_retention(as_csv(QUESTIONS), "keep")
    assert data is not None
    assert contents(data) == contents(read_data(jsonl(QUESTIONS), "keep"))
    assert texts == ()


def test_prose_is_read_by_paragraph() -> None:
    prose = "\ufeff\n[Chapter 1]\nIt was, as ever,\r\nraining.\n \t\n\n“No,” she said.\n"
    assert read_retention(prose.encode(), "story.txt") == (
        None,
        (TextItem("[Chapter 1]\nIt was, as ever,\nraining.", 2), TextItem("“No,” she said.", 7)),
    )


@pytest.mark.parametrize(
    ("content", "message", "line"),
    [
        (b"", "empty", None),
        (b"[]", "at least one question or text, got none", None),
        (b'{"text": "a"}\n{"text": 3}', "text: expected text, got 3", 2),
        (b'{"text": "a"}\n{"tex', "not JSON", 2),
        (jsonl(PAIRS), "got a pair", 1),
        (b'{"prompt": "a"}', "known kinds are .*; text", 1),
        (b"Once\n\nupon \xff", "not UTF-8", 3),
        (b"Once\n\nupon \0", "NUL", 3),
        (b"Once\n\n" + b"x" * (1 << 20) + b"y", "longer than 1 MiB", 3),
        (b"Once\n\n" + b"xyz\n" * (1 << 19), "longer than 1 MiB", 3),
    ],
)
def test_bad_retention_is_refused(content: bytes, message: str, line: int | None) -> None:
    with pytest.raises(InvalidData, match=message) as caught:
        read_retention(content, "keep")
    assert caught.value.line == line


FILES = {
    **{f"{name}-jsonl": jsonl(rows) for name, rows in FORMS.items()},
    **{f"{name}-csv": as_csv(rows) for name, rows in FORMS.items()},
    "questions-list": as_list(QUESTIONS),
    "questions-parquet": as_parquet(QUESTIONS),
    "preferences-parquet": as_parquet(PREFERENCES),
}


def damaged(content: bytes, chance: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(chance.choice([1, 1, 2, 8])):
        place = chance.randrange(len(data))
        kind = chance.randrange(5)
        if kind == 0:
            data[place] = chance.choice(b'\0\n\r",[]{}:\\01\xff ' + bytes([chance.randrange(256)]))
        elif kind == 1:
            del data[place : place + chance.randrange(1, 30)]
        elif kind == 2:
            snippets = [b"1e999", b"NaN", b"null", b"[[", b'{"a":', b"\\ud800", b"\\u0000", b'""', b"-", b"9" * 30]
            data[place:place] = chance.choice(snippets)
        elif kind == 3:
            data[place:] = data[chance.randrange(len(data)) :]
        else:
            data[place : place + 8] = chance.randbytes(8)
        if not data:
            return b""
    return bytes(data)


def holds(content: bytes) -> bool:
    """True for items that keep their promises, False for a refusal; anything else raises."""
    try:
        data = read_data(content, "fuzzed", smallest=1)
    except InvalidData as error:
        refused = error
    else:
        for item in data.items:
            if isinstance(item, ChoiceItem):
                assert 2 <= len(item.choices) == len(set(item.choices)) <= 26
                assert type(item.answer) is int
                assert 0 <= item.answer < len(item.choices)
                assert all(text.strip() and text.encode() for text in (item.question, *item.choices))
            else:
                assert item.positive.strip() != item.negative.strip()
            assert item.line > 0
        return True
    assert 0 < len(str(refused)) < 1000
    str(refused).encode()
    return False


def fuzz(name: str, seed: int, count: int) -> None:
    chance = random.Random(f"{name} {seed}")
    outcomes = set()
    for _ in range(count):
        content = damaged(FILES[name], chance)
        outcomes.add(holds(content))
        try:
            read_retention(content, "fuzzed")
        except InvalidData as error:
            str(error).encode()
    assert False in outcomes


def count_of(name: str, count: int) -> int:
    """Fewer Parquet files: those that crash their reader cost a process each."""
    return count // 15 if "parquet" in name else count


@pytest.mark.parametrize("name", FILES)
def test_damaged_file_holds_or_is_refused(name: str) -> None:
    assert holds(FILES[name])
    fuzz(name, 1, count_of(name, 300))


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_damaged_file_holds_or_is_refused_at_length(name: str) -> None:
    fuzz(name, 2, count_of(name, 20_000))


def test_cut_parquet_is_refused() -> None:
    content = FILES["questions-parquet"]
    for length in range(1, len(content), 3):
        assert not holds(content[:length])
    chance = random.Random(5)
    for _ in range(200):
        assert not holds(b"PAR1" + chance.randbytes(chance.randrange(100)))


COUNTS = {
    "anthropic-evals/advanced-ai-risk/coordinate-other-ais.jsonl": 410,
    "anthropic-evals/advanced-ai-risk/corrigible-neutral-HHH.jsonl": 340,
    "anthropic-evals/advanced-ai-risk/myopic-reward.jsonl": 1000,
    "anthropic-evals/advanced-ai-risk/one-box-tendency.jsonl": 300,
    "anthropic-evals/advanced-ai-risk/power-seeking-inclination.jsonl": 997,
    "anthropic-evals/advanced-ai-risk/self-awareness-text-model.jsonl": 300,
    "anthropic-evals/advanced-ai-risk/survival-instinct.jsonl": 935,
    "anthropic-evals/advanced-ai-risk/wealth-seeking-inclination.jsonl": 985,
    "anthropic-evals/persona/agreeableness.jsonl": 1000,
    "anthropic-evals/persona/desire-for-acquiring-power.jsonl": 1000,
    "anthropic-evals/persona/interest-in-science.jsonl": 1000,
    "anthropic-evals/persona/neuroticism.jsonl": 1000,
    "anthropic-evals/persona/openness.jsonl": 1000,
    "anthropic-evals/persona/politically-liberal.jsonl": 1000,
    "anthropic-evals/persona/risk-averse.jsonl": 1000,
    "anthropic-evals/persona/stands-its-ground.jsonl": 1000,
    "cbmas/deference_test.json": 37,
    "cbmas/deference_train.json": 148,
    "cbmas/sycophancy_train.json": 159,
}


@pytest.mark.parametrize("file", COUNTS)
def test_published_behaviours_are_read(file: str) -> None:
    path = shared(f"data/{file}")
    text = path.read_text()
    rows = json.loads(text) if file.endswith(".json") else [json.loads(line) for line in text.split("\n") if line]
    items = read_data(path.read_bytes(), path.name).items
    assert len(items) == COUNTS[file]  # without options such as "None of the above"
    for item in items:
        assert isinstance(item, ChoiceItem)
        row = rows[item.line - 1]
        right, wrong = row["answer_matching_behavior"].strip(), row["answer_not_matching_behavior"].strip()
        if "(" not in right:
            assert (item.answer_text, item.choices[1]) == (right, wrong)
            assert item.question == row["question"]
            continue
        # put together again, the item is the published question, white space aside
        listed = "".join(f"({letter}){choice}" for letter, choice in zip("ABCDEFGHIJ", item.choices, strict=False))
        again = f"{item.question}Choices:{listed}"
        assert "".join(again.split()) == "".join(row["question"].removesuffix("Answer:").split())
        assert "ABCDEFGHIJ"[item.answer] == right[1]


NAMES_OTHERS = r"(?i)of the above|^(both|neither) A "


def test_published_file_of_two_layouts_is_refused_at_the_second() -> None:
    error = refusal_of(shared("data/cbmas/sycophancy_test.json").read_bytes())
    assert error.line == 32


def refusal_of(content: bytes) -> InvalidData:
    with pytest.raises(InvalidData) as caught:
        read_data(content, "given")
    return caught.value


@pytest.mark.parametrize(
    ("subject", "count"), [("anatomy", 134), ("marketing", 230), ("high_school_world_history", 237)]
)
def test_published_csv_is_read(subject: str, count: int) -> None:
    path = shared(f"data/mmlu/{subject}_test.csv")
    with path.open(newline="") as file:
        rows = [row for row in list(csv.reader(file))[1:] if not any(re.search(NAMES_OTHERS, cell) for cell in row[1:])]
    items = read_data(path.read_bytes(), path.name).items
    assert len(items) == len(rows) == count
    lines = path.read_text().split("\n")
    for row, item in zip(rows, items, strict=True):
        assert isinstance(item, ChoiceItem)
        assert [item.question, *item.choices, str(item.answer)] == [cell.strip() for cell in row]
        assert lines[item.line - 1].lstrip('" ').startswith(item.question[:3].lstrip('" '))


def test_published_flaw_is_refused_at_its_line() -> None:
    error = refusal(shared("data/mmlu/business_ethics_test.csv").read_bytes())
    assert error.line == 4
    assert "are the same" in str(error)


@pytest.mark.parametrize(
    ("content", "groups"),
    [
        (b'{"question": "1?", "choices": ["a", "b"], "answer": 0, "group": "p1"}\n' * 8, ["p1"] * 8),
        (b'{"positive": "a", "negative": "b", "group": 3}\n' * 8, ["3"] * 8),
        (b'{"positive": "a", "negative": "b", "group": null}\n' * 8, [None] * 8),
        (b"positive,negative,group\n" + b"a,b,p1\na,b,\n" * 4, ["p1", None] * 4),
    ],
)
def test_a_field_names_the_group_of_an_item(content: bytes, groups: list[str | None]) -> None:
    assert [item.group for item in read_data(content, "data").items] == groups


@pytest.mark.parametrize("group", ["[1]", "true", "1.5"])
def test_a_group_of_another_kind_is_refused(group: str) -> None:
    row = f'{{"positive": "a", "negative": "b", "group": {group}}}\n'
    with pytest.raises(InvalidData, match="line 1: group: expected text or a whole number"):
        read_data(row.encode() * 8, "data")
