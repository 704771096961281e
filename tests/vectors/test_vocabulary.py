"""The grammar of a list of layers: one limit and one message, wherever a list is given."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from server.api.generation.steering import spec_of_entry
from server.api.generation.wire import SteeringEntry
from server.cli.errors import CommandFailed
from server.cli.parser import build_parser
from server.cli.training.options import task_options
from server.errors import InvalidRequest
from vectors.errors import InvalidLayers, InvalidMethod
from vectors.training.method import Method
from vectors.vocabulary import MAX_LAYER, parse_layers


def typed(numbers: list[int]) -> object:
    words = ["sweep", "data.jsonl", "--layers", ",".join(map(str, numbers))]
    return task_options(build_parser().parse_args(words))


PLACES: dict[str, Callable[[list[int]], object]] = {
    "vocabulary": parse_layers,
    "vocabulary, text": lambda numbers: parse_layers(",".join(map(str, numbers))),
    "request": lambda numbers: spec_of_entry(SteeringEntry(vector="calm", layers=numbers), 0),
    "request, text": lambda numbers: spec_of_entry(SteeringEntry(vector="calm", layers=",".join(map(str, numbers))), 0),
    "method": lambda numbers: Method.from_json({"layers": numbers}),
    "flag": typed,
}


def refusal(place: Callable[[list[int]], object], numbers: list[int]) -> str:
    with pytest.raises((InvalidLayers, InvalidRequest, InvalidMethod, CommandFailed)) as refused:
        place(numbers)
    return str(refused.value)


@pytest.mark.parametrize("place", PLACES)
def test_every_list_of_layers_has_the_same_limit_and_message(place: str) -> None:
    give = PLACES[place]
    give([0, MAX_LAYER])
    assert refusal(give, [MAX_LAYER + 1]).endswith(f"expected layers from 0 to {MAX_LAYER}, got {MAX_LAYER + 1}")
    assert refusal(give, [3, 3]).endswith("expected each layer once, got a repeated one")


@pytest.mark.parametrize("place", PLACES)
def test_every_layer_that_there_can_be_may_be_named_at_once(place: str) -> None:
    PLACES[place](list(range(MAX_LAYER + 1)))


@pytest.mark.parametrize("layer", [1.0, "1", None])
def test_a_layer_is_a_whole_number(layer: object) -> None:
    with pytest.raises(InvalidLayers, match="expected whole numbers as layers, got"):
        parse_layers([layer])  # type: ignore[list-item]
