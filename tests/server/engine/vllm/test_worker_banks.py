"""The workers' banks do to each token what `PlaceChange` says, whether what is idle is skipped or not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from server.engine.vllm.messages import Chunk
from server.engine.vllm.rows import RowTable, fingerprints_of, most_slots
from server.engine.vllm.steering import WorkerSteering
from server.steering.plan import SteeringPlan
from tests.reference import Steer
from tests.server.engine.driving import plan_of, random_direction
from vectors.applied import change_at

HIDDEN = 32
PLANS = [
    plan_of(Steer(random_direction(1), 0)),
    plan_of(Steer(random_direction(2), 1, scale=-1.5), Steer(random_direction(3), 0, "mlp")),
    plan_of(Steer(random_direction(4), 0, operation="ablate"), Steer(random_direction(1), 0)),
    plan_of(Steer(random_direction(5), 1, "mlp", operation="clamp", scale=2.0)),
    plan_of(Steer(random_direction(6), 0, preserve_norm=True)),
]


class _Block(nn.Module):
    """Gives `(x, x / 2)`, whose sum is its stream, or their sum; its mlp gives what it gets."""

    def __init__(self, is_deferred: bool) -> None:
        super().__init__()
        self.mlp = nn.Identity()
        self.is_deferred = is_deferred

    def forward(self, activations: Tensor) -> Any:
        hidden = self.mlp(activations)
        return (hidden, activations / 2) if self.is_deferred else hidden + activations / 2


def steering_of(blocks: list[_Block], *, is_compiled: bool) -> WorkerSteering:
    modules = {"residual": dict(enumerate(blocks)), "mlp": {number: block.mlp for number, block in enumerate(blocks)}}
    sites: Any = SimpleNamespace(modules=modules, hidden_size=HIDDEN, is_deferred=blocks[0].is_deferred)
    return WorkerSteering(
        sites,
        num_rows=8,
        num_slots=2,
        num_captures=4,
        max_tokens=16,
        device=torch.device("cpu"),
        is_compiled=is_compiled,
    )


def row_of(table: RowTable, plan: SteeringPlan) -> int:
    """The row of a token of the response."""
    zones = plan.zones(5)
    return table.acquire(zones)[zones.at(9)]


def stream(output: Any) -> Tensor:
    result: Tensor = output[0] + output[1] if isinstance(output, tuple) else output
    return result


@pytest.mark.parametrize("is_compiled", [False, True])
@pytest.mark.parametrize("is_deferred", [False, True])
def test_every_token_has_its_own_row_and_captures_are_of_what_was_steered(is_deferred: bool, is_compiled: bool) -> None:
    blocks = [_Block(is_deferred), _Block(is_deferred)]
    steering = steering_of(blocks, is_compiled=is_compiled)
    table = RowTable(8)
    rows = [0, *(row_of(table, plan) for plan in PLANS)]
    steering.write(table.take_unwritten())
    activations = torch.randn(len(rows), HIDDEN, generator=torch.Generator().manual_seed(0))
    steering.begin_step(["x"], {"x": len(rows)}, {"x": Chunk(rows=np.array(rows), captured=(1, 4))})
    outputs = [stream(block(activations)) for block in blocks]
    captured = steering.captured()["x"]
    for token, plan in enumerate([SteeringPlan(), *PLANS]):
        applied = [entry.applied for entry in plan.zones(5).at(9).entries]
        for layer, output in enumerate(outputs):
            after_mlp = change_at(applied, ("mlp", layer)).apply(activations[token])
            wanted = change_at(applied, ("residual", layer)).apply(after_mlp + activations[token] / 2)
            torch.testing.assert_close(output[token], wanted, atol=1e-5, rtol=1e-5)
    for layer, output in enumerate(outputs):
        torch.testing.assert_close(captured["residual", layer], output[[1, 4]])
    steering.end_step()
    torch.testing.assert_close(stream(blocks[0](activations)), 1.5 * activations)
    assert steering.captured() == {}


def test_a_row_that_is_written_again_keeps_nothing_of_what_it_did() -> None:
    blocks = [_Block(True), _Block(True)]
    steering = steering_of(blocks, is_compiled=True)
    table = RowTable(2)
    activations = torch.ones(1, HIDDEN)
    for plan in PLANS:
        assert table.has_room_for(plan.zones(5))
        row = row_of(table, plan)
        assert row == 1
        steering.write(table.take_unwritten())
        steering.begin_step(["x"], {"x": 1}, {"x": Chunk(rows=np.array([row]))})
        applied = [entry.applied for entry in plan.zones(5).at(9).entries]
        for layer, block in enumerate(blocks):
            after_mlp = change_at(applied, ("mlp", layer)).apply(activations)
            wanted = change_at(applied, ("residual", layer)).apply(after_mlp + activations / 2)
            torch.testing.assert_close(stream(block(activations)), wanted, atol=1e-5, rtol=1e-5)
        table.release(plan.zones(5))


def test_rows_are_shared_by_equal_steering_and_free_when_their_last_holder_ends() -> None:
    both = plan_of(Steer(random_direction(1), 0, positions="all")).zones(5)
    other = plan_of(Steer(random_direction(2), 0)).zones(5)
    num_of_both, num_of_other = (len(fingerprints_of(zones)) for zones in (both, other))
    most = num_of_both + num_of_other
    table = RowTable(most + 1)
    assert table.acquire(both) == table.acquire(both) == table.acquire(both)
    assert table.num_in_use == num_of_both
    table.acquire(other)
    assert not table.has_room_for(plan_of(Steer(random_direction(3), 0)).zones(5))
    assert len(table.take_unwritten()) == table.num_in_use == most
    for _ in range(3):
        assert table.num_in_use == most
        table.release(both)
    assert table.num_in_use == most - num_of_both
    assert table.has_room_for(both)
    table.acquire(both)
    assert len(table.take_unwritten()) == num_of_both
    assert most_slots(other) == 0
    assert most_slots(PLANS[2].zones(5)) == 1
