"""The table of formats: each has a codec, is told by its content, and is written where the vocabulary says so."""

from __future__ import annotations

import importlib
import pkgutil

import pytest
import torch

import vectors.formats
from vectors.formats import FORMATS, Format, decode, encode
from vectors.vector import SteeringVector
from vectors.vocabulary import FILE_FORMATS, FileFormat

VECTOR = SteeringVector({1: torch.ones(4), 2: torch.full((4,), 2.0)})


def test_what_is_written_is_in_the_vocabulary() -> None:
    assert {format.name for format in FORMATS if format.codec.encode is not None} == set(FILE_FORMATS)


def test_every_module_with_a_codec_is_in_the_table() -> None:
    modules = [f"vectors.formats.{module.name}" for module in pkgutil.iter_modules(vectors.formats.__path__)]
    with_codec = {name for name in modules if hasattr(importlib.import_module(name), "CODEC")}
    assert with_codec == {format.module for format in FORMATS}


@pytest.mark.parametrize("name", FILE_FORMATS)
def test_what_is_written_is_told_by_its_content_and_read_again(name: FileFormat) -> None:
    data = encode(VECTOR, name)
    assert next(format.name for format in FORMATS if format.codec.recognises(data)) == name
    found = decode(data, num_layers=3, hidden_size=4)
    assert found.layers == VECTOR.layers
    assert all(torch.equal(found.directions[layer], VECTOR.directions[layer]) for layer in VECTOR.layers)


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_every_format_is_documented(format: Format) -> None:
    assert format.layouts
    assert format.title in vectors.formats.format_titles()
