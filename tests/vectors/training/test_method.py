"""A method's options: what they mean, what is refused and by which name, and which layers and scales are tried."""

from __future__ import annotations

import json
from typing import Any

import pytest

from vectors.errors import InvalidMethod
from vectors.shares import Split
from vectors.training.method import MAX_AUTO_LAYERS, Method
from vectors.training.options import METHOD_OPTIONS, VARIANTS
from vectors.vocabulary import MAX_LAYER, SITES, Site

LIMITS: dict[str, Any] = {option.name: option.value for option in METHOD_OPTIONS}
MAX_SCALES = LIMITS["scales"].most

FULL: dict[str, Any] = {
    "variant": ["ipas_all", "mean_difference"],
    "site": ["mlp"],
    "layers": [1, 4, 7],
    "scales": [-1.0, 0.5, 2.0],
    "split": {"train": 0.5, "validation": 0.25, "test": 0.25},
    "prompt": "chat",
    "letters": "paper",
    "icl": 3,
    "seeds": 5,
    "max_items": 100,
    "paper_offset": False,
    "relative_scales": True,
    "max_loss": 0.02,
    "max_perplexity": 2.0,
    "search_retention": True,
    "race": True,
    "baselines": ["random", "prompt"],
    "system_prompt": "Answer truthfully.",
    "adaptive": "gate",
    "allow_no_gain": True,
}


@pytest.mark.parametrize("given", [{}, FULL, {"variant": "all", "site": "all"}, {"letters": "paper"}])
def test_what_a_method_says_makes_the_same_method(given: dict[str, Any]) -> None:
    method = Method.from_json(given)
    said = json.loads(json.dumps(method.to_json()))
    assert said | given == said
    again = Method.from_json(said)
    assert again.to_json() == said
    assert again.layers_for(32) == method.layers_for(32)
    assert [again.scale_grid(site) for site in SITES] == [method.scale_grid(site) for site in SITES]


def test_every_option_is_taken_and_said() -> None:
    assert Method.from_json(FULL).to_json() == FULL
    assert set(Method.from_json({}).to_json()) == set(FULL)


def test_nothing_given_is_the_default() -> None:
    assert Method.from_json({}) == Method() == Method.from_json(dict.fromkeys(FULL))
    assert Method().variants == ("ipas_wrong_only",)
    assert Method().split == Split(0.6, 0.2, 0.2)


def test_names_are_in_the_order_of_the_table_however_they_are_given() -> None:
    assert Method.from_json({"variant": list(reversed(VARIANTS))}).variants == VARIANTS
    assert Method.from_json({"site": list(reversed(SITES))}).sites == SITES
    assert Method.from_json({"variant": "pas_full"}).variants == ("pas_full",)
    assert Method.from_json({"layers": [7, 1, 4]}).layers == (1, 4, 7)


def test_scales_keep_the_order_given() -> None:
    assert Method.from_json({"scales": [4, -2, 0.5]}).scale_grid("residual") == (4.0, -2.0, 0.5)


@pytest.mark.parametrize(
    ("given", "reads"),
    [
        ({}, False),
        ({"letters": "paper"}, True),
        ({"letters": "paper", "paper_offset": False}, False),
        ({"paper_offset": True}, True),
    ],
)
def test_the_offset_follows_the_letters_unless_given(given: dict[str, Any], reads: bool) -> None:
    assert Method.from_json(given).reads_at_input is reads
    assert Method.from_json(given).to_json()["paper_offset"] is reads


NAN, INFINITY = float("nan"), float("inf")

MALFORMED: list[tuple[str, object]] = [
    ("variant", "pas"),
    ("variant", []),
    ("variant", ["pas_full", "pas_full"]),
    ("variant", ["pas_full", 3]),
    ("variant", ["pas_full", ["all"]]),
    ("variant", {"pas_full": True}),
    ("variant", 1),
    ("site", "resid"),
    ("site", []),
    ("site", ["mlp", "mlp"]),
    ("layers", "all"),
    ("layers", []),
    ("layers", [-1]),
    ("layers", [1, 1]),
    ("layers", [MAX_LAYER + 1]),
    ("layers", [1.0]),
    ("layers", [True]),
    ("layers", 3),
    ("layers", list(range(MAX_LAYER + 2))),
    ("layers", {"1": 2}),
    ("scales", "paper"),
    ("scales", []),
    ("scales", [0]),
    ("scales", [0.0]),
    ("scales", [1, 1.0]),
    ("scales", ["1"]),
    ("scales", [True]),
    ("scales", [None]),
    ("scales", [NAN]),
    ("scales", [-INFINITY]),
    ("scales", [1e7]),
    ("scales", [10**400]),
    ("scales", [1e-7]),
    ("scales", [float(number) for number in range(1, MAX_SCALES + 2)]),
    ("scales", 2.0),
    ("split", [0.6, 0.2, 0.2]),
    ("split", {}),
    ("split", {"train": 0.8, "validation": 0.2}),
    ("split", {"train": 0.6, "validation": 0.2, "test": 0.1}),
    ("split", {"train": 0.6, "validation": 0.2, "test": 0.2, "rest": 0.0}),
    ("split", {"train": 0.6, "validation": 0.2, "tset": 0.2}),
    ("split", {"train": 1.0, "validation": 0.0, "test": 0.0}),
    ("split", {"train": 1.2, "validation": -0.1, "test": -0.1}),
    ("split", {"train": "0.6", "validation": 0.2, "test": 0.2}),
    ("split", {"train": NAN, "validation": 0.2, "test": 0.2}),
    ("split", {"train": True, "validation": 0.2, "test": 0.2}),
    ("prompt", "Chat"),
    ("prompt", ["raw"]),
    ("prompt", 0),
    ("letters", "shuffled"),
    ("letters", {"paper": 1}),
    ("icl", -1),
    ("icl", LIMITS["icl"].largest + 1),
    ("icl", 1.0),
    ("icl", True),
    ("icl", "3"),
    ("seeds", 0),
    ("seeds", LIMITS["seeds"].largest + 1),
    ("seeds", [1, 2]),
    ("max_items", 7),
    ("max_items", LIMITS["max_items"].largest + 1),
    ("max_items", 100.5),
    ("max_loss", -0.01),
    ("max_loss", 1.5),
    ("max_loss", NAN),
    ("max_loss", True),
    ("max_perplexity", 0.5),
    ("max_perplexity", "2"),
    ("search_retention", 1),
    ("race", "yes"),
    ("paper_offset", 1),
    ("paper_offset", "yes"),
    ("relative_scales", 0),
    ("baselines", "none"),
    ("baselines", []),
    ("baselines", ["pca", "pca"]),
    ("system_prompt", 3),
    ("adaptive", "clamp"),
    ("adaptive", True),
    ("allow_no_gain", "false"),
    ("lambda", 1),
    ("variants", ["pas_full"]),
    ("", 1),
]


@pytest.mark.parametrize(("option", "value"), MALFORMED, ids=str)
def test_what_is_malformed_is_refused_by_its_name(option: str, value: object) -> None:
    with pytest.raises(InvalidMethod) as refused:
        Method.from_json({"seeds": 2, option: value})
    assert refused.value.param == option
    assert str(refused.value).startswith(f"{option}: ")
    assert len(str(refused.value)) < 400


def test_every_option_has_a_malformed_value_in_the_table() -> None:
    assert set(FULL) < {option for option, _ in MALFORMED}


def test_an_unknown_option_says_which_there_are() -> None:
    with pytest.raises(InvalidMethod, match="lamda: unknown option, expected one of variant, site, layers, scales"):
        Method.from_json({"lamda": 1})


@pytest.mark.parametrize("sites", [["residual"], ["mlp"], "all"])
@pytest.mark.parametrize("letters", ["balanced", "paper"])
@pytest.mark.parametrize("num_layers", [2, 3, 6, 11, 12, 13, 14, 22, 28, 32, 40, 80, 126])
def test_layers_chosen_for_a_model_are_some_that_it_has(num_layers: int, letters: str, sites: object) -> None:
    method = Method.from_json({"letters": letters, "site": sites})
    layers = method.layers_for(num_layers)
    assert layers
    assert list(layers) == sorted(set(layers), reverse=method.is_paper)
    assert 0 <= min(layers) <= max(layers) < num_layers
    assert len(layers) <= MAX_AUTO_LAYERS
    if method.reads_at_input and "residual" in method.sites:
        assert min(layers) >= 1


@pytest.mark.parametrize("num_layers", [1, 2, MAX_AUTO_LAYERS])
def test_a_small_model_is_tried_at_every_layer(num_layers: int) -> None:
    assert Method().layers_for(num_layers) == tuple(range(num_layers))


def test_the_paper_has_its_own_layers_at_its_own_depth() -> None:
    """From the last one down, as the authors try them; also those that are given."""
    assert Method(letters="paper").layers_for(32) == (25, 22, 19, 17, 16, 15, 14, 13, 11, 8)
    assert Method.from_json({"letters": "paper", "layers": [3, 9, 5]}).layers_for(32) == (9, 5, 3)
    assert Method.from_json({"layers": [3, 9, 5]}).layers_for(32) == (3, 5, 9)


def test_with_the_offset_a_model_of_one_block_has_nothing_to_try() -> None:
    for method in (Method(letters="paper"), Method(paper_offset=True)):
        with pytest.raises(InvalidMethod, match="block") as refused:
            method.layers_for(1)
        assert refused.value.param == "layers"


@pytest.mark.parametrize("num_layers", [1, 5])
def test_a_layer_that_the_model_lacks_is_named(num_layers: int) -> None:
    method = Method(layers=(0, num_layers))
    message = f"layers: {num_layers} is outside the model, which has blocks 0 to {num_layers - 1}"
    with pytest.raises(InvalidMethod, match=message) as refused:
        method.layers_for(num_layers)
    assert refused.value.param == "layers"
    assert method.layers_for(num_layers + 1) == (0, num_layers)


def test_block_0_has_no_input_to_read_at() -> None:
    with pytest.raises(InvalidMethod, match="block 0, which has no block before it") as refused:
        Method(layers=(0, 3), paper_offset=True).layers_for(8)
    assert refused.value.param == "layers"
    assert Method(layers=(0, 3), paper_offset=True, sites=("mlp",)).layers_for(8) == (0, 3)


@pytest.mark.parametrize("letters", ["balanced", "paper"])
@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("site", SITES)
def test_scales_chosen_are_positive_ascending_and_different(site: Site, relative: bool, letters: str) -> None:
    grid = Method.from_json({"relative_scales": relative, "letters": letters}).scale_grid(site)
    assert grid[0] > 0
    assert list(grid) == sorted(set(grid))
    assert len(grid) <= MAX_SCALES
    if relative:
        assert grid[-1] <= 2  # beyond that the activation is mostly what was added


def test_the_paper_has_its_own_scales() -> None:
    """Fourteen for the residual stream, six for other sites and wherever exemplars are shown."""
    many, few = (0.25, 0.5, 0.75, 1, 4, 7, 10, 13, 16, 19, 22, 25, 28, 32), (1, 2, 4, 8, 16, 32)
    paper, after_exemplars = Method(letters="paper"), Method(letters="paper", icl=10)
    for site in SITES:
        assert paper.scale_grid(site) == (many if site == "residual" else few)
        assert after_exemplars.scale_grid(site) == few
        assert Method(letters="paper", scales=(3.0,)).scale_grid(site) == (3.0,)


def test_the_grid_has_as_many_cells_as_are_counted() -> None:
    method = Method.from_json({"letters": "paper", "site": ["residual", "mlp"], "variant": "all"})
    assert method.num_cells(32) == 4 * 10 * (14 + 6)
    assert Method().num_cells(6) == 6 * len(Method().scale_grid("residual"))
