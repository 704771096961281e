"""Each kernel equals PyTorch, and a row's result is the same bits whatever rows are beside it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from server.kernels.library import Kernels
from server.kernels.structures import WIDTH

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def packable(kernels: Kernels, dtype: torch.dtype) -> torch.dtype:
    if dtype not in kernels.dtypes:
        pytest.skip(f"this processor does not widen {dtype}")
    return dtype


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 1), (16, 3), (40, 64), (129, 33), (300, 17)])
def test_unpacking_gives_back_what_was_packed(kernels: Kernels, dtype: torch.dtype, outputs: int, inputs: int) -> None:
    weight = random(outputs, inputs, dtype=packable(kernels, dtype))
    packed = kernels.pack(weight.t().contiguous().t())
    assert packed.shape == (-(-outputs // WIDTH), inputs, WIDTH)
    assert torch.equal(kernels.unpack(packed, outputs), weight)
    assert not packed.transpose(1, 2).flatten(0, 1)[outputs:].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 1), (16, 8), (100, 64), (129, 33), (700, 96)])
def test_linear_is_the_product_in_float32(kernels: Kernels, dtype: torch.dtype, outputs: int, inputs: int) -> None:
    weight, bias = random(outputs, inputs, dtype=packable(kernels, dtype)), random(outputs)
    packed = kernels.pack(weight)
    for rows in (1, 2, 3, 5, 6, 7, 12, 13, 15, 16, 17, 95, 96, 97, 200):
        x = random(rows, inputs)
        wanted = x.double() @ weight.double().T
        torch.testing.assert_close(kernels.linear(x, packed, outputs).double(), wanted, atol=1e-4, rtol=1e-5)
        with_bias = kernels.linear(x, packed, outputs, bias)
        torch.testing.assert_close(with_bias.double(), wanted + bias.double(), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_is_the_same_bits_whatever_is_beside_it_and_however_wide_its_weights(
    kernels: Kernels, dtype: torch.dtype
) -> None:
    weight = random(333, 200, dtype=packable(kernels, dtype))
    x, packed, wide = random(230, 200), kernels.pack(weight), kernels.pack(weight.float())
    alone = torch.cat([kernels.linear(row[None], packed, 333) for row in x])
    for rows in (2, 4, 9, 16, 100, 230):
        assert torch.equal(kernels.linear(x[:rows].contiguous(), packed, 333), alone[:rows]), rows
        assert torch.equal(kernels.linear(x[:rows].contiguous(), wide, 333), alone[:rows]), rows


def test_the_number_of_threads_changes_no_bit(kernels: Kernels) -> None:
    before = torch.get_num_threads()
    x, packed = random(40, 200), kernels.pack(random(333, 200, dtype=torch.bfloat16))
    try:
        found = []
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            found.append(kernels.linear(x, packed, 333))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, found[0]) for one in found)


@pytest.mark.parametrize("width", [1, 7, 8, 16, 33, 576])
def test_rms_norm(kernels: Kernels, width: int) -> None:
    x, weight = 5 * random(2, 9, width), random(width)
    found = kernels.rms_norm(x, weight, 1e-6)
    wide = x.double()
    wanted = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6) * weight.double()
    torch.testing.assert_close(found.double(), wanted, atol=1e-6, rtol=1e-5)
    assert torch.equal(kernels.rms_norm(x[:, 3].contiguous(), weight, 1e-6), found[:, 3])


def test_what_is_not_finite_stays_in_its_row(kernels: Kernels) -> None:
    x, packed = random(20, 32), kernels.pack(random(40, 32))
    wanted = kernels.linear(x, packed, 40)
    x[3, 5], x[11, 0] = torch.nan, torch.inf
    found = kernels.linear(x, packed, 40)
    broken = [3, 11]
    assert not found[broken].isfinite().any()
    sound = [row for row in range(20) if row not in broken]
    assert torch.equal(found[sound], wanted[sound])
    assert not kernels.rms_norm(x, torch.ones(32), 1e-6)[3].isfinite().any()


def test_wrong_shapes_are_caught_before_memory_is_read(kernels: Kernels) -> None:
    packed = kernels.pack(random(16, 32))
    for x in (random(2, 31), random(2, 32).double(), random(32, 2).T):
        with pytest.raises(AssertionError):
            kernels.linear(x, packed, 16)
    with pytest.raises(AssertionError):
        kernels.rms_norm(random(2, 32), torch.ones(31), 1e-6)
