"""The attention function that transformers calls in place of its own; the same for every implementation.

It checks the arguments, refuses those that no implementation supports, and calls the current step.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface

from server.engine.attention.interface import AttentionArguments, AttentionStep
from server.engine.attention.latent import as_latent
from server.engine.current import Current

ATTENTION_NAME = "tiller_paged"

_HARMLESS_ARGUMENTS = frozenset(
    {
        "dropout", "position_ids", "use_cache", "output_attentions", "output_hidden_states", "is_causal",
        "cache_position", "output_router_logits", "position_embeddings", "logits_to_keep", "layer_idx",
        "past_key_values",
    }
)  # fmt: skip

_current: Current[AttentionStep] = Current("tiller_attention_step")


def attention_step(step: AttentionStep) -> AbstractContextManager[AttentionStep]:
    """Make `step` the current step of the attention function; does not nest."""
    return _current.set_to(step)


def current_attention() -> AttentionStep:
    """The current step. Raises `RuntimeError` outside of an `attention_step`."""
    step = _current.get()
    if step is None:
        raise RuntimeError("this model belongs to a tiller engine and can only be run by it")
    return step


def layer_of(module: nn.Module) -> int:
    """The number of the block that the attention `module` belongs to, as transformers counts.

    Raises `NotImplementedError` for a module without one, as has an attention that several blocks share.
    """
    layer = getattr(module, "layer_idx", None)
    if not isinstance(layer, int):
        raise NotImplementedError(
            f"{type(module).__name__} does not say which block it belongs to, as when several blocks share it; tiller "
            "keeps the KV of each block's own attention"
        )
    return layer


def paged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """The attention function: query `[1, heads, tokens, dim]`, key and value `[1, kv_heads, tokens, dim]`.

    Returns `[1, tokens, heads, dim]`, contiguous. `s_aux`: one sink logit per head. `sliding_window` was noted when the
    model was loaded. Raises `NotImplementedError`, naming the argument, for an unknown one, and as `layer_of` does, and
    `RuntimeError` outside of an `attention_step`.
    """
    step = current_attention()
    if attention_mask is not None:
        raise NotImplementedError("paged attention does not support an attention mask of the model's own")
    for name, argument in others.items():
        if argument is not None and name not in _HARMLESS_ARGUMENTS:
            raise NotImplementedError(f"paged attention does not support the argument {name!r}, which the model passes")
    layer = layer_of(module)
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    arguments = AttentionArguments(scale, softcap, s_aux)
    latent = as_latent(module, query[0], key[0])
    if latent is None:
        step.write(layer, key[0], value[0])
        output = step.attend(layer, query[0], key[0], value[0], arguments)
    else:
        step.write(layer, latent.keys, latent.values)
        output = latent.expand(step.attend(layer, latent.queries, latent.keys, latent.values, arguments))
    return output.transpose(0, 1).contiguous().unsqueeze(0), None  # some models view it


AttentionInterface.register(ATTENTION_NAME, paged_attention)
