"""Describes a model from its configurations: its context, its end tokens, its sampling defaults."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel

from server.engine.attention.interface import LayerAttention
from server.engine.protocol import ModelInfo
from server.engine.refusal import ModelRefused
from vectors.sites import ModelSites

_log = logging.getLogger(__name__)


def describe_model(
    module: PreTrainedModel,
    sites: ModelSites,
    layers: Sequence[LayerAttention | None],
    *,
    model_id: str,
    max_model_len: int | None,
) -> ModelInfo:
    """Describe `module`, whose layers ask for the attention `layers`. `max_model_len`: the context asked for, or None.

    Raises `ModelRefused` when the context is unknown or too long, or when the layers lack a sliding window of the
    configuration.
    """
    config = module.config.get_text_config(decoder=True)
    length = _max_model_len(config, max_model_len)
    _check_windows(type(module).__name__, config, layers, length)
    parameters = list(module.parameters())
    return ModelInfo(
        model_id=model_id,
        architecture=type(module).__name__,
        num_layers=sites.num_layers,
        hidden_size=sites.hidden_size,
        vocab_size=config.vocab_size,
        max_model_len=length,
        sites=sites.sites,
        eos_token_ids=_eos_token_ids(module),
        sampling_defaults=_sampling_defaults(module),
        num_parameters=sum(parameter.numel() for parameter in parameters),
        num_bytes=sum(parameter.numel() * parameter.element_size() for parameter in parameters),
        dtype=str(parameters[0].dtype).removeprefix("torch."),
        device=str(parameters[0].device),
    )


def _check_windows(architecture: str, config: Any, layers: Sequence[LayerAttention | None], length: int) -> None:
    """Refuse a model that limits its attention by a mask, which is never built here.

    What the configuration says about each layer must have reached the attention function.
    """
    promised = getattr(config, "sliding_window", None)
    if getattr(config, "use_sliding_window", True) is False or not isinstance(promised, int) or promised >= length:
        promised = None
    kind_of_all = "sliding_attention" if promised else "full_attention"
    kinds = getattr(config, "layer_types", None) or [kind_of_all] * len(layers)
    for layer, kind in enumerate(kinds[: len(layers)]):
        attention = layers[layer]
        if attention is None:
            continue
        if kind not in ("full_attention", "sliding_attention", "hybrid", "hybrid_sliding"):
            raise ModelRefused(f"{architecture}: layer {layer} uses {kind}, which paged attention does not support")
        if kind in ("sliding_attention", "hybrid_sliding") and promised and attention.window is None:
            raise ModelRefused(
                f"{architecture}: layer {layer} implements its sliding window of {promised} tokens with its own mask, "
                f"which paged attention does not support; serve it with --max-model-len {promised}"
            )


def _max_model_len(config: Any, asked: int | None) -> int:
    """The context length: `asked`, within the range in which the position encoding is exact."""
    allowed = int(getattr(config, "max_position_embeddings", 0) or 0)
    rope: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    for entry in (rope, *rope.values()):
        if not isinstance(entry, dict) or entry.get("rope_type") not in ("dynamic", "longrope"):
            continue
        # their frequencies depend on the longest sequence of a batch, so neighbours would affect each other
        original = entry.get("original_max_position_embeddings") or getattr(
            config, "original_max_position_embeddings", None
        )
        allowed = min(allowed, int(original)) if original else allowed
        _log.warning("context limited to %d tokens: dynamic RoPE scaling beyond that is not exact in a batch", allowed)
    if not allowed and not asked:
        raise ModelRefused("the model's configuration does not give a context length; set --max-model-len")
    if asked and allowed and asked > allowed:
        raise ModelRefused(f"--max-model-len: expected at most {allowed} (the model's context length), got {asked}")
    return asked or allowed


def _eos_token_ids(module: PreTrainedModel) -> frozenset[int]:
    generation_config = module.generation_config
    ids = generation_config.eos_token_id if generation_config is not None else None
    if ids is None:
        ids = module.config.get_text_config(decoder=True).eos_token_id
    if ids is None:
        return frozenset()
    return frozenset(ids) if isinstance(ids, list) else frozenset({ids})


def _sampling_defaults(module: PreTrainedModel) -> dict[str, float]:
    """The sampling parameters that the generation config sets, as vLLM takes them."""
    config = module.generation_config
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    values = {name: getattr(config, name, None) for name in names}
    return {name: value for name, value in values.items() if value is not None}
