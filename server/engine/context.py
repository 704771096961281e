"""How long a context a model is served with: as asked, within the range in which its position encoding is exact.

Some RoPE scalings choose their frequencies by the longest sequence of a batch, so that neighbours would change each
other. Each is asked whether it does, within the context. LongRoPE has two sets of frequencies; the context decides
between them once and for all, as in vLLM.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from server.engine.refusal import ModelRefused

_log = logging.getLogger(__name__)


def known_context(module: PreTrainedModel, asked: int | None) -> int | None:
    """The context `asked` for, or else that of the configuration, in tokens; None when there is neither."""
    config = module.config.get_text_config(decoder=True)
    return asked or int(getattr(config, "max_position_embeddings", 0) or 0) or None


def settle_context(module: PreTrainedModel, asked: int | None) -> int:
    """The context to serve `module` with, in tokens; fixes the frequencies of its LongRoPE to it.

    Raises `ModelRefused` when the context is unknown, or longer than the model's.
    """
    allowed = known_context(module, None)
    if not allowed and not asked:
        raise ModelRefused("the model's configuration does not give a context length; set --max-model-len")
    if asked and allowed and asked > allowed:
        raise ModelRefused(f"--max-model-len: expected at most {allowed} (the model's context length), got {asked}")
    context = asked or allowed or 0
    for rotary, kind in _scaled_rotaries(module):
        original = _original_length(rotary, kind)
        if original is None or original >= context:
            continue
        if _type_of(rotary, kind) == "longrope":
            if asked:
                _fix_long_factors(rotary, kind, original)
                _log.info("LongRoPE: long factors at every position; with --max-model-len %d the short ones", original)
            else:
                context = original
                _log.warning(
                    "context limited to %d tokens, where LongRoPE's short factors are exact; a --max-model-len beyond "
                    "that, up to %d, serves with the long factors at every position",
                    original,
                    allowed,
                )
    return _limit_to_fixed_frequencies(module, context, asked)


def _limit_to_fixed_frequencies(module: PreTrainedModel, context: int, asked: int | None) -> int:
    for rotary, kind in _scaled_rotaries(module):
        if not _depends_on_length(rotary, kind, context):
            continue
        original = _original_length(rotary, kind)
        if original is None or original >= context or _depends_on_length(rotary, kind, original):
            raise ModelRefused(
                f"{type(module).__name__}: the frequencies of its RoPE scaling ({_type_of(rotary, kind)}) depend on "
                "the longest sequence of a batch, so neighbours would change each other; serve it with transformers"
            )
        if asked:
            raise ModelRefused(
                f"--max-model-len: expected at most {original}, got {asked}; beyond that the frequencies of the "
                f"model's RoPE scaling ({_type_of(rotary, kind)}) depend on the longest sequence of a batch"
            )
        _log.warning(
            "context limited to %d tokens: beyond that the frequencies of the model's RoPE scaling (%s) depend on the "
            "longest sequence of a batch",
            original,
            _type_of(rotary, kind),
        )
        context = original
    return context


def _scaled_rotaries(module: PreTrainedModel) -> list[tuple[Any, str | None]]:
    """The rotary embeddings whose frequencies may depend on the length, each with a kind of layer or None."""
    found: list[tuple[Any, str | None]] = []
    for rotary in module.modules():
        types = getattr(rotary, "rope_type", None)
        for kind, name in types.items() if isinstance(types, Mapping) else [(None, types)]:
            if isinstance(name, str) and (name == "longrope" or "dynamic" in name):
                found.append((rotary, kind))
    return found


def _type_of(rotary: Any, kind: str | None) -> str:
    return str(rotary.rope_type if kind is None else rotary.rope_type[kind])


def _original_length(rotary: Any, kind: str | None) -> int | None:
    """The length up to which the model was trained before its context was extended."""
    parameters = rotary.config.rope_parameters if kind is None else rotary.config.rope_parameters[kind]
    original = parameters.get("original_max_position_embeddings") or getattr(
        rotary.config, "original_max_position_embeddings", None
    )
    return None if original is None else int(original)


def _fix_long_factors(rotary: Any, kind: str | None, original: int) -> None:
    """Make both sets of frequencies the long one."""
    inverse = getattr(rotary, _named("inv_freq", kind))
    long, _ = ROPE_INIT_FUNCTIONS["longrope"](rotary.config, inverse.device, seq_len=original + 1, layer_type=kind)
    inverse.copy_(long)
    getattr(rotary, _named("original_inv_freq", kind)).copy_(long)


def _named(name: str, kind: str | None) -> str:
    return name if kind is None else f"{kind}_{name}"


def _depends_on_length(rotary: nn.Module, kind: str | None, context: int) -> bool:
    """True when the angles of the first positions change once the last one of `context` is in the batch."""
    few = torch.arange(4)
    alone = _angles(rotary, kind, few)
    beside = _angles(rotary, kind, torch.cat([few[:3], torch.tensor([context - 1])]))
    again = _angles(rotary, kind, few)  # and back to the frequencies of short sequences
    return not (torch.equal(alone[:, :3], beside[:, :3]) and torch.equal(alone, again))


def _angles(rotary: Any, kind: str | None, positions: Tensor) -> Tensor:
    """What the rotary embedding gives for `positions` `[n]`: its first part, flattened to `[1, n, any]`."""
    device = getattr(rotary, _named("inv_freq", kind)).device
    like = torch.zeros(1, len(positions), 1, device=device)
    kinds = {} if kind is None else {"layer_type": kind}
    with torch.inference_mode():
        output = rotary(like, positions.unsqueeze(0).to(device), **kinds)
    first: Tensor = output[0] if isinstance(output, tuple) else torch.view_as_real(output)
    return first.reshape(1, len(positions), -1).clone()
