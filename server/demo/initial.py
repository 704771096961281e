"""Initial weights from which a small model learns to look things up within minutes.

The skill behind multiple choice and behind repeating a name is to find an earlier token by its content and to read what
stands beside it. From plain random weights its two halves wait for each other for a long time. So here both start in
rough form: some heads of the first block look a fixed number of tokens back, the heads of the later blocks look at what
resembles the current token. All weights are trained further; nothing is frozen.
"""

from __future__ import annotations

import math

import torch
from transformers import LlamaForCausalLM

RECALL_BLOCKS = 3
"""The blocks in which facts come to mind; the heads that compare contents begin above them."""

BASE_STD = 0.07
EMBEDDING_STD = 0.3
OUTPUT_STD = 0.017
"""Of the attention's output matrix: small, so that at first the residual stream is the token itself."""

FINAL_NORM = 0.15
"""The last norm starts low, so that the tied embedding does not answer with the token it has just read."""

ROPE_BASE = 1e6
SHARED_PART = 0.45
"""The part of every token's embedding that all tokens share: what the looking-back heads hold on to."""

LOOK_BACK = (1, 1, 2, 3)
"""How far each of the first heads of the first block looks back."""

FAST_PAIRS = 5
LOOK_BACK_SHARPNESS = 5.0
LIKENESS = 1.6
NOTCH = 4.0


@torch.no_grad()
def set_initial_weights(model: LlamaForCausalLM) -> None:
    """Overwrite every weight of an untrained model; draws from torch's global generator."""
    config = model.config
    hidden, heads = int(config.hidden_size or 0), int(config.num_attention_heads or 0)
    size = hidden // heads
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=BASE_STD)
    shared = torch.nn.functional.normalize(torch.randn(hidden), dim=0)
    embedding = model.get_input_embeddings().weight
    assert isinstance(embedding, torch.Tensor)
    torch.nn.init.normal_(embedding, std=EMBEDDING_STD)
    embedding += SHARED_PART * EMBEDDING_STD * math.sqrt(hidden) * shared
    model.model.norm.weight.fill_(FINAL_NORM)
    for number, layer in enumerate(model.model.layers):
        query = layer.self_attn.q_proj.weight.view(heads, size, hidden)
        key = layer.self_attn.k_proj.weight.view(heads, size, hidden)
        layer.mlp.down_proj.weight.zero_()
        torch.nn.init.normal_(layer.self_attn.o_proj.weight, std=OUTPUT_STD)
        for head in range(heads):
            if number == 0 and head < len(LOOK_BACK):
                _look_back(query[head], key[head], shared, LOOK_BACK[head])
            elif number >= RECALL_BLOCKS:
                _look_alike(query[head], key[head], shared)


def _look_back(query: torch.Tensor, key: torch.Tensor, shared: torch.Tensor, distance: int) -> None:
    """Make one head attend `distance` tokens back, whatever they are.

    Its keys all point one way, and its queries are turned so that rotary embedding lines them up at that distance.
    """
    size, hidden = query.shape
    query.zero_()
    key.zero_()
    strength = SHARED_PART * math.sqrt(hidden / (1.0 + SHARED_PART**2))
    for pair in range(FAST_PAIRS):
        angle = distance * ROPE_BASE ** (-2.0 * pair / size)
        reach = LOOK_BACK_SHARPNESS / strength
        key[pair] = reach * shared
        query[pair] = reach * math.cos(angle) * shared
        query[pair + size // 2] = -reach * math.sin(angle) * shared


def _look_alike(query: torch.Tensor, key: torch.Tensor, shared: torch.Tensor) -> None:
    """Make one head attend to tokens that resemble the current one, but not to the current one itself.

    The slow pairs of the rotary embedding compare contents; the fast ones push the nearest positions away.
    """
    size, hidden = query.shape
    alike = LIKENESS * torch.randn(size, hidden) / math.sqrt(hidden)
    alike -= (alike @ shared)[:, None] * shared
    reach = NOTCH * math.sqrt(1.0 + SHARED_PART**2) / (SHARED_PART * math.sqrt(hidden))
    for pair in range(FAST_PAIRS):
        alike[pair] = alike[pair + size // 2] = 0.0
    query.copy_(alike)
    key.copy_(alike)
    for pair in range(FAST_PAIRS):
        query[pair] = -reach * shared
        key[pair] = reach * shared
