"""A vector's limit holds as the policy says, and a share of its safe range is a scale."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from server.config import DoseLimit
from server.steering.dose import DosePolicy, SafeShare
from server.steering.plan import PlanEntry
from server.steering.resolution import SteeringRefused, SteeringSpec, resolve_plan
from vectors.store import VectorStore
from vectors.vector import SteeringVector
from vectors.vocabulary import Place, Site

SAFE: dict[str, Any] = {
    "safe_scale": [-1.0, 2.0],
    "operation": "add",
    "positions": "response",
    "layers": [0, 2],
    "norms": {"0": 5.0, "2": 4.0},
    "fingerprint": "mine",
}
DIRECTIONS = {0: torch.tensor([3.0, 4.0]), 2: torch.tensor([0.0, 2.0])}
NORMS: dict[Place, float] = {("residual", 0): 10.0, ("residual", 1): 20.0, ("residual", 2): 0.5}


@dataclass(frozen=True)
class Model:
    """A small model."""

    num_layers: int = 3
    hidden_size: int = 2
    sites: tuple[Site, ...] = ("residual", "mlp")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VectorStore]:
    folder: Path = tmp_path_factory.mktemp("vectors")
    with VectorStore(folder) as store:
        store.put("plain", SteeringVector(DIRECTIONS))
        store.put("safe", SteeringVector(DIRECTIONS, calibration=SAFE))
        store.put("owned", SteeringVector(DIRECTIONS, calibration=SAFE, max_scale=0.5))
        store.put("other", SteeringVector(DIRECTIONS, calibration={**SAFE, "fingerprint": "theirs"}))
        yield store


def entry(store: VectorStore, spec: SteeringSpec, limit: DoseLimit = "warn") -> PlanEntry:
    """The only entry of the plan of `spec`."""
    (found,) = resolve_plan([spec], store, Model(), DosePolicy(limit, NORMS, "mine")).entries
    return found


@pytest.mark.parametrize(
    ("name", "asked", "held"),
    [
        ("safe", 2.0, 2.0),
        ("safe", 2.1, 2.0),
        ("safe", -1.5, -1.0),
        ("owned", 0.5, 0.5),
        ("owned", 3.0, 0.5),
        ("owned", -0.6, -0.5),
        ("plain", 100.0, 100.0),
        ("other", 100.0, 100.0),
    ],
)
def test_each_policy_does_what_it_says(store: VectorStore, name: str, asked: float, held: float) -> None:
    spec, is_above = SteeringSpec(name, scale=asked), asked != held
    warned, capped, off = (entry(store, spec, limit) for limit in ("warn", "cap", "off"))
    assert (warned.applied.scale, capped.applied.scale, off.applied.scale) == (asked, held, asked)
    assert [bool(one.dose.warning) for one in (warned, capped, off)] == [is_above, is_above, False]
    assert [one.dose.capped_from for one in (warned, capped, off)] == [None, asked if is_above else None, None]
    if not is_above:
        assert entry(store, spec, "refuse").applied.scale == asked
        return
    with pytest.raises(SteeringRefused, match=f"scale {asked:g} of vector '{name}' is outside") as refused:
        entry(store, spec, "refuse")
    assert (refused.value.field, refused.value.code) == ("scale", "scale_above_limit")


def test_a_range_measured_for_one_operation_is_no_limit_of_another(store: VectorStore) -> None:
    assert entry(store, SteeringSpec("safe", scale=9.0, operation="ablate"), "refuse").applied.scale == 9.0
    with pytest.raises(SteeringRefused):
        entry(store, SteeringSpec("safe", scale=9.0, layers=(0,), positions="all"), "refuse")


@pytest.mark.parametrize(("share", "scale"), [(0.5, 1.0), (1.0, 2.0), (-0.5, -0.5), (0.0, 0.0), (1.5, 3.0)])
def test_a_share_is_of_the_end_on_its_side(store: VectorStore, share: float, scale: float) -> None:
    found = entry(store, SteeringSpec("safe", scale=SafeShare(share)))
    assert found.applied.scale == scale
    assert bool(found.dose.warning) == (share > 1)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (SteeringSpec("plain"), "it was not calibrated"),
        (SteeringSpec("other"), "another model"),
        (SteeringSpec("safe", operation="ablate"), "calibrated for add at layers 0, 2 of positions response"),
        (SteeringSpec("safe", positions="all"), "calibrated for add"),
        (SteeringSpec("safe", layers=(0,)), "calibrated for add"),
    ],
)
def test_a_share_of_no_range_is_refused_with_the_reason(store: VectorStore, spec: SteeringSpec, reason: str) -> None:
    asked = SteeringSpec(
        spec.vector, scale=SafeShare(0.5), layers=spec.layers, positions=spec.positions, operation=spec.operation
    )
    with pytest.raises(SteeringRefused, match=reason) as refused:
        entry(store, asked, "off")
    assert (refused.value.field, refused.value.code) == ("scale", "no_safe_range")


def test_the_relative_dose_is_the_largest_over_the_layers(store: VectorStore) -> None:
    # by the typical norms: 5 / 10 and 2 / 0.5; by the calibration's, 5 / 5 and 2 / 4
    assert entry(store, SteeringSpec("plain", scale=-2.0)).dose.relative == pytest.approx(8.0)
    assert entry(store, SteeringSpec("safe", scale=-2.0)).dose.relative == pytest.approx(2.0)
    assert entry(store, SteeringSpec("other", scale=-2.0)).dose.relative == pytest.approx(8.0)
    assert entry(store, SteeringSpec("safe", scale=9.0), "cap").dose.relative == pytest.approx(2.0)
    assert entry(store, SteeringSpec("plain", operation="clamp", layers=(0,))).dose.relative == pytest.approx(0.5)
    assert entry(store, SteeringSpec("plain", operation="ablate")).dose.relative is None
    (unknown,) = resolve_plan([SteeringSpec("plain")], store, Model(), DosePolicy("warn", {}, "")).entries
    assert unknown.dose.relative is None
