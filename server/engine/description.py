"""Describes a model from its configurations: its context, its end tokens, its sampling defaults."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Self

import torch
from torch import nn
from transformers import PreTrainedModel

from server.engine.fingerprint import fingerprint_of
from server.engine.generation_config import sampling_defaults, suppressed_tokens, unapplied_fields
from server.engine.protocol import ModelInfo
from vectors.sites import ModelSites

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """How many weights a model has, their bytes, the dtype of the first, and their fingerprint, as they were loaded."""

    num_parameters: int
    num_bytes: int
    dtype: torch.dtype
    fingerprint: str

    @classmethod
    def of(cls, module: nn.Module) -> Self:
        """The weights of `module`, before they are packed."""
        weights = list(module.parameters())
        num_bytes = sum(weight.numel() * weight.element_size() for weight in weights)
        num_weights = sum(weight.numel() for weight in weights)
        return cls(num_weights, num_bytes, weights[0].dtype, fingerprint_of(module))


def describe_model(
    module: PreTrainedModel,
    sites: ModelSites,
    stored: StoredWeights,
    *,
    model_id: str,
    max_model_len: int,
) -> ModelInfo:
    """Describe `module`, whose weights were `stored`, and which is served with a context of `max_model_len` tokens."""
    config = module.config.get_text_config(decoder=True)
    eos_token_ids, generation = _eos_token_ids(module), module.generation_config
    if unapplied := unapplied_fields(generation):
        _log.warning("the model's generation config asks for what is not applied: %s", ", ".join(unapplied))
    parameter = next(module.parameters())
    return ModelInfo(
        model_id=model_id,
        architecture=type(module).__name__,
        num_layers=sites.num_layers,
        hidden_size=sites.hidden_size,
        vocab_size=config.vocab_size,
        max_model_len=max_model_len,
        sites=sites.sites,
        eos_token_ids=eos_token_ids,
        sampling_defaults=sampling_defaults(generation),
        suppressed_token_ids=suppressed_tokens(generation, eos_token_ids, config.vocab_size),
        num_parameters=stored.num_parameters,
        num_bytes=stored.num_bytes,
        weights_dtype=str(stored.dtype).removeprefix("torch."),
        dtype=str(parameter.dtype).removeprefix("torch."),
        device=str(parameter.device),
        fingerprint=stored.fingerprint,
    )


def _eos_token_ids(module: PreTrainedModel) -> frozenset[int]:
    generation_config = module.generation_config
    ids = generation_config.eos_token_id if generation_config is not None else None
    if ids is None:
        ids = getattr(module.config.get_text_config(decoder=True), "eos_token_id", None)
    if ids is None:
        return frozenset()
    return frozenset(ids) if isinstance(ids, list) else frozenset({ids})
