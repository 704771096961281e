"""The dtype that `auto` computes in on a CPU: as stored, or float32 where the stored one is slow and there is room."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from server.demo import MODEL_DIR
from server.engine.model import load_model
from server.engine.precision import MIN_SLOWNESS, cpu_dtype, slowness_of
from tests.families import build

HALVES = (torch.bfloat16, torch.float16)


def expected(stored: torch.dtype) -> torch.dtype:
    return torch.float32 if slowness_of(stored) >= MIN_SLOWNESS else stored


@pytest.mark.parametrize("stored", HALVES)
def test_slow_halves_are_widened_if_there_is_room(stored: torch.dtype) -> None:
    assert cpu_dtype(stored, lambda: 1000) is expected(stored)
    assert cpu_dtype(stored, lambda: 10**15) is stored


@pytest.mark.parametrize("stored", [torch.float32, torch.float64])
def test_other_dtypes_stay_and_are_not_measured(stored: torch.dtype) -> None:
    def count() -> int:
        raise AssertionError("counted for nothing")

    assert cpu_dtype(stored, count) is stored


def test_auto_computes_with_the_stored_numbers_and_a_named_dtype_is_kept() -> None:
    stored = load_file(MODEL_DIR / "model.safetensors")
    automatic = load_model(MODEL_DIR, device="cpu")
    assert automatic.dtype is expected(torch.bfloat16)
    weights = dict(automatic.module.named_parameters())
    assert all(torch.equal(weights[name].float(), tensor.float()) for name, tensor in stored.items() if name in weights)
    assert len(weights.keys() & stored.keys()) > 20
    assert load_model(MODEL_DIR, device="cpu", dtype="bfloat16").dtype is torch.bfloat16


@pytest.mark.parametrize("dtype", HALVES)
def test_every_buffer_is_that_of_a_model_loaded_in_the_chosen_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    """Gemma keeps a factor of its embeddings in the dtype that it was made in, so widening what is loaded differs."""
    model = build("gemma3")
    nn.Module.to(model, dtype=dtype)
    model.save_pretrained(tmp_path)
    chosen = load_model(tmp_path, device="cpu").module
    named = load_model(tmp_path, device="cpu", dtype=str(expected(dtype)).removeprefix("torch.")).module
    buffers = dict(named.named_buffers())
    assert buffers
    for name, buffer in chosen.named_buffers():
        assert buffer.dtype is buffers[name].dtype, name
        assert torch.equal(buffer, buffers[name]), name
