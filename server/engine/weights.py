"""Reads a checkpoint's weights for what is to compute the model: PyTorch, or the compiled kernels."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from server.engine.checkpoint import load_checkpoint
from server.engine.precision import is_better_in_float32
from server.engine.refusal import ModelRefused
from server.kernels.library import Kernels, load_kernels

KERNELS = ("auto", "compiled", "torch")
"""Who computes on a CPU: `auto` takes the compiled kernels where they can be had and are faster."""


def load_weights(
    source: str, *, revision: str | None, dtype: torch.dtype | None, device: torch.device, kernels: str
) -> tuple[PreTrainedModel, Kernels | None]:
    """The model of `source` with all its weights, on the CPU, and the kernels that are to compute it on `device`.

    `dtype` None: as stored, or to be computed in float32 where that is faster. Kernels compute in float32 and keep
    16-bit weights as stored, so a model for them is left in 16 bits here, unless it makes numbers of its own in the
    dtype that it is loaded in, as Gemma does with the scale of its embeddings. Raises `ModelRefused`.
    """
    found = _find_kernels(kernels, device, dtype)
    module = load_checkpoint(source, revision=revision, dtype=dtype or "auto")
    stored = next(module.parameters()).dtype
    if stored is torch.float32:
        return module, found
    is_free = dtype is None and device.type == "cpu" and getattr(module, "hf_quantizer", None) is None
    if not is_free or not _is_widened(module, stored, found, is_asked=kernels == "compiled"):
        return module, None
    if found is None or stored not in found.dtypes or _makes_numbers(module):
        module = load_checkpoint(source, revision=revision, dtype=torch.float32)
    return module, found


def _find_kernels(kernels: str, device: torch.device, dtype: torch.dtype | None) -> Kernels | None:
    if kernels == "torch":
        return None
    found = load_kernels() if device.type == "cpu" else None
    if kernels == "compiled":
        if found is None:
            why = "there is no C compiler, or it failed (see the log)" if device.type == "cpu" else f"not on {device}"
            raise ModelRefused(f"kernels: the compiled kernels cannot be had: {why}; try --kernels auto")
        if dtype not in (None, torch.float32):
            raise ModelRefused("kernels: the compiled kernels compute in float32; try --dtype float32 or auto")
    return found


def _is_widened(module: PreTrainedModel, stored: torch.dtype, found: Kernels | None, *, is_asked: bool) -> bool:
    num_parameters = sum(parameter.numel() for parameter in module.parameters())
    return is_asked or is_better_in_float32(stored, num_parameters, found)


def _makes_numbers(module: PreTrainedModel) -> bool:
    return any(buffer.is_floating_point() and buffer.element_size() == 2 for buffer in module.buffers())
