"""What is asked becomes a plan that is pinned, complete and fits, or is refused by the field at fault."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from server.steering.plan import UNSTEERED, PlanEntry, Scope, SteeringPlan
from server.steering.resolution import (
    GateSpec,
    ProbeSpec,
    SteeringRefused,
    SteeringSpec,
    plan_of_vectors,
    resolve_plan,
)
from vectors.errors import CannotSteer
from vectors.store import VectorStore
from vectors.vector import SteeringVector
from vectors.vocabulary import Site

HIDDEN = 4


@dataclass(frozen=True)
class Model:
    """The numbers of a small model without one of the sites."""

    num_layers: int = 3
    hidden_size: int = HIDDEN
    sites: tuple[Site, ...] = ("residual", "attention", "mlp")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[VectorStore]:
    with VectorStore(tmp_path) as store:
        store.put("one", ONE)
        store.put("two", SteeringVector({0: torch.ones(HIDDEN), 2: torch.ones(HIDDEN)}))
        store.put("three", SteeringVector({0: torch.ones(3, HIDDEN)}, {0: torch.ones(3, HIDDEN)}))
        store.put("wide", SteeringVector({0: torch.ones(HIDDEN + 1)}))
        store.put("elsewhere", SteeringVector({0: torch.ones(HIDDEN)}, site="post_attention_norm"))
        yield store


ONE = SteeringVector(
    {1: torch.ones(HIDDEN)},
    site="mlp",
    default_scale=-0.5,
    operation="clamp",
    positions="prompt",
    parts=("tool_calls",),
)


def told_by(entry: PlanEntry) -> dict[str, Any]:
    """All but the directions."""
    applied = {name: value for name, value in vars(entry.applied).items() if name != "directions"}
    return applied | {"vector": entry.vector, "revision": entry.revision, "parts": entry.parts}


def test_a_vectors_own_defaults_hold_where_nothing_is_asked(store: VectorStore) -> None:
    (entry,) = resolve_plan([SteeringSpec("one")], store, Model()).entries
    (same,) = plan_of_vectors([(ONE, ONE.default_scale)], Model()).entries
    assert told_by(entry) == {
        "vector": "one",
        "revision": ONE.revision,
        "site": "mlp",
        "scale": -0.5,
        "layers": (1,),
        "positions": "prompt",
        "parts": ("tool_calls",),
        "operation": "clamp",
        "preserve_norm": False,
        "reads": {},
        "biases": {},
        "activation": "identity",
        "min": None,
        "max": None,
    }
    assert told_by(same) == told_by(entry) | {"vector": ""}


def test_what_is_asked_goes_over_the_defaults_and_a_plan_stays_as_it_was(store: VectorStore) -> None:
    asked: dict[str, Any] = {"layers": (0, 2), "positions": "all", "operation": "add", "parts": ("content",)}
    plan = resolve_plan(
        [SteeringSpec("two"), SteeringSpec("one", scale=2.0, preserve_norm=True, **asked)], store, Model()
    )
    store.put("one", SteeringVector({0: torch.zeros(HIDDEN) + 9}))
    told = told_by(plan.entries[1])
    assert told["revision"] == ONE.revision
    assert {name: told[name] for name in ("scale", "preserve_norm", *asked)} == {
        "scale": 2.0,
        "preserve_norm": True,
    } | asked
    assert all(bool((direction == 1).all()) for direction in plan.entries[1].applied.directions.values())
    assert resolve_plan([], store, Model()) is UNSTEERED


@pytest.mark.parametrize(
    ("spec", "field", "code"),
    [
        (SteeringSpec("nobody"), "vector", None),
        (SteeringSpec("../x"), "vector", None),
        (SteeringSpec("one", "abcdef0"), "revision", None),
        (SteeringSpec("one", "x"), "revision", None),
        (SteeringSpec("wide"), None, "vector_does_not_fit"),
        (SteeringSpec("elsewhere"), None, "site_not_available"),
        (SteeringSpec("one", layers=(3,)), "layers", "invalid_layers"),
        (SteeringSpec("two", layers=(1,)), "layers", "invalid_layers"),
        (SteeringSpec("one", scale=1e39), "scale", "invalid_scale"),
        (SteeringSpec("one", scale=float("nan")), "scale", "invalid_scale"),
        (SteeringSpec("one", parts=()), "parts", "invalid_parts"),
        (SteeringSpec("one", min=0.5), "min", "invalid_interval"),
        (SteeringSpec("one", max=0.5), "max", "invalid_interval"),
        (SteeringSpec("one", operation="cap"), "min", "invalid_interval"),
        (SteeringSpec("one", operation="cap", min=1.0, max=0.5), "min", "invalid_interval"),
        (SteeringSpec("one", operation="cap", min=float("nan")), "min", "invalid_interval"),
        (SteeringSpec("one", operation="cap", max=1e39), "max", "invalid_interval"),
        (SteeringSpec("three", operation="add"), "operation", "invalid_operation"),
    ],
)
def test_what_cannot_be_done_is_refused_by_entry_and_field(
    store: VectorStore, spec: SteeringSpec, field: str | None, code: str | None
) -> None:
    with pytest.raises(SteeringRefused) as caught:
        resolve_plan([SteeringSpec("one"), spec], store, Model())
    assert (caught.value.index, caught.value.field, caught.value.code) == (1, field, code)
    assert str(caught.value) == str(caught.value.reason) != ""


def test_the_interval_of_a_request_replaces_the_vectors_own(store: VectorStore) -> None:
    store.put("capped", SteeringVector({0: torch.ones(HIDDEN)}, operation="cap", min=-1.0, max=1.0))
    for low, high, expected in ((None, None, (-1.0, 1.0)), (None, 0.5, (None, 0.5)), (0.0, 0.0, (0.0, 0.0))):
        (entry,) = resolve_plan([SteeringSpec("capped", min=low, max=high)], store, Model()).entries
        assert (entry.applied.min, entry.applied.max) == expected
    (entry,) = resolve_plan([SteeringSpec("capped", operation="ablate")], store, Model()).entries
    assert (entry.applied.min, entry.applied.max) == (None, None)


def response(plan: SteeringPlan) -> Scope:
    """What is done to the second token of the response."""
    return plan.zones(5).at(5)


def test_whatever_changes_activations_changes_the_fingerprint(store: VectorStore) -> None:
    """The key of cached pages."""
    asked: list[dict[str, Any]] = [{}, {"max": 1.0}, {"max": 2.0}, {"min": 1.0}, {"scale": 0.5, "min": 1.0}]
    plans = [
        resolve_plan([SteeringSpec("two", operation="cap" if one else "ablate", **one)], store, Model())
        for one in asked
    ]
    assert len({response(plan).fingerprint for plan in plans}) == len(asked)


def test_a_gate_and_its_numbers_are_part_of_the_steering_and_probes_are_not(store: VectorStore) -> None:
    """The key of cached pages, and that of the bank's rows."""
    gates = [
        None, GateSpec("one", 0.0), GateSpec("one", 0.1), GateSpec("one", 0.0, is_above=False),
        GateSpec("one", 0.0, sharpness=2.0), GateSpec("one", 0.0, latch="rest"), GateSpec("one", 0.0, layer=0),
    ]  # fmt: skip
    plans = [resolve_plan([SteeringSpec("two", layers=(2,), gate=gate)], store, Model()) for gate in gates]
    assert len({response(plan).fingerprint for plan in plans}) == len(gates)
    probes = [ProbeSpec("one"), ProbeSpec("two", layers=(0,), name="x")]
    read = resolve_plan([SteeringSpec("two", layers=(2,), gate=gates[1])], store, Model(), probes=probes)
    assert response(read).fingerprint == response(plans[1]).fingerprint
    assert response(read).row_fingerprint != response(plans[1]).row_fingerprint
    assert read.zones(5).at(0).fingerprint == read.zones(5).at(0).row_fingerprint == b""
    only = resolve_plan([], store, Model(), probes=probes)
    assert (response(only).fingerprint, only.is_steered) == (b"", False)
    assert [probe.threshold for probe in only.probes] == [0.0, 0.0]


@pytest.mark.parametrize(
    ("gate", "code", "words"),
    [
        (GateSpec("nobody", 0.0), None, "nobody"),
        (GateSpec("two", 0.0), "invalid_gate", "several layers"),
        (GateSpec("one", 0.0, layer=2), "invalid_gate", "mlp of layer 2, which comes after residual of layer 0"),
        (GateSpec("wide", 0.0), "vector_does_not_fit", "hidden size"),
    ],
)
def test_a_gate_that_cannot_be_judged_in_time_is_refused(
    store: VectorStore, gate: GateSpec, code: str | None, words: str
) -> None:
    with pytest.raises(SteeringRefused, match=words) as caught:
        resolve_plan([SteeringSpec("two", gate=gate)], store, Model())
    assert (caught.value.index, caught.value.field, caught.value.code) == (0, "when", code)


def test_a_vector_of_no_registry_is_checked_too() -> None:
    with pytest.raises(CannotSteer, match="the vector has hidden size 5, but the model has 4"):
        plan_of_vectors([(SteeringVector({0: torch.ones(HIDDEN + 1)}), 1.0)], Model())
