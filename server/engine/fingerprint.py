"""The fingerprint of a model's weights: tells whether figures measured on one model hold for another."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

_NUM_READ = 512
"""The elements read of each tensor, evenly spaced: a model of any size is read in well under a second."""


def fingerprint_of(module: nn.Module) -> str:
    """SHA-256 (64 hex digits) of the name and shape of each parameter and of some of its elements, in bfloat16.

    The same weights in another precision have the same fingerprint. Training or merging an adapter changes
    nearly every element, and so the fingerprint; a change of a single element may not.
    """
    digest = hashlib.sha256(b"tiller weights 1\n")
    for name, parameter in module.named_parameters():
        digest.update(f"{name} {list(parameter.shape)}\n".encode())
        flat = parameter.detach().reshape(-1)
        places = torch.linspace(0, len(flat) - 1, min(_NUM_READ, len(flat)), dtype=torch.float64).long()
        read = flat[places.to(flat.device)].to(torch.bfloat16).cpu()
        digest.update(read.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
