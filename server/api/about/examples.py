"""The examples of the OpenAPI document: recorded exchanges with a server of the embedded model.

They are in `examples.json`, in an order in which they can be replayed; the tests replay them.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("examples.json")


@dataclass(frozen=True, slots=True)
class Example:
    """One exchange. `name` distinguishes it from others of the same operation.

    `body` is JSON, or the parts of a form, or None; `answer` is JSON, or text, or None for bytes.
    """

    operation: str
    name: str
    path: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    media_type: str | None = None
    body: Any = None
    status: int = 200
    answer_media_type: str = "application/json"
    answer: Any = None


@functools.cache
def all_examples() -> tuple[Example, ...]:
    """All examples, in order."""
    return tuple(Example(**entry) for entry in json.loads(FILE.read_text(encoding="utf-8")))


def examples_of(operation: str) -> list[Example]:
    """The examples of an operation, by its id."""
    return [example for example in all_examples() if example.operation == operation]
