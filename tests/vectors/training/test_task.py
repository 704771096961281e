"""A task's JSON: which kind, which options belong to which kind, and by which name one is refused."""

from __future__ import annotations

from typing import Any

import pytest

from vectors.errors import InvalidMethod
from vectors.training.method import Method
from vectors.training.options import SIZES, TASK_OPTIONS
from vectors.training.task import Task

LIMITS: dict[str, Any] = {option.name: option.value for option in TASK_OPTIONS}


def test_nothing_given_is_a_training_by_default() -> None:
    assert Task.from_json({}) == Task.from_json({"task": None, "vector": None}) == Task()


def test_options_that_are_not_the_tasks_are_the_methods() -> None:
    task = Task.from_json({"task": "sweep", "sizes": [24, 12], "icl": 3, "letters": "paper"})
    assert task.kind == "sweep"
    assert task.sizes == (12, 24)
    assert task.method == Method(icl=3, letters="paper")


def test_what_is_given_is_left_as_it_was() -> None:
    given: dict[str, Any] = {"task": "evaluate", "vector": "calm", "max_items": 90}
    before = dict(given)
    Task.from_json(given)
    assert given == before


@pytest.mark.parametrize("vector", ["calm", "calm@0123456789ab"])
def test_a_vector_is_evaluated_at_its_own_scale_unless_told(vector: str) -> None:
    assert Task.from_json({"task": "evaluate", "vector": vector}).scale is None
    found = Task.from_json({"task": "evaluate", "vector": vector, "scale": -2})
    assert (found.vector, found.scale) == (vector, -2.0)
    assert Task.from_json({"task": "evaluate", "vector": vector, "scale": 0}).scale == 0.0


def test_a_sweep_has_sizes_of_its_own() -> None:
    assert Task.from_json({"task": "sweep"}).sizes == SIZES


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"task": "tune"}, "task"),
        ({"task": ["train"]}, "task"),
        ({"task": {"train": 1}}, "task"),
        ({"task": 3}, "task"),
        ({"task": "evaluate"}, "vector"),
        ({"task": "evaluate", "vector": 3}, "vector"),
        ({"task": "evaluate", "vector": ["calm"]}, "vector"),
        ({"task": "evaluate", "vector": None}, "vector"),
        ({"task": "train", "vector": "calm"}, "vector"),
        ({"task": "sweep", "vector": "calm"}, "vector"),
        ({"vector": "calm"}, "vector"),
        ({"scale": 1.0}, "scale"),
        ({"task": "sweep", "scale": 1.0}, "scale"),
        ({"sizes": [12]}, "sizes"),
        ({"task": "evaluate", "vector": "calm", "sizes": [12]}, "sizes"),
        ({"task": "evaluate", "vector": "calm", "scale": "1"}, "scale"),
        ({"task": "evaluate", "vector": "calm", "scale": True}, "scale"),
        ({"task": "evaluate", "vector": "calm", "scale": float("nan")}, "scale"),
        ({"task": "evaluate", "vector": "calm", "scale": float("-inf")}, "scale"),
        ({"task": "evaluate", "vector": "calm", "scale": 2 * LIMITS["scale"].largest}, "scale"),
        ({"task": "evaluate", "vector": "calm", "scale": [1.0]}, "scale"),
        ({"task": "sweep", "sizes": []}, "sizes"),
        ({"task": "sweep", "sizes": 12}, "sizes"),
        ({"task": "sweep", "sizes": "auto"}, "sizes"),
        ({"task": "sweep", "sizes": [1]}, "sizes"),
        ({"task": "sweep", "sizes": [12, 12]}, "sizes"),
        ({"task": "sweep", "sizes": [12.0]}, "sizes"),
        ({"task": "sweep", "sizes": [True, 4]}, "sizes"),
        ({"task": "sweep", "sizes": [2_000_000]}, "sizes"),
        ({"task": "sweep", "sizes": list(range(2, LIMITS["sizes"].most + 3))}, "sizes"),
        ({"task": "sweep", "sizes": [[12], [12]]}, "sizes"),
        ({"task": "sweep", "seeds": 0}, "seeds"),
        ({"task": "train", "tasks": 1}, "tasks"),
    ],
    ids=str,
)
def test_what_is_malformed_is_refused_by_its_name(given: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidMethod) as refused:
        Task.from_json(given)
    assert refused.value.param == param
    assert str(refused.value).startswith(f"{param}: ")


@pytest.mark.parametrize("value", ["", 0, False, [], {}])
def test_a_task_that_is_nothing_is_no_training(value: object) -> None:
    with pytest.raises(InvalidMethod) as refused:
        Task.from_json({"task": value})
    assert refused.value.param == "task"
