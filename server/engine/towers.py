"""Takes the parts of a multimodal model that text never reaches, such as vision and audio towers, out of memory."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import torch
from torch import nn
from transformers import PreTrainedModel

from vectors.sites import ModelSites


class UnusedPart(nn.Module):
    """Stands where a `part` of the model was that text does not use.

    A forward pass of text may still read the part's `device`, `dtype` and `config`.
    """

    _empty: torch.Tensor

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        like = next(part.parameters())
        self.register_buffer("_empty", like.new_empty(0), persistent=False)  # moves with the model
        self.config = getattr(part, "config", None)

    @property
    def device(self) -> torch.device:
        """Where the part would be."""
        return self._empty.device

    @property
    def dtype(self) -> torch.dtype:
        """What the part would compute in."""
        return self._empty.dtype


def drop_unused_towers(module: PreTrainedModel, sites: ModelSites) -> tuple[str, ...]:
    """Drop what a forward pass of text does not call beside the decoder; returns the names of what was dropped."""
    candidates = dict(_beside_decoder(module, sites.decoder))
    if not candidates:
        return ()
    called: set[str] = set()
    handles = [
        inner.register_forward_pre_hook(lambda *_, name=name: called.add(name))
        for name, part in candidates.items()
        for inner in part.modules()
    ]
    device = next(module.parameters()).device
    try:
        with torch.inference_mode():
            module(input_ids=torch.tensor([[3, 4]], device=device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    shared = {id(parameter) for parameter in sites.decoder.parameters()}
    dropped = []
    for name, part in candidates.items():
        if name in called or any(id(parameter) in shared for parameter in part.parameters()):
            continue
        parent, _, own = name.rpartition(".")
        setattr(module.get_submodule(parent), own, UnusedPart(part))
        dropped.append(name)
    del candidates
    gc.collect()
    return tuple(dropped)


def _beside_decoder(module: PreTrainedModel, decoder: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules with parameters that lie beside the way from `module` to its decoder, with their names."""
    name = next(name for name, candidate in module.named_modules() if candidate is decoder)
    kept = {id(module.get_input_embeddings()), id(module.get_output_embeddings())}
    path = name.split(".") if name else []
    for depth in range(len(path)):
        parent = ".".join(path[:depth])
        for own, part in module.get_submodule(parent).named_children():
            if own != path[depth] and id(part) not in kept and any(True for _ in part.parameters()):
                yield f"{parent}.{own}".lstrip("."), part
