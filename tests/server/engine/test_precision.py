"""What `auto` computes a checkpoint of 16 bits in on a CPU, and with what; always with the stored numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from server.demo import MODEL_DIR
from server.engine.attention.compiled import CompiledAttention
from server.engine.attention.stretches import StretchAttention
from server.engine.model import LoadedModel, load_model
from server.engine.packing import PackedLinear
from server.engine.precision import MIN_SLOWNESS, is_better_in_float32, slowness_of
from server.engine.refusal import ModelRefused
from server.kernels.library import load_kernels
from tests.families import build

HALVES = (torch.bfloat16, torch.float16)


def is_packed(model: LoadedModel) -> bool:
    found = any(isinstance(module, PackedLinear) for module in model.module.modules())
    assert model.attention is (CompiledAttention if found else StretchAttention)
    return found


@pytest.mark.parametrize("stored", HALVES)
def test_without_kernels_slow_halves_are_widened_if_there_is_room(stored: torch.dtype) -> None:
    assert is_better_in_float32(stored, 1000, None) is (slowness_of(stored) >= MIN_SLOWNESS)
    assert not is_better_in_float32(stored, 10**15, None)


@pytest.mark.parametrize("stored", HALVES)
def test_with_kernels_they_are_computed_in_float32_if_that_is_faster(stored: torch.dtype) -> None:
    kernels = load_kernels()
    if kernels is None or stored not in kernels.dtypes:
        pytest.skip("there are no kernels for it")
    faster = slowness_of(stored, kernels) > 1
    assert is_better_in_float32(stored, 10**15, kernels) is faster, "the weights stay as they are, so there is room"


def test_float32_has_nothing_to_gain() -> None:
    for kernels in (None, load_kernels()):
        assert not is_better_in_float32(torch.float32, 1000, kernels)


@pytest.mark.parametrize("kernels", ["auto", "compiled", "torch"])
def test_every_choice_computes_with_the_stored_numbers(kernels: str) -> None:
    found = load_kernels()
    if kernels == "compiled" and found is None:
        pytest.skip("there is no C compiler")
    model = load_model(MODEL_DIR, device="cpu", kernels=kernels)
    if kernels != "auto":
        assert is_packed(model) is (kernels == "compiled")
    better = is_better_in_float32(torch.bfloat16, 1000, None if kernels == "torch" else found)
    assert model.dtype is (torch.float32 if better or kernels == "compiled" else torch.bfloat16)
    stored = load_file(MODEL_DIR / "model.safetensors")
    for name, tensor in stored.items():
        place = name.rpartition(".")[0]
        if model.is_fused:  # all blocks are in the place of the first
            place = place.replace("model.layers.", "model.layers.0.blocks.")
        weight = model.module.get_submodule(place).weight
        assert isinstance(weight, torch.Tensor)
        assert torch.equal(weight.float(), tensor.float()), name
    assert model.info.num_parameters == sum(tensor.numel() for tensor in stored.values())


def test_a_named_dtype_is_kept() -> None:
    assert load_model(MODEL_DIR, device="cpu", dtype="bfloat16").dtype is torch.bfloat16
    for kernels in ("auto", "torch"):
        model = load_model(MODEL_DIR, device="cpu", dtype="float32", kernels=kernels)
        assert model.dtype is torch.float32
        assert is_packed(model) is (kernels == "auto" and load_kernels() is not None)


@pytest.mark.parametrize("dtype", HALVES)
def test_without_kernels_every_buffer_is_that_of_the_chosen_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    """Gemma keeps a factor of its embeddings in the dtype that it was made in, so widening what is loaded differs."""
    model = build("gemma3")
    nn.Module.to(model, dtype=dtype)
    model.save_pretrained(tmp_path)
    chosen = load_model(tmp_path, device="cpu", kernels="torch")
    named = load_model(tmp_path, device="cpu", kernels="torch", dtype=str(chosen.dtype).removeprefix("torch."))
    buffers = dict(named.module.named_buffers())
    assert buffers
    for name, buffer in chosen.module.named_buffers():
        assert buffer.dtype is buffers[name].dtype, name
        assert torch.equal(buffer, buffers[name]), name


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"kernels": "fast"}, "kernels: expected one of auto, compiled, torch, got 'fast'"),
        ({"kernels": "compiled", "dtype": "bfloat16"}, "compute in float32; try --dtype float32 or auto"),
    ],
)
def test_what_cannot_be_is_refused(asked: dict[str, Any], says: str) -> None:
    if load_kernels() is None:
        says = "kernels: "
    with pytest.raises(ModelRefused, match=says):
        load_model(MODEL_DIR, device="cpu", **asked)
