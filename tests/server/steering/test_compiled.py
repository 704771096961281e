"""The compiled kernel steers and reads as the pure PyTorch path does, for every mix of rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from server.kernels.library import load_kernels
from server.steering.bank import SteeringBank
from server.steering.hooks import StepActivations, change_and_capture
from server.steering.plan import PlanEntry, PlanGate, PlanProbe, SteeringPlan
from server.steering.readings import LATCHED, NUM_FIXED_COLUMNS, UNREAD
from server.steering.slots import ALWAYS, NEVER
from vectors.applied import resolve_vector
from vectors.operations import Feature
from vectors.vector import SteeringVector
from vectors.vocabulary import ACTIVATIONS, OPERATIONS

HIDDEN, PLACE = 37, ("residual", 1)
pytestmark = pytest.mark.skipif(load_kernels() is None, reason="no compiler")


class Shape:
    """What vectors are resolved against."""

    num_layers, hidden_size, sites = 2, HIDDEN, ("residual",)


def plan_of(chance: np.random.Generator) -> SteeringPlan:
    """Up to three entries of any kind, with or without gates, and up to two probes."""
    entries = []
    for _ in range(int(chance.integers(0, 4))):
        operation = OPERATIONS[chance.integers(len(OPERATIONS))]
        rank = 1 if operation == "add" else int(chance.integers(1, 4))
        shape = (HIDDEN,) if rank == 1 else (rank, HIDDEN)
        reads, biases = {}, {}
        if rank > 1 or chance.random() < 0.5:
            reads = {1: _drawn(chance, *shape)}
            biases = {1: _drawn(chance, rank)}
        vector = SteeringVector(
            {1: _drawn(chance, *shape)},
            reads=reads,
            biases=biases,
            operation=operation,
            activation=ACTIVATIONS[chance.integers(len(ACTIVATIONS))],
            positions="all",
            min=-0.2 if operation == "cap" else None,
            max=0.1 if operation == "cap" and chance.random() < 0.5 else None,
        )
        applied = resolve_vector(vector, Shape(), scale=0.7, preserve_norm=bool(chance.random() < 0.4))
        gate = None
        if chance.random() < 0.5:
            feature = Feature(_drawn(chance, HIDDEN), activation=ACTIVATIONS[chance.integers(len(ACTIVATIONS))])
            gate = PlanGate(
                "",
                vector.revision,
                PLACE,  # type: ignore[arg-type]
                feature,
                0.1,
                bool(chance.random() < 0.5),
                3.0 if chance.random() < 0.5 else None,
                "rest" if chance.random() < 0.5 else "token",
                is_before=True,
            )
        entries.append(PlanEntry("", vector.revision, applied, vector.parts, gate))
    probes = [
        PlanProbe(str(n), "", "0" * 64, PLACE, Feature(_drawn(chance, HIDDEN)), "all", n == 0, 0.0)  # type: ignore[arg-type]
        for n in range(int(chance.integers(0, 3)))
    ]
    return SteeringPlan(entries, probes)


def _drawn(chance: np.random.Generator, *shape: int) -> Tensor:
    return torch.from_numpy(chance.standard_normal(shape)).float()


def acquired(bank: SteeringBank, plan: SteeringPlan) -> int:
    """The row of the plan's response."""
    rows = bank.acquire(plan.zones(1)).of_tokens(1, 2, None)
    return int(rows[0])


def steered(bank: SteeringBank, given: Tensor, step: StepActivations) -> Tensor:
    """`given` after the steering; the step's readings are filled."""
    activation = given.clone()
    change_and_capture(PLACE, bank, step, activation)  # type: ignore[arg-type]
    return activation


@pytest.mark.parametrize("seed", range(40))
def test_the_kernel_steers_and_reads_as_torch_does(seed: int) -> None:
    chance = np.random.default_rng(seed)
    plans = [plan_of(chance) for _ in range(int(chance.integers(1, 9)))]
    bank = SteeringBank(2, HIDDEN, torch.device("cpu"))
    numbers = [0, *(acquired(bank, plan) for plan in plans)]
    rows = torch.tensor(chance.permutation(numbers * 2))
    slot_tokens = torch.tensor([n for n, row in enumerate(rows.tolist()) if bank.has_slots(row)], dtype=torch.int64)
    given = _drawn(chance, len(rows), HIDDEN)
    given[0] *= 1e25  # whose squares overflow
    readings = torch.full((len(slot_tokens) + 2, bank.num_columns), UNREAD)
    readings[:, ALWAYS], readings[:, NEVER] = 1.0, 0.0
    readings[::3, NUM_FIXED_COLUMNS:] = LATCHED
    order = torch.tensor(chance.permutation(len(readings))[: len(slot_tokens)])

    def step() -> StepActivations:
        return StepActivations(
            rows, slot_tokens if len(slot_tokens) else None, readings=readings.clone(), reading_rows=order
        )

    by_kernel, by_torch = step(), step()
    compiled = steered(bank, given, by_kernel)
    plain = steered(bank, given.double(), by_torch)  # which the kernel does not take
    size = plain.abs().amax(dim=1, keepdim=True)
    assert float(((compiled - plain).abs() / size).max()) < 1e-4
    if len(slot_tokens):
        assert by_kernel.readings is not None
        assert by_torch.readings is not None
        used = [0, 1, *range(NUM_FIXED_COLUMNS, bank.num_columns)]  # the third column belongs to nobody
        assert torch.allclose(by_kernel.readings[:, used], by_torch.readings[:, used], rtol=1e-4, atol=1e-4)
        untouched = sorted(set(range(len(readings))) - set(order.tolist()))
        assert torch.equal(by_kernel.readings[untouched], readings[untouched])


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_what_is_not_finite_stays_so(bad: float) -> None:
    vector = SteeringVector({1: torch.ones(HIDDEN)}, operation="ablate", positions="all")
    applied = resolve_vector(vector, Shape(), preserve_norm=True)
    bank = SteeringBank(2, HIDDEN, torch.device("cpu"))
    row = acquired(bank, SteeringPlan([PlanEntry("", vector.revision, applied, vector.parts)]))
    given = torch.ones(2, HIDDEN)
    given[0, 3] = bad
    readings = torch.ones(2, bank.num_columns)
    step = StepActivations(torch.tensor([row, row]), torch.arange(2), readings=readings)
    found = steered(bank, given, step)
    assert not torch.isfinite(found[0]).all()
    assert torch.isfinite(found[1]).all()
