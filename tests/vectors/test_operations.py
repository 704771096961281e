"""The table of operations: every row keeps what it says of itself, and together they mean what is written."""

from __future__ import annotations

import pytest
import torch

from tests.reference import Steer, steered
from vectors.applied import AppliedVector, change_at
from vectors.operations import RULES, Feature, Setting, Shift, combine, reading_of, restore_norm
from vectors.vocabulary import ACTIVATIONS, OPERATIONS, Activation, Operation

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
        change = rule.change(Feature(drawn(2)), Setting(scale, 0.5, 0.7))
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
            AppliedVector("mlp", (3,), scale, "all", operation, preserve, {3: direction}, min=-0.1, max=0.2)
            for operation, scale, direction, preserve in entries
        ]
        steers = [
            Steer(direction, 3, "mlp", scale, "all", operation, preserve, low=-0.1, high=0.2)
            for operation, scale, direction, preserve in entries
        ]
        expected = steered(h, steers, len(h), ["content"] * len(h))
        torch.testing.assert_close(change_at(applied, ("mlp", 3)).apply(h), expected, atol=1e-4, rtol=1e-5)


def test_a_tiny_direction_is_normed_exactly() -> None:
    direction = drawn(2) * 1e-30
    for operation in OPERATIONS:
        if not RULES[operation].is_shift:
            (slots,) = combine([RULES[operation].change(Feature(direction), Setting(1.0))], preserves_norm=False).slots
            assert float(slots.reading.unit.norm()) == pytest.approx(1.0, abs=1e-6)
            assert float(slots.write.norm()) == pytest.approx(1.0, abs=1e-6)


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


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("operation", [operation for operation in OPERATIONS if operation != "add"])
@pytest.mark.parametrize("read", ["its own direction", "another", "three others"])
def test_what_a_vector_reads_decides_what_it_writes(read: str, operation: Operation, activation: Activation) -> None:
    """Against a slow loop, of directions of any length; several read before any of them writes."""
    h, rank = drawn(1, 5), (3,) if read == "three others" else ()
    for length in (1e-3, 1.0, 30.0):
        write, own = drawn(2, *rank) * length, read != "its own direction"
        steer = Steer(
            write, 3, "mlp", 0.7, "all", operation, low=-0.2, high=0.4, activation=activation,
            read=drawn(3, *rank) if own else None, bias=0.3 if own else 0.0,
        )  # fmt: skip
        applied = AppliedVector(
            "mlp", (3,), 0.7, "all", operation, False, {3: write}, {3: steer.read} if steer.read is not None else {},
            {3: torch.full(rank or (1,), 0.3)} if own else {}, activation, -0.2, 0.4,
        )  # fmt: skip
        expected = steered(h, [steer], len(h), ["content"] * len(h))
        torch.testing.assert_close(change_at([applied], ("mlp", 3)).apply(h), expected, atol=1e-4, rtol=1e-4)


def test_a_clamped_vector_reads_the_scale() -> None:
    h = drawn(1, 5)
    for length in (1e-30, 1e-3, 1.0, 1e20):
        feature = Feature(drawn(2) * length)
        clamped = combine([RULES["clamp"].change(feature, Setting(0.7))], preserves_norm=False).apply(h)
        found = reading_of(feature).of(clamped)
        if length > 1e-20:  # below, h cannot hold so small a component
            torch.testing.assert_close(found, torch.full((5, 1), 0.7), rtol=1e-4, atol=1e-6 / min(length, 1.0))
        assert found.isfinite().all()


def test_an_interval_with_an_open_end() -> None:
    h, feature = drawn(1, 64), Feature(drawn(2))
    before = reading_of(feature).of(h)
    for setting, expected in (
        (Setting(1.0, high=0.1), before.clamp(max=0.1)),
        (Setting(1.0, low=-0.1), before.clamp(min=-0.1)),
        (Setting(0.5, low=-0.1, high=0.1), (before + before.clamp(-0.1, 0.1)) / 2),
        (Setting(1.0), before),
    ):
        capped = combine([RULES["cap"].change(feature, setting)], preserves_norm=False).apply(h)
        torch.testing.assert_close(reading_of(feature).of(capped), expected, atol=1e-5, rtol=1e-5)


def test_another_place_and_an_inactive_vector_do_nothing() -> None:
    applied = AppliedVector("mlp", (3,), 1.0, "all", "add", True, {3: drawn(2)})
    inactive = AppliedVector("mlp", (3,), 0.0, "all", "ablate", True, {3: drawn(2)})
    assert change_at([applied], ("mlp", 2)).is_nothing
    assert change_at([applied], ("residual", 3)).is_nothing
    assert change_at([inactive], ("mlp", 3)).is_nothing
    assert not change_at([applied], ("mlp", 3)).is_nothing
