"""A vector's defaults: everything that has their names statically, or says them on the wire, has those of the table."""

from __future__ import annotations

import dataclasses
from typing import Any, get_type_hints

import pytest
import torch

from server.api.generation.wire import SteeringEntry
from server.api.registry.objects import Vector
from server.api.registry.wire import CreateVectorRequest, PatchVectorRequest
from server.cli.parser import build_parser
from tests.shared_files import ROOT
from vectors.client.calls import FileFacts
from vectors.client.clients import RegisteredVector
from vectors.defaults import (
    DEFAULTS,
    ChangedDefaults,
    CreatedDefaults,
    Default,
    UploadedDefaults,
    VectorDefaults,
)
from vectors.formats import ImportOptions
from vectors.vector import SteeringVector

NAMES = {row.name for row in DEFAULTS}
CHANGEABLE = {row.name for row in DEFAULTS if row.is_changeable}
CREATABLE = {row.name for row in DEFAULTS if row.is_creatable}


@pytest.mark.parametrize(
    ("holder", "names"),
    [
        (set(get_type_hints(ChangedDefaults)), CHANGEABLE),
        (set(get_type_hints(CreatedDefaults)), CREATABLE),
        (set(get_type_hints(UploadedDefaults)), NAMES),
        (set(get_type_hints(FileFacts)) - {"layer", "layers", "row", "convention"}, NAMES),
        (set(PatchVectorRequest.model_fields), CHANGEABLE),
        (set(CreateVectorRequest.model_fields) - {"name", "directions", "reads", "biases"}, CREATABLE),
        (set(get_type_hints(Vector)) & NAMES, NAMES),
        ({field.name for field in dataclasses.fields(RegisteredVector)} & NAMES, NAMES),
        ({field.name for field in dataclasses.fields(SteeringVector)} - {"directions", "reads", "biases"}, NAMES),
    ],
    ids=["changed", "created", "uploaded", "file facts", "PATCH", "POST", "answer", "client", "vector"],
)
def test_the_same_names_everywhere(holder: set[str], names: set[str]) -> None:
    assert holder == names


def test_the_types_of_keywords_are_those_of_the_vector() -> None:
    held, keywords = get_type_hints(VectorDefaults), get_type_hints(UploadedDefaults)
    answered = get_type_hints(Vector)
    for name in ("site", "operation", "default_scale", "description"):
        assert held[name] == keywords[name] == answered[name]
    assert keywords["positions"] == answered["positions"]


@pytest.mark.parametrize("row", DEFAULTS, ids=lambda row: row.name)
def test_a_vector_says_what_the_table_has_as_default(row: Default) -> None:
    vector = SteeringVector({0: torch.ones(2)})
    assert getattr(vector, row.name) == row.default
    assert ImportOptions(overrides={row.name: row.default}).overrides == {row.name: row.default}


def test_a_request_has_the_fields_that_the_table_names() -> None:
    named = {row.in_request for row in DEFAULTS if row.in_request}
    assert named <= set(SteeringEntry.model_fields)
    assert set(SteeringEntry.model_fields) - named == {"vector", "directions", "layers", "preserve_norm", "when"}


def test_the_page_on_steering_names_every_field_and_choice() -> None:
    page = (ROOT / "docs" / "steering.md").read_text(encoding="utf-8")
    for row in DEFAULTS:
        if row.in_request:
            (line,) = (line for line in page.splitlines() if line.startswith(f"| `{row.in_request}` |"))
            assert all(f'`"{choice}"`' in line for choice in row.choices)


def test_every_flag_is_read() -> None:
    given: dict[str, tuple[str, Any]] = {
        "default_scale": ("-1.5", -1.5),
        "max_scale": ("2", 2.0),
        "operation": ("clamp", "clamp"),
        "positions": ('{"of": "prompt", "last": 4}', {"of": "prompt", "last": 4}),
        "parts": ("content,structured", ["content", "structured"]),
        "activation": ("relu", "relu"),
        "min": ("-0.5", -0.5),
        "max": ("2", 2.0),
        "threshold": ("0.3", 0.3),
        "description": ("calm", "calm"),
    }
    rows = {row.name: row for row in DEFAULTS if row.flag}
    assert set(given) == set(rows)
    words = [f"{rows[name].flag}={text}" for name, (text, _) in given.items()]
    arguments = build_parser().parse_args(["vectors", "put", "calm", "calm.gguf", *words])
    assert {name: getattr(arguments, name) for name in given} == {name: value for name, (_, value) in given.items()}
