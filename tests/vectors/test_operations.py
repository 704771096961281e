"""The table of operations: every row keeps what it says of itself, and together they mean what is written."""

from __future__ import annotations

import pytest
import torch

from tests.reference import Steer, steered
from vectors.applied import AppliedVector, change_at
from vectors.operations import RULES, Shift, combine, restore_norm
from vectors.vocabulary import OPERATIONS, Operation

HIDDEN = 16
SCALES = (-1.5, 0.0, 0.7, 1.0)


def drawn(seed: int, *shape: int) -> torch.Tensor:
    """Random numbers."""
    return torch.randn(*shape, HIDDEN, generator=torch.Generator().manual_seed(seed))


def test_the_table_has_every_operation() -> None:
    assert tuple(RULES) == OPERATIONS


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_rule_keeps_what_it_says(operation: Operation) -> None:
    rule, h = RULES[operation], drawn(1, 5)
    for scale in SCALES:
        change = rule.change(drawn(2), scale)
        changed = combine([change], preserves_norm=False).apply(h)
        assert isinstance(change, Shift) is rule.is_shift
        assert torch.equal(changed, h) is (scale == 0.0 and rule.does_nothing_at_zero)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("preserve_norm", [False, True])
@pytest.mark.parametrize("first", OPERATIONS)
@pytest.mark.parametrize("second", OPERATIONS)
def test_two_operations_at_a_place_equal_the_reference(
    first: Operation, second: Operation, preserve_norm: bool, dtype: torch.dtype
) -> None:
    """Directions of any length: the squares of a small one vanish in float32."""
    h = drawn(1, 4)
    for length in (1.0, 1e-3, 100.0):
        entries = [
            (first, 0.7, drawn(2).mul(length).to(dtype), False),
            (second, -1.2, drawn(3).to(dtype), preserve_norm),
        ]
        applied = [
            AppliedVector("mlp", (3,), scale, "all", operation, preserve, {3: direction})
            for operation, scale, direction, preserve in entries
        ]
        steers = [
            Steer(direction, 3, "mlp", scale, "all", operation, preserve)
            for operation, scale, direction, preserve in entries
        ]
        expected = steered(h, steers, len(h), ["content"] * len(h))
        torch.testing.assert_close(change_at(applied, ("mlp", 3)).apply(h), expected, atol=1e-4, rtol=1e-5)


def test_a_tiny_direction_is_normed_exactly() -> None:
    direction = drawn(2) * 1e-30
    for operation in OPERATIONS:
        if not RULES[operation].is_shift:
            change = combine([RULES[operation].change(direction, 1.0)], preserves_norm=False)
            (component,) = change.components
            assert float(component.unit.norm()) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("length", [0.0, 1e-39, 1e-30])
def test_a_norm_is_restored_or_stays_zero(length: float) -> None:
    before, along = torch.zeros(HIDDEN), torch.zeros(HIDDEN)
    before[0], along[1] = 1000.0, length
    restored = restore_norm(along, before)
    assert restored.isfinite().all()
    assert torch.equal(restored.count_nonzero(), along.count_nonzero())
    assert float(restored.norm()) <= 1000.0


@pytest.mark.parametrize("length", [1e-30, 1e-19, 1e19, 1e30, 1e37])
@pytest.mark.parametrize("wanted", [1e-20, 1.0, 1e25])
def test_a_norm_is_restored_whatever_the_length(length: float, wanted: float) -> None:
    """The squares of all of these leave float32; the reference is in float64."""
    changed, before = drawn(1, 3) * length, drawn(2, 3) * wanted
    wide, norms = changed.double(), before.double().norm(dim=-1, keepdim=True)
    expected = wide * norms / wide.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(restore_norm(changed, before).double(), expected, rtol=1e-5, atol=0)


def test_another_place_and_an_inactive_vector_do_nothing() -> None:
    applied = AppliedVector("mlp", (3,), 1.0, "all", "add", True, {3: drawn(2)})
    inactive = AppliedVector("mlp", (3,), 0.0, "all", "ablate", True, {3: drawn(2)})
    assert change_at([applied], ("mlp", 2)).is_nothing
    assert change_at([applied], ("residual", 3)).is_nothing
    assert change_at([inactive], ("mlp", 3)).is_nothing
    assert not change_at([applied], ("mlp", 3)).is_nothing
