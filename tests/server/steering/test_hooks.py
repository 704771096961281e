"""The hooks change a module's own output in place, however it lies in memory."""

from __future__ import annotations

from types import MappingProxyType

import pytest
import torch
from torch import Tensor, nn

from server.steering.bank import SteeringBank
from server.steering.hooks import ActivationHooks, StepActivations
from tests.families import HIDDEN
from tests.reference import Steer, steered
from tests.server.engine.driving import plan_of, random_direction
from vectors.sites import ModelSites

LAYOUTS = {
    "[tokens, hidden]": torch.randn(6, HIDDEN),
    "[1, tokens, hidden]": torch.randn(1, 6, HIDDEN),
    "transposed": torch.randn(1, HIDDEN, 6).transpose(1, 2),
    "no view": torch.randn(3, HIDDEN, 2).permute(2, 0, 1),
}


class Given(nn.Module):
    """A module whose output is the tensor that it was made with."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self) -> Tensor:
        return self.output


@pytest.mark.parametrize("operation", ["add", "ablate"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_output_is_steered_and_captured_in_any_layout(layout: str, operation: str) -> None:
    before = LAYOUTS[layout].reshape(-1, HIDDEN).clone()
    module = Given(LAYOUTS[layout].clone(memory_format=torch.preserve_format))
    assert module.output.stride() == LAYOUTS[layout].stride()
    bank = SteeringBank(1, HIDDEN, torch.device("cpu"))
    steer = Steer(random_direction(1), 0, positions="all", operation=operation)
    zones = plan_of(steer).zones(6)
    row = bank.acquire(zones).by_scope[zones.at(0)]
    hooks = ActivationHooks(ModelSites(1, HIDDEN, module, MappingProxyType({"residual": (module,)})), bank)
    place = ("residual", 0)
    rows = torch.tensor([row, 0, row, row, 0, row])
    with_slots = rows.nonzero().squeeze(1) if bank.has_slots(row) else None
    readings = torch.tensor([[1.0, 0.0, -1.0]]).repeat(4, 1)  # always, never, unread
    activations = StepActivations(rows, with_slots, {place: torch.arange(6)}, readings=readings)  # type: ignore[dict-item]
    with torch.inference_mode(), hooks.step(activations):
        output = module()
    expected = before.clone()
    chosen = rows.nonzero().squeeze(1)
    expected[chosen] = steered(before[chosen], [steer], len(chosen), ["content"] * len(chosen))
    torch.testing.assert_close(output.reshape(-1, HIDDEN), expected)
    torch.testing.assert_close(activations.captured[place], expected)  # type: ignore[index]
