"""Windows, gates and probes on a plain model equal the slow reference, which the engine equals too."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import pytest
import torch

import vectors
from tests.families import build
from tests.reference import Gate, Steer, greedy, scores
from tests.server.engine.driving import positions_of, prompt_of, random_direction, vector_of
from vectors.errors import CannotSteer
from vectors.vocabulary import LATCHES, OPERATIONS, SITES

PROMPT = prompt_of(11)
NUM_TOKENS = 6
WINDOWS: list[Any] = [
    ("prompt", 0, 4),
    ("prompt", -3, None),
    ("prompt", 3, 9),
    ("response", 0, 2),
    ("response", 2, None),
    ("response", 1, 4),
    "all",
]
PROBE = Steer(random_direction(40), 0, "mlp")


@functools.cache
def tiny() -> Any:
    """One model for all: steering is of the object that it is given."""
    return build("llama")


@functools.cache
def expected(steers: tuple[Steer, ...], prompt: tuple[int, ...] = PROMPT) -> list[int]:
    return greedy(tiny(), prompt, NUM_TOKENS, steers)[0]


def generated(prompts: list[tuple[int, ...]], **options: Any) -> list[list[int]]:
    """Greedy tokens of prompts in one batch, padded on the left."""
    width = max(map(len, prompts))
    rows = [[0] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    found = tiny().generate(
        torch.tensor(rows), attention_mask=torch.tensor(mask), max_new_tokens=NUM_TOKENS, min_new_tokens=NUM_TOKENS,
        do_sample=False, pad_token_id=0, **options,
    )  # fmt: skip
    tokens: list[list[int]] = found[:, width:].tolist()
    return tokens


def steering(steer: Steer, **more: Any) -> Any:
    return vectors.steer(
        tiny(), vector_of(steer), scale=steer.scale, positions=positions_of(steer),  # type: ignore[arg-type]
        operation=steer.operation, preserve_norm=steer.preserve_norm, **more,  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.mark.parametrize("use_cache", [True, False])
def test_windows_count_from_the_first_token_that_is_not_padding(use_cache: bool) -> None:
    prompts = [PROMPT, prompt_of(7), prompt_of(2)]
    for number, window in enumerate(WINDOWS):
        steer = Steer(random_direction(number), number % 3, "residual", 1.3, window, ("add", "ablate")[number % 2])
        with steering(steer):
            found = generated(prompts, use_cache=use_cache)
        assert found == [expected((steer,), prompt) for prompt in prompts], window


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("latch", LATCHES)
def test_gates_let_through_what_their_probe_says(latch: Any, use_cache: bool) -> None:
    """Hard and soft, above and below, in windows, before the entry's place and at it."""
    read = sorted(scores(tiny(), (*PROMPT, *expected(())), PROBE))
    threshold = (read[8] + read[9]) / 2
    for number, (operation, sharpness) in enumerate(itertools.product(OPERATIONS, (None, 4.0))):
        is_above = number % 2 == 0
        site = "mlp" if number % 3 == 0 else SITES[number % 4]
        layer = 0 if number % 3 == 0 else 1
        gate = Gate(PROBE, threshold, is_above, sharpness, latch)
        steer = Steer(
            random_direction(number), layer, site, 1.2, WINDOWS[-1 - number % 3], operation, number % 4 == 1, 0.5, 0.8,
            gate=gate,
        )  # fmt: skip
        bound: dict[str, Any] = {"above" if is_above else "below": threshold}
        when = vectors.Gate(vector_of(PROBE), sharpness=sharpness, latch=latch, **bound)
        interval = {"min": 0.5, "max": 0.8} if operation == "cap" else {}
        with steering(steer, when=when, **interval):
            found = generated([PROMPT], use_cache=use_cache)
        assert found == [expected((steer,))], (operation, sharpness)


def test_gated_and_plain_vectors_meet_in_order() -> None:
    read = sorted(scores(tiny(), (*PROMPT, *expected(())), PROBE))
    threshold = (read[8] + read[9]) / 2
    gate = Gate(PROBE, threshold)
    first = Steer(random_direction(1), 1, scale=0.5, positions="all", operation="clamp")
    second = Steer(random_direction(2), 1, scale=1.1, positions="all", gate=gate)
    with steering(first), steering(second, when=vectors.Gate(vector_of(PROBE), above=threshold)):
        found = generated([PROMPT])
    assert found == [expected((first, second))]


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("use_cache", [True, False])
def test_scores_are_those_of_the_reference_and_nan_elsewhere(use_cache: bool, before: bool) -> None:
    steer = Steer(random_direction(1), 1, scale=0.6, positions="all")
    probe = vectors.SteeringVector({0: random_direction(1), 1: random_direction(2)})
    prompts = [PROMPT, prompt_of(7)]
    for window in WINDOWS:
        where: Any = positions_of(Steer(random_direction(1), 0, positions=window))
        with vectors.read(tiny(), probe, positions=where, before=before) as found, steering(steer):
            answers = generated(prompts, use_cache=use_cache)
        assert answers == [expected((steer,), prompt) for prompt in prompts]  # reading changes nothing
        assert set(found) == {0, 1}
        for layer, direction in probe.directions.items():
            for row, (prompt, said) in enumerate(zip(prompts, answers, strict=True)):
                whole = scores(
                    tiny(), (*prompt, *said[:-1]), Steer(direction, layer), (steer,), len(prompt), before=before
                )
                of, start, end = window if isinstance(window, tuple) else ("all", 0, None)
                places = range(len(whole)) if of == "all" else range(len(prompt))
                places = range(len(prompt) - 1, len(whole)) if of == "response" else places
                chosen = places[slice(start, end)]
                padding = len(PROMPT) - len(prompt)
                told = found[layer][row].tolist()
                assert len(told) == len(whole) + padding
                for place, score in enumerate(told):
                    if place - padding in chosen:
                        assert score == pytest.approx(whole[place - padding], abs=1e-4)
                    else:
                        assert score != score


def test_what_cannot_be_done_is_refused() -> None:
    model = tiny()
    probe = vector_of(PROBE)
    late = vector_of(Steer(random_direction(1), 2))
    refused: list[tuple[Any, str]] = [
        (lambda: vectors.Gate(probe), "either above or below"),
        (lambda: vectors.Gate(probe, above=0.1, below=0.2), "either above or below"),
        (lambda: vectors.Gate(probe, above=0.1, sharpness=0.0), "sharpness"),
        (lambda: vectors.Gate(probe, above=0.1, latch="ever"), "latch"),  # type: ignore[arg-type]
        (lambda: vectors.steer(model, probe, when=vectors.Gate(late, above=0.0)).__enter__(), "comes after"),
        (lambda: vectors.steer(model, probe, positions={"of": "response", "last": 2}).__enter__(), "not known"),
        (lambda: vectors.read(model, probe, positions={"of": "prompt"}).__enter__(), "expected one of first"),
    ]
    for attempt, words in refused:
        with pytest.raises(CannotSteer, match=words):
            attempt()
    with (
        vectors.steer(model, probe, when=vectors.Gate(probe, above=0.0, latch="rest")),
        pytest.raises(RuntimeError, match="beams"),
    ):
        generated([PROMPT], num_beams=2)
    assert generated([PROMPT]) == [expected(())]  # nothing stays on the model
