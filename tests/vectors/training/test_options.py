"""The table of options: schema, flags and reader agree with each other, and none of it needs torch."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import subprocess
import sys
from typing import Any

import jsonschema
import pytest

from server.cli.errors import CommandFailed
from server.cli.parser import build_parser
from server.cli.training.options import seed_of, task_options
from tests.shared_files import ROOT
from tests.vectors.training.test_method import FULL, MALFORMED
from vectors.data import ReadOptions
from vectors.errors import InvalidMethod
from vectors.training.options import (
    DATA_OPTIONS,
    JOB_OPTIONS,
    KINDS,
    METHOD_OPTIONS,
    OPTIONS,
    Kind,
    Option,
    options_schema,
    read_options,
)
from vectors.training.task import Task

COMMANDS = {
    "train": ["train", "data.jsonl", "--name", "x"],
    "probe": ["train", "data.jsonl", "--name", "x", "--kind", "probe"],
    "evaluate": ["evaluate", "calm", "data.jsonl"],
    "sweep": ["sweep", "data.jsonl"],
    "calibrate": ["calibrate", "calm"],
}
SAME_COMMAND = {"train": "probe", "probe": "train"}

TYPED: dict[str, tuple[list[str], Any]] = {
    "scale": (["--scale", "-2"], -2.0),
    "sizes": (["--sizes", "40,12"], [40, 12]),
    "calibrate": (["--calibrate"], True),
    "kl": (["--kl", "0.5"], 0.5),
    "max_prompts": (["--max-prompts", "12"], 12),
    "fit": (["--fit", "logistic,mean_difference"], ["logistic", "mean_difference"]),
    "variant": (["--variant", "pas_full,ipas_all"], ["pas_full", "ipas_all"]),
    "site": (["--site", "all"], "all"),
    "layers": (["--layers", "3,8-10"], [3, 8, 9, 10]),
    "scales": (["--scales=-1,2.5"], [-1.0, 2.5]),
    "split": (["--split", "0.5,0.3,0.2"], {"train": 0.5, "validation": 0.3, "test": 0.2}),
    "prompt": (["--prompt", "chat"], "chat"),
    "letters": (["--letters", "paper"], "paper"),
    "icl": (["--icl", "3"], 3),
    "seeds": (["--seeds", "5"], 5),
    "max_items": (["--max-items", "90"], 90),
    "paper_offset": (["--no-paper-offset"], False),
    "relative_scales": (["--relative-scales"], True),
    "max_loss": (["--max-loss", "0.02"], 0.02),
    "max_perplexity": (["--max-perplexity", "2"], 2.0),
    "search_retention": (["--search-retention"], True),
    "race": (["--race"], True),
    "baselines": (["--baselines", "random,prompt"], ["random", "prompt"]),
    "system_prompt": (["--system-prompt", "Be right."], "Be right."),
    "allow_no_gain": (["--allow-no-gain"], True),
    "map": (
        ["--map", "question=my stem, choices=opt_a+opt_b"],
        {"question": "my stem", "choices": ["opt_a", "opt_b"]},
    ),
    "max_skipped": (["--max-skipped", "0.5"], 0.5),
    "positive_class": (["--positive-class", "harmful"], "harmful"),
    "first_answer": (["--first-answer", "1"], 1),
    "turn": (["--turn", "user"], "user"),
}
"""By option: how it is typed, and what JSON that is."""

ONLY_THE_READER_SEES = (
    "split {'train': 0.6, 'validation': 0.2, 'test': 0.1}",  # a sum
    "layers [1.0]",  # to a schema 1.0 is an integer
    "icl 1.0",
)


def typed(kind: str, *words: str) -> dict[str, Any]:
    """The JSON of a task that a command line asks for."""
    return task_options(_parser().parse_args([*COMMANDS[kind], *words]))


@functools.cache
def _parser() -> argparse.ArgumentParser:
    return build_parser()


def by_name(name: str) -> Option:
    return next(option for option in OPTIONS if option.name == name)


def test_every_option_with_a_flag_is_tried() -> None:
    assert set(TYPED) == {option.name for option in OPTIONS} - {
        "task",
        "vector",
        *(option.name for option in JOB_OPTIONS),
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TYPED)
def test_a_flag_is_there_for_the_tasks_that_have_the_option(
    name: str, kind: Kind, capsys: pytest.CaptureFixture[str]
) -> None:
    words, value = TYPED[name]
    if kind in by_name(name).uses:
        given = typed(kind, *words)
        assert given[name] == value
        jsonschema.validate(given, options_schema())
        Task.from_json(given)
        return
    if SAME_COMMAND.get(kind) in by_name(name).uses:
        with pytest.raises(InvalidMethod, match=f"{name}: not an option of {kind}"):
            Task.from_json(typed(kind, *words))
    else:
        with pytest.raises(SystemExit):
            typed(kind, *words)
        assert "unrecognized arguments" in capsys.readouterr().err
    own = {"vector": "calm"} if kind in ("evaluate", "calibrate") else {}
    with pytest.raises(InvalidMethod, match=f"{name}: not an option of {kind}") as refused:
        Task.from_json({"task": kind, **own, name: value})
    assert refused.value.param == name


def test_nothing_typed_asks_for_nothing() -> None:
    assert typed("train") == {}
    assert typed("probe") == {"task": "probe"}
    assert typed("sweep") == {"task": "sweep"}
    assert typed("evaluate") == {"task": "evaluate", "vector": "calm"}
    assert typed("calibrate") == {"task": "calibrate", "vector": "calm"}
    assert seed_of(build_parser().parse_args(["sweep", "data.jsonl"])) == 0


def test_the_schema_takes_what_the_reader_takes() -> None:
    for given in ({}, None, FULL, dict.fromkeys(option.name for option in OPTIONS)):
        jsonschema.validate(given, options_schema())


@pytest.mark.parametrize(("option", "value"), [case for case in MALFORMED if "nan" not in str(case[1])], ids=str)
def test_the_schema_refuses_what_the_reader_refuses(option: str, value: object) -> None:
    is_valid = jsonschema.Draft202012Validator(options_schema()).is_valid({option: value})
    assert is_valid is (f"{option} {value}" in ONLY_THE_READER_SEES)


BAD_READING = [
    ("map", "question=stem"),
    ("map", ["question"]),
    ("map", {"frage": "stem"}),
    ("map", {"question": ""}),
    ("map", {"question": []}),
    ("map", {"choices": ["a"] * 33}),
    ("map", {"choices": [1]}),
    ("max_skipped", 1),
    ("max_skipped", -0.1),
    ("max_skipped", True),
    ("positive_class", 1),
    ("first_answer", 2),
    ("first_answer", "1"),
    ("turn", "system"),
]


@pytest.mark.parametrize(("option", "value"), BAD_READING, ids=str)
def test_how_to_read_is_checked_by_reader_and_schema(option: str, value: object) -> None:
    with pytest.raises(InvalidMethod, match=f"{option}: expected") as refused:
        Task.from_json({option: value})
    assert refused.value.param == option
    assert not jsonschema.Draft202012Validator(options_schema()).is_valid({option: value})


@pytest.mark.parametrize("text", ["question", "question=", "=stem", "question=a,question=b", ""])
def test_a_map_that_is_no_map_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(CommandFailed, match=r"--map: expected fields by role, as in question=stem|--map"):
        typed("train", "--map", text)


def test_reading_options_are_the_tables() -> None:
    assert {option.field for option in DATA_OPTIONS} == {field.name for field in dataclasses.fields(ReadOptions)}
    for option in DATA_OPTIONS:
        assert getattr(ReadOptions(), option.field) == option.default
    task = Task.from_json({"map": {"question": "q", "choices": ["a", "b"]}, "max_skipped": 0, "turn": "user"})
    assert task.reading == ReadOptions({"question": ("q",), "choices": ("a", "b")}, 0.0, turn="user")
    shown = {option.name: option.value.to_json(getattr(task.reading, option.field)) for option in DATA_OPTIONS}
    assert Task.from_json(shown) == task


def test_a_study_has_what_its_cells_share() -> None:
    shared = {option.name for option in METHOD_OPTIONS if "study" in option.uses}
    read_options({name: FULL[name] for name in shared}, METHOD_OPTIONS, "study")
    for name in set(FULL) - shared:
        with pytest.raises(InvalidMethod, match=f"{name}: not an option of study"):
            read_options({name: FULL[name]}, METHOD_OPTIONS, "study")


def test_the_table_needs_no_tensors() -> None:
    code = (
        "import sys, vectors.training.options, vectors.training.method, vectors.defaults, vectors.formats\n"
        "print([name for name in ('torch', 'numpy') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, encoding="utf-8", check=True)
    assert shown.stdout == "[]\n"
