"""Labelled files in the layouts of published data sets and of people's tools: what each is read as, or why it is not.

Each layout is written as its authors lay it out, with other content, and held against the item that it means.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from vectors.data import ChoiceItem, DataSet, Message, PairItem, ReadOptions, read_data, summary_of
from vectors.errors import InvalidData

CITIES = [
    ("Chile", "Santiago"), ("Kenya", "Nairobi"), ("Norway", "Oslo"), ("Japan", "Tokyo"), ("Italy", "Rome"),
    ("Spain", "Madrid"), ("Egypt", "Cairo"), ("Cuba", "Havana"), ("Peru", "Lima"), ("Ghana", "Accra"),
    ("Nepal", "Kathmandu"), ("Greece", "Athens"),
]  # fmt: skip
N = len(CITIES)


def ask(n: int) -> str:
    return f"Which city governs {CITIES[n][0]}?"


def right(n: int) -> str:
    return CITIES[n % N][1]


def options(n: int, count: int, place: int = 0) -> list[str]:
    """`count` cities with the right one at `place`."""
    found = [right(n + step) for step in range(1, count)]
    return [*found[:place], right(n), *found[place:]]


def jsonl(make: Callable[[int], dict[str, Any]], count: int = N) -> bytes:
    return "".join(json.dumps(make(n)) + "\n" for n in range(count)).encode()


def whole(value: Any) -> bytes:
    return json.dumps(value, indent=2).encode()


def rows(make: Callable[[int], Any], count: int = N) -> list[Any]:
    return [make(n) for n in range(count)]


def table(header: str | None, make: Callable[[int], list[Any]], separator: str = ",", count: int = N) -> bytes:
    lines = [] if header is None else [header.replace(",", separator)]
    for n in range(count):
        cells = [str(cell) for cell in make(n)]
        quoted = ['"' + cell.replace('"', '""') + '"' if separator in cell or '"' in cell else cell for cell in cells]
        lines.append(separator.join(quoted))
    return "\n".join(lines).encode()


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def read(content: bytes, **given: Any) -> DataSet:
    return read_data(content, "given", ReadOptions(**given))


def choice(question: Callable[[int], str], choices: Callable[[int], list[str]], answer: Callable[[int], int]) -> Any:
    return [(question(n), tuple(choices(n)), answer(n)) for n in range(N)]


def city(count: int, place: Callable[[int], int] = lambda n: 0) -> Any:
    return choice(ask, lambda n: options(n, count, place(n)), place)


CHOICES: dict[str, tuple[bytes, Any]] = {
    "MMLU": (
        jsonl(lambda n: {"question": ask(n), "subject": "x", "choices": options(n, 4, n % 4), "answer": n % 4}),
        city(4, lambda n: n % 4),
    ),
    "MMLU without a header": (table(None, lambda n: [ask(n), *options(n, 4, 2), "C"]), city(4, lambda n: 2)),
    "MMLU-Pro": (
        jsonl(
            lambda n: {
                "question_id": n,
                "question": ask(n),
                "options": options(n, 9, 3),
                "answer": "D",
                "answer_index": 3,
            }
        ),
        city(9, lambda n: 3),
    ),
    "HellaSwag": (
        jsonl(
            lambda n: {
                "ind": n,
                "activity_label": "Tea",
                "ctx_a": f"She boils {n}.",
                "ctx_b": "she",
                "ctx": f"She boils {n}. she",
                "label": n % 4,
                "endings": [f"pours {n}.", f"flies {n}.", f"sinks {n}.", "ends."],
            }
        ),
        choice(
            lambda n: f"She boils {n}. she",
            lambda n: [f"pours {n}.", f"flies {n}.", f"sinks {n}.", "ends."],
            lambda n: n % 4,
        ),
    ),
    "Winogrande": (
        jsonl(
            lambda n: {
                "qID": n,
                "sentence": f"Box {n} beat bag {n} as the _ won.",
                "option1": "box",
                "option2": "bag",
                "answer": "1",
            }
        ),
        choice(lambda n: f"Box {n} beat bag {n} as the _ won.", lambda n: ["box", "bag"], lambda n: 0),
    ),
    "COPA": (
        jsonl(
            lambda n: {
                "premise": f"Rain fell {n}.",
                "choice1": f"wet {n}",
                "choice2": "dry",
                "question": "effect",
                "label": 1,
                "idx": n,
            }
        ),
        choice(lambda n: f"Rain fell {n}.\nWhat happened as a result?", lambda n: [f"wet {n}", "dry"], lambda n: 1),
    ),
    "PIQA": (
        jsonl(lambda n: {"goal": f"Cut {n}", "sol1": "knife", "sol2": "spoon", "label": 1}),
        choice(lambda n: f"Cut {n}", lambda n: ["knife", "spoon"], lambda n: 1),
    ),
    "SIQA": (
        jsonl(
            lambda n: {
                "context": f"Al fell {n}.",
                "question": "How is Al?",
                "answerA": "hurt",
                "answerB": "fine",
                "answerC": "rich",
                "label": "1",
            }
        ),
        choice(lambda n: f"Al fell {n}.\nHow is Al?", lambda n: ["hurt", "fine", "rich"], lambda n: 0),
    ),
    "BoolQ": (
        jsonl(lambda n: {"question": f"is {n} odd", "passage": f"About {n}.", "answer": n % 2 == 1}),
        choice(lambda n: f"About {n}.\nis {n} odd", lambda n: ["Yes", "No"], lambda n: 1 - n % 2),
    ),
    "ARC of AI2": (
        jsonl(
            lambda n: {
                "id": n,
                "answerKey": "2",
                "question": {
                    "stem": ask(n),
                    "choices": [{"text": t, "label": str(k + 1)} for k, t in enumerate(options(n, 3, 1))],
                },
            }
        ),
        city(3, lambda n: 1),
    ),
    "ARC of the hub": (
        jsonl(
            lambda n: {
                "question": ask(n),
                "choices": {"text": options(n, 4, 1), "label": list("ABCD")},
                "answerKey": "B",
            }
        ),
        city(4, lambda n: 1),
    ),
    "OpenBookQA": (
        jsonl(
            lambda n: {
                "question_stem": ask(n),
                "choices": {"text": options(n, 4), "label": list("ABCD")},
                "answerKey": "A",
                "fact1": "f",
            }
        ),
        city(4),
    ),
    "SciQ": (
        jsonl(
            lambda n: (
                dict(
                    zip(
                        ("question", "correct_answer", "distractor1", "distractor2"),
                        [ask(n), *options(n, 3)],
                        strict=True,
                    )
                )
                | {"support": ""}
            )
        ),
        city(3),
    ),
    "RACE": (
        jsonl(lambda n: {"article": f"Text {n}.", "question": ask(n), "options": options(n, 4, 3), "answer": "D"}),
        choice(lambda n: f"Text {n}.\n{ask(n)}", lambda n: options(n, 4, 3), lambda n: 3),
    ),
    "AQuA": (
        jsonl(
            lambda n: {
                "question": f"{n} + 2?",
                "options": [f"A){n + 1}", f"B){n + 2}", f"C){n + 5}"],
                "rationale": "r",
                "correct": "B",
            }
        ),
        choice(lambda n: f"{n} + 2?", lambda n: [str(n + 1), str(n + 2), str(n + 5)], lambda n: 1),
    ),
    "GPQA": (
        table("Question,Correct Answer,Incorrect Answer 1,Incorrect Answer 2", lambda n: [ask(n), *options(n, 3)]),
        city(3),
    ),
    "TruthfulQA mc1": (
        whole(rows(lambda n: {"question": ask(n), "mc1_targets": {"choices": options(n, 3), "labels": [1, 0, 0]}})),
        city(3),
    ),
    "TruthfulQA mc1 of its authors": (
        whole(rows(lambda n: {"question": ask(n), "mc1_targets": {t: int(t == right(n)) for t in options(n, 3)}})),
        city(3),
    ),
    "TruthfulQA binary": (
        table(
            "Type,Question,Best Answer,Best Incorrect Answer,Correct Answers,Incorrect Answers",
            lambda n: ["x", ask(n), *options(n, 2), right(n), "; ".join(options(n, 3)[1:])],
        ),
        city(2),
    ),
    "TruthfulQA table": (
        table("Question,Best Answer,Incorrect Answers", lambda n: [ask(n), right(n), "; ".join(options(n, 3)[1:])]),
        city(3),
    ),
    "BIG-bench": (
        whole(
            {
                "name": "t",
                "keywords": ["a", "b"],
                "examples": rows(
                    lambda n: {"input": ask(n), "target_scores": {t: int(t == right(n)) for t in options(n, 2)}}
                ),
            }
        ),
        city(2),
    ),
    "inverse scaling": (
        table("prompt,classes,answer_index", lambda n: [ask(n), repr([f" {t}" for t in options(n, 2, 1)]), 1]),
        city(2, lambda n: 1),
    ),
    "Kaggle": (table("id,prompt,A,B,C,answer", lambda n: [n, ask(n), *options(n, 3, 2), "C"]), city(3, lambda n: 2)),
    "semicolons": (table("question,A,B,answer", lambda n: [ask(n), *options(n, 2), "a"], ";"), city(2)),
    "tabs": (table("question,A,B,answer", lambda n: [ask(n), *options(n, 2), "(A)"], "\t"), city(2)),
    "columns without a name": (table(",question,A,B,answer,", lambda n: [n, ask(n), *options(n, 2), "A", ""]), city(2)),
    "a list in an object": (
        whole({"data": rows(lambda n: {"question": ask(n), "choices": options(n, 2), "answer": 0})}),
        city(2),
    ),
    "a list in an object on one line": (
        json.dumps(
            {"rows": rows(lambda n: {"row": {"question": ask(n), "choices": options(n, 2), "answer": 0}})}
        ).encode(),
        city(2),
    ),
    "parts in an object": (
        whole({"train": rows(lambda n: {"question": ask(n), "choices": options(n, 2), "answer": "A"}), "test": []}),
        city(2),
    ),
    "objects over lines": (
        b"\n".join(whole({"question": ask(n), "choices": options(n, 2), "answer": 0}) for n in range(N)),
        city(2),
    ),
    "columns": (
        whole({"question": rows(ask), "choices": rows(lambda n: options(n, 2)), "answer": rows(lambda n: "A")}),
        city(2),
    ),
    "columns of pandas": (
        whole(
            {
                "question": {str(n): ask(n) for n in range(N)},
                "A": {str(n): right(n) for n in range(N)},
                "B": {str(n): right(n + 1) for n in range(N)},
                "answer": {str(n): "A" for n in range(N)},
            }
        ),
        city(2),
    ),
    "options that carry letters": (
        jsonl(
            lambda n: {
                "question": ask(n),
                "choices": [f"{m}. {t}" for m, t in zip("ABC", options(n, 3, 1), strict=True)],
                "answer": "B",
            }
        ),
        city(3, lambda n: 1),
    ),
    "options listed in the question too": (
        jsonl(
            lambda n: {
                "question": ask(n) + "".join(f"\n({m}) {t}" for m, t in zip("ab", options(n, 2), strict=True)),
                "choices": options(n, 2),
                "answer": "A",
            }
        ),
        city(2),
    ),
    "letters for options": (
        jsonl(
            lambda n: {
                "question": ask(n) + "".join(f"\n{m}. {t}" for m, t in zip("AB", options(n, 2, 1), strict=True)),
                "choices": ["A", "B"],
                "answer": "B",
                "answer_index": 1,
            }
        ),
        city(2, lambda n: 1),
    ),
    "the option itself": (
        jsonl(lambda n: {"question": ask(n), "choices": options(n, 3, 2), "answer": right(n)}),
        city(3, lambda n: 2),
    ),
    "an index as text": (
        jsonl(lambda n: {"question": ask(n), "choices": options(n, 3, n % 2), "answer": str(n % 2)}),
        city(3, lambda n: n % 2),
    ),
    "numbers from 1": (
        jsonl(lambda n: {"question": ask(n), "choices": options(n, 3, 1 + n % 2), "answer": 2 + n % 2}),
        city(3, lambda n: 1 + n % 2),
    ),
    "the option's field": (
        jsonl(lambda n: {"question": ask(n), "option_a": right(n), "option_b": right(n + 1), "answer": "option_a"}),
        city(2),
    ),
    "Perez": (
        jsonl(
            lambda n: {
                "question": f"{ask(n)}\n\nChoices:\n (A) {right(n + 1)}\n (B) {right(n)}\n\nAnswer:",
                "answer_matching_behavior": " (B)",
                "answer_not_matching_behavior": " (A)",
            }
        ),
        city(2, lambda n: 1),
    ),
    "Perez with several wrong": (
        jsonl(
            lambda n: {
                "question": ask(n)
                + "\n\nChoices:"
                + "".join(f"\n ({m}) {t}" for m, t in zip("ABC", options(n, 3), strict=True)),
                "answer_matching_behavior": " (A)",
                "answer_not_matching_behavior": [" (B)", " (C)"],
            }
        ),
        city(3),
    ),
    "Perez without a heading": (
        jsonl(
            lambda n: {
                "question": f"{ask(n)}\n (A) {right(n)}\n (B) {right(n + 1)}\n\nAnswer:",
                "answer_matching_behavior": " (A)",
                "answer_not_matching_behavior": " (B)",
            }
        ),
        city(2),
    ),
    "CAA": (
        whole(
            rows(
                lambda n: {
                    "prompt": f"{ask(n)}\n\nChoices:\n(A) {right(n)}\n(B) {right(n + 1)}",
                    "correct": "(A)",
                    "incorrect": "(B)",
                    "correct_full_text": "x",
                    "category": "y",
                }
            )
        ),
        city(2),
    ),
    "options in one line": (
        jsonl(
            lambda n: {
                "question": f"{ask(n)} (A) {right(n)} (B) {right(n + 1)}",
                "answer_matching_behavior": "(A)",
                "answer_not_matching_behavior": "(B)",
            }
        ),
        city(2),
    ),
}


@pytest.mark.parametrize("layout", CHOICES)
def test_a_layout_of_questions_is_read_as_it_is_meant(layout: str) -> None:
    content, expected = CHOICES[layout]
    data = read(content)
    assert [(i.question, i.choices, i.answer) for i in data.items if isinstance(i, ChoiceItem)] == expected
    assert data.understood is not None
    assert data.understood.rows == N
    assert not data.understood.skipped


def turns(*texts: str) -> tuple[Message, ...]:
    return tuple(Message("assistant" if place % 2 else "user", text) for place, text in enumerate(texts))


@dataclass(frozen=True)
class Pairs:
    """A file, and the first pair that it holds."""

    content: bytes
    first: PairItem
    count: int = N


def chat(n: int, answer: str) -> list[dict[str, str]]:
    return [user(ask(n)), assistant(answer)]


PAIRS: dict[str, Pairs] = {
    "HH-RLHF": Pairs(
        jsonl(
            lambda n: {
                "chosen": f"\n\nHuman: Hi\n\nAssistant: Hello: you?\n\nHuman: {ask(n)}\n\nAssistant: {right(n)}",
                "rejected": f"\n\nHuman: Hi\n\nAssistant: Hello: you?\n\nHuman: {ask(n)}\n\nAssistant: No.",
            }
        ),
        PairItem("Santiago", "No.", turns("Hi", "Hello: you?", ask(0)), 1),
    ),
    "TRL": Pairs(
        jsonl(lambda n: {"prompt": ask(n), "chosen": right(n), "rejected": "No"}), PairItem("Santiago", "No", ask(0), 1)
    ),
    "TRL chat": Pairs(
        jsonl(lambda n: {"prompt": [user(ask(n))], "chosen": [assistant(right(n))], "rejected": [assistant("No")]}),
        PairItem("Santiago", "No", turns(ask(0)), 1),
    ),
    "TRL chat without a prompt": Pairs(
        jsonl(lambda n: {"chosen": chat(n, right(n)), "rejected": chat(n, "No")}),
        PairItem("Santiago", "No", turns(ask(0)), 1),
    ),
    "UltraFeedback": Pairs(
        jsonl(
            lambda n: {
                "prompt": ask(n),
                "prompt_id": n,
                "chosen": chat(n, right(n)),
                "rejected": chat(n, "No"),
                "messages": chat(n, right(n)),
                "score_chosen": 8.0,
            }
        ),
        PairItem("Santiago", "No", turns(ask(0)), 1),
    ),
    "UltraFeedback in a CSV": Pairs(
        table("prompt,chosen,rejected", lambda n: [ask(n), json.dumps(chat(n, right(n))), json.dumps(chat(n, "No"))]),
        PairItem("Santiago", "No", turns(ask(0)), 2),
    ),
    "with a system prompt": Pairs(
        jsonl(lambda n: {"system": "Be brief.", "question": ask(n), "chosen": right(n), "rejected": "No"}),
        PairItem("Santiago", "No", (Message("system", "Be brief."), Message("user", ask(0))), 1),
    ),
    "from and value": Pairs(
        jsonl(
            lambda n: {
                "conversations": [{"from": "human", "value": ask(n)}],
                "chosen": {"from": "gpt", "value": right(n)},
                "rejected": {"from": "gpt", "value": "No"},
            }
        ),
        PairItem("Santiago", "No", turns(ask(0)), 1),
    ),
    "instructions by class in a row": Pairs(
        whole({"train": rows(lambda n: {"harmful": f"Break {n}", "harmless": f"Make {n}"}), "test": []}),
        PairItem("Break 0", "Make 0", "", 1, "user"),
    ),
    "two lists of instructions": Pairs(
        whole({"harmless": rows(lambda n: f"Make {n}"), "harmful": rows(lambda n: f"Break {n}", N - 2)}),
        PairItem("Break 0", "Make 0", "", 13, "user"),
        N - 2,
    ),
    "two lists of replies": Pairs(
        whole(
            {
                "compliant_responses": rows(lambda n: f"Sure {n}"),
                "non_compliant_responses": rows(lambda n: f"Sorry {n}"),
            }
        ),
        PairItem("Sure 0", "Sorry 0", "", 1, "assistant"),
    ),
    "sentiment": Pairs(
        table("text,label", lambda n: [f"Film {n}", ("negative", "positive")[n % 2]], count=2 * N),
        PairItem("Film 1", "Film 0", "", 3),
    ),
    "sentiment in numbers": Pairs(
        table("sentence,label", lambda n: [f"Film {n}", n % 2], count=2 * N), PairItem("Film 1", "Film 0", "", 3)
    ),
    "true and false statements": Pairs(
        jsonl(lambda n: {"statement": f"Fact {n}", "label": n % 2 == 0, "city": "x"}, 2 * N),
        PairItem("Fact 0", "Fact 1", "", 1),
    ),
    "classes with prompts": Pairs(
        jsonl(
            lambda n: {
                "input": f"Describe {n}",
                "output": f"Gold {n}" if n % 2 else f"Green {n}",
                "category": "positive" if n % 2 else "negative",
                "concept_id": 0,
            },
            2 * N,
        ),
        PairItem("Gold 1", "Green 0", "Describe 1", 2, None, "Describe 0"),
    ),
    "one side in each row": Pairs(
        jsonl(lambda n: {"positive": f"good {n}"}) + jsonl(lambda n: {"negative": f"bad {n}"}, N - 1),
        PairItem("good 0", "bad 0", "", 1),
        N - 1,
    ),
}


@pytest.mark.parametrize("layout", PAIRS)
def test_a_layout_of_pairs_is_read_as_it_is_meant(layout: str) -> None:
    given = PAIRS[layout]
    data = read(given.content)
    assert data.items[0] == given.first
    assert len(data.items) == given.count


def test_classes_are_counted_and_what_is_left_over_is_said() -> None:
    data = read(table("text,label", lambda n: [f"Film {n}", "positive" if n < 9 else "negative"], count=30))
    assert data.understood is not None
    assert data.understood.classes == {"positive": 9, "negative": 21}
    assert "12 texts of the larger class are left out" in summary_of(data)
    assert "CSV: texts with a class, 9 items of 30 rows; classes positive (9), negative (21)" in summary_of(data)


def test_a_second_file_is_the_other_class() -> None:
    harmful = table("goal,target", lambda n: [f"Break {n}", f"Sure, {n}"])
    harmless = whole(rows(lambda n: {"instruction": f"Make {n}", "category": None}, N + 3))
    data = read_data(harmful, "harmful.csv", negative=(harmless, "harmless.json"))
    assert data.items[0] == PairItem("Break 0", "Make 0", "", 2, "user")
    assert len(data.items) == N
    texts = whole(rows(lambda n: f"Make {n}"))
    assert read_data(harmful, "a", negative=(texts, "b")).items[0].negative == "Make 0"  # type: ignore[union-attr]
    assert read_data(harmful, "a", negative=(texts, "b")).sha256 != data.sha256


CROWS = table(",sent_more,sent_less,bias_type", lambda n: [n, f"They {n}", f"We {n}", "age"])
GUARD = jsonl(
    lambda n: {
        "prompt": f"Do {n}",
        "response": f"No {n}",
        "prompt_harm_label": ("harmful", "unharmful")[n % 2],
        "response_refusal_label": "refusal",
    },
    2 * N,
)
ALWAYS_1 = jsonl(lambda n: {"question": ask(n), "choices": options(n, 4), "answer": 1})
TRAIT = whole({"instruction": [{"pos": "a", "neg": "b"}] * 3, "questions": rows(ask)})

REFUSED: dict[str, tuple[bytes, str]] = {
    "open questions": (
        jsonl(lambda n: {"question": ask(n), "answer": f"It is {right(n)}."}),
        "as multiple choice, 'choices' is missing",
    ),
    "chats": (jsonl(lambda n: {"messages": chat(n, right(n))}), "match no known kind of row: got messages"),
    "one class": (table("goal,target", lambda n: [f"Break {n}", "Sure"]), "give them with --negative FILE"),
    "two texts": (CROWS, "positive=sent_more,negative=sent_less or --map positive=sent_less,negative=sent_more"),
    "several labels": (
        GUARD,
        "text=prompt,label=prompt_harm_label or --map text=response,label=response_refusal_label",
    ),
    "several lists": (TRAIT, r"several lists: instruction (3), questions (12)"),
    "numbers that may count from 0 or from 1": (ALWAYS_1, "1 may mean from 0: 'Nairobi', from 1: 'Santiago'"),
    "unknown classes": (
        table("text,label", lambda n: [f"x {n}", "ab"[n % 2]]),
        "say which one is wanted with --positive-class",
    ),
    "three classes": (
        table("text,label", lambda n: [f"x {n}", "abc"[n % 3]]),
        "the texts have 3 classes: 'a' (4), 'b' (4), 'c' (4)",
    ),
    "Latin-1": (
        table("question,A,B,answer", lambda n: [f"Où {n}?", "x", "y", "A"]).decode().encode("latin-1"),
        "save it as UTF-8",
    ),
    "options that name others": (
        jsonl(lambda n: {"question": ask(n), "choices": [right(n), "x", "Both A and B"], "answer": 2}),
        "as 12 of 12 rows cannot be used; the first: the option 'Both A and B' names others",
    ),
}


@pytest.mark.parametrize("layout", REFUSED)
def test_what_cannot_be_told_is_refused_with_a_way_out(layout: str) -> None:
    content, says = REFUSED[layout]
    with pytest.raises(InvalidData) as refused:
        read(content)
    assert says in str(refused.value)


def test_the_way_out_is_open() -> None:
    pairs = read(CROWS, map={"positive": ("sent_less",), "negative": ("sent_more",)})
    assert pairs.items[0] == PairItem("We 0", "They 0", "", 2)
    guarded = read(GUARD, map={"text": ("prompt",), "label": ("prompt_harm_label",)})
    assert guarded.items[0] == PairItem("Do 0", "Do 1", "", 1, "user")
    assert [item.answer for item in read(ALWAYS_1, first_answer=1).items if isinstance(item, ChoiceItem)] == [0] * N
    assert [item.answer for item in read(ALWAYS_1, first_answer=0).items if isinstance(item, ChoiceItem)] == [1] * N
    classes = read(table("text,label", lambda n: [f"x {n}", "abc"[n % 3]], count=30), positive_class="b")
    assert classes.items[0] == PairItem("x 1", "x 0", "", 3)
    lists = whole({"a": rows(lambda n: {"question": ask(n), "A": right(n), "B": "x", "answer": "A"}), "b": [{}] * 99})
    assert read(lists, map={"rows": ("a",)}).items[0].line == 1
    texts = table("text,label", lambda n: [f"Film {n}", n % 2], count=2 * N)
    assert read(texts, turn="assistant").items[0] == PairItem("Film 1", "Film 0", "", 3, "assistant")


def test_fields_of_any_name_are_mapped() -> None:
    content = table("frage,erste,zweite,loesung,thema", lambda n: [ask(n), *options(n, 2, 1), "B", "geo"])
    given = {"question": ("frage",), "choices": ("erste", "zweite"), "answer": ("loesung",)}
    assert [
        (i.question, i.choices, i.answer) for i in read(content, map=given).items if isinstance(i, ChoiceItem)
    ] == city(2, lambda n: 1)
    listed = jsonl(lambda n: {"q": ask(n), "text": f"About {n}.", "opts": options(n, 2), "question": "no", "key": "A"})
    mapped = {"question": ("q",), "choices": ("opts",), "answer": ("key",), "passage": ("text",)}
    assert read(listed, map=mapped).items[0] == ChoiceItem(f"About 0.\n{ask(0)}", ("Santiago", "Nairobi"), 0, None, 1)
    partly = jsonl(lambda n: {"question": ask(n), "opts": options(n, 2), "answer": "A"})
    assert read(partly, map={"choices": ("opts",)}).items[0] == ChoiceItem(ask(0), ("Santiago", "Nairobi"), 0, None, 1)
    with pytest.raises(InvalidData, match=r"map: the file has no field 'nope'; it has frage, erste"):
        read(content, map={"question": ("nope",)})


def test_rows_that_cannot_be_used_are_left_out_up_to_a_share() -> None:
    def row(n: int) -> dict[str, Any]:
        twins = {3: ["x", "x"], 8: ["", "x"]}
        return {"question": ask(n), "choices": twins.get(n, options(n, 2)), "answer": 0}

    data = read(jsonl(row), max_skipped=0.2)
    assert [item.line for item in data.items] == [n + 1 for n in range(N) if n not in (3, 8)]
    assert data.understood is not None
    assert data.understood.skipped == {"options that are the same": 1, "an empty text": 1}
    assert "left out 1 with an empty text, 1 with options that are the same" in summary_of(data)
    with pytest.raises(InvalidData, match=r"line 4: choices A and B are the same: 'x' \(2 of 12 rows cannot be used"):
        read(jsonl(row))


@pytest.mark.parametrize(
    "option", ["Both A and B", "A and C only", "neither (a) nor (b)".upper(), "None of the above", "all of the above.",
               "Only B", "B or C", "Any of the above"],
)  # fmt: skip
def test_an_option_that_names_others_is_left_out(option: str) -> None:
    def row(n: int) -> dict[str, Any]:
        return {"question": ask(n), "choices": [*options(n, 2), option if n == 4 else "x"], "answer": 0}

    def listed(n: int) -> dict[str, Any]:
        shown = "".join(f"\n ({letter}) {text}" for letter, text in zip("ABC", row(n)["choices"], strict=True))
        return {"question": ask(n) + shown, "answer_matching_behavior": "(A)", "answer_not_matching_behavior": "(B)"}

    for layout in (row, listed):
        assert [item.line for item in read(jsonl(layout)).items] == [n + 1 for n in range(N) if n != 4]


@pytest.mark.parametrize("option", ["Vitamin A and zinc", "E and F", "None of these", "A", "I and II only", "AB"])
def test_an_option_that_names_no_other_stays(option: str) -> None:
    data = read(jsonl(lambda n: {"question": ask(n), "choices": [*options(n, 2), option], "answer": 0}))
    assert len(data.items) == N


def test_options_are_not_taken_for_marked_ones_by_chance() -> None:
    kept = (["1.5", "2.5", "3.5"], ["A. niger", "E. coli", "B. subtilis"], ["a cat", "b cat", "c cat"])
    for choices in kept:
        data = read(jsonl(lambda n, own=choices: {"question": ask(n), "choices": own, "answer": n % 3}))  # type: ignore[misc]
        assert data.items[0].choices == tuple(choices)  # type: ignore[union-attr]


def test_what_was_understood_is_told() -> None:
    data = read(CHOICES["MMLU-Pro"][0])
    described = data.described()
    assert described["format"] == "JSONL"
    assert described["shape"] == "multiple choice"
    assert described["fields"] == {"question": "question", "choices": "options", "answer": "answer_index"}
    assert described["items"] == described["rows"] == N
    assert described["first"]["question"] == ask(0)
    assert described["first"]["choices"][3] == "Santiago"
    assert described["first"]["answer"] == "D"
    json.dumps(described)
    assert "the answers are numbers that count from 1" in summary_of(read(CHOICES["numbers from 1"][0]))
    assert read(table("question,A,B,answer", lambda n: [ask(n), "x", "y", "A"], ";")).described()["format"] == (
        "CSV with semicolons"
    )
