"""A tiny model of a family with random weights, and its folder, as it would come from a hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from tests.families.configurations import MULTIMODAL, configuration
from tests.families.sizes import VOCABULARY


def make_model(name: str, seed: int = 0) -> PreTrainedModel:
    """A float32 model of a family or variant. Raises what its code raises."""
    torch.manual_seed(seed)
    config = configuration(name)
    loader: Any = AutoModelForMultimodalLM if name in MULTIMODAL else AutoModelForCausalLM
    model: PreTrainedModel = loader.from_config(config, dtype=torch.float32, attn_implementation="eager")
    spread_weights(model, seed)
    model.eval()
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        generation.eos_token_id = generation.pad_token_id = generation.bos_token_id = None
    return model


@torch.no_grad()
def spread_weights(model: PreTrainedModel, seed: int = 0) -> None:
    """Random weights under which tokens and layers matter: the likeliest token is well ahead of the second.

    Nothing stays at the value it begins with: norms, biases and what a checkpoint keeps as buffers are moved too.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(like: Tensor, scale: float) -> Tensor:
        return torch.randn(like.shape, generator=generator) * scale

    # embeddings that also give the logits are kept short, so that a token is not its own successor
    length = 0.3 if _is_tied(model.config) else 1.0
    embeddings = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    for parameter in model.parameters():
        if not parameter.is_floating_point():
            continue
        if parameter.ndim < 2:
            parameter.add_(normal(parameter, 0.2))
        elif parameter in embeddings:
            parameter.copy_(normal(parameter, length))
        else:
            fan_in = (
                parameter.shape[-1] if parameter.ndim == 2 else max(parameter.shape[-1], parameter[0].numel() // 64)
            )
            parameter.copy_(normal(parameter, 1.3 / max(fan_in, 1) ** 0.5))
    kept = model.state_dict().keys()
    for name, buffer in model.named_buffers():
        if (
            name in kept
            and buffer.is_floating_point()
            and buffer.numel()
            and bool((buffer == buffer.flatten()[0]).all())
        ):
            buffer.add_(normal(buffer, 0.1))


def save_model(model: PreTrainedModel, folder: Path) -> None:
    """Write `model` to `folder`, with a tokenizer of as many words as the model knows."""
    model.save_pretrained(folder)
    words = {f"w{token}": token for token in range(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0").save_pretrained(folder)


def load_plain(folder: Path, like: PreTrainedModel) -> PreTrainedModel:
    """The model in `folder` as transformers runs it, with eager attention."""
    loader: Any = type(like)
    model: PreTrainedModel = loader.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    model.eval()
    return model


def _is_tied(config: PreTrainedConfig) -> bool:
    text = config.get_text_config(decoder=True)
    return bool(getattr(config, "tie_word_embeddings", False) or getattr(text, "tie_word_embeddings", False))
