"""What a model's generation config asks of sampling: what is applied, and what is not, which is said by name."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "begin_suppress_tokens": ([],),
    "constraints": ([],),
    "diversity_penalty": (0.0,),
    "dola_layers": (),
    "encoder_repetition_penalty": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "exponential_decay_length_penalty": (),
    "force_words_ids": ([],),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "guidance_scale": (1.0,),
    "max_new_tokens": (),
    "max_time": (),
    "min_length": (0,),
    "no_repeat_ngram_size": (0,),
    "num_beam_groups": (1,),
    "num_beams": (1,),
    "penalty_alpha": (0.0,),
    "sequence_bias": ({}, []),
    "stop_strings": ([],),
    "token_healing": (False,),
    "top_h": (),
    "typical_p": (1.0,),
    "watermarking_config": (),
}
"""Fields that change what `generate` answers and are not applied, with the values that change nothing, beside None."""


def sampling_defaults(config: Any) -> dict[str, float]:
    """The sampling parameters that a generation config (or None) sets, by the names that requests have for them."""
    values = {name: getattr(config, name, None) for name in _SAMPLING}
    values["min_tokens"] = getattr(config, "min_new_tokens", None) or None
    return {name: value for name, value in values.items() if value is not None}


def suppressed_tokens(config: Any, eos_token_ids: Collection[int], vocab_size: int) -> frozenset[int]:
    """The tokens that a generation config (or None) never lets the model say."""
    suppressed = set(getattr(config, "suppress_tokens", None) or ())
    suppressed |= {word[0] for word in _bad_words(config) if len(word) == 1 and word[0] not in eos_token_ids}
    return frozenset(token for token in suppressed if 0 <= token < vocab_size)


def unapplied_fields(config: Any) -> list[str]:
    """The fields of a generation config (or None) that change what `generate` answers and are not applied here."""
    fields = [
        f"{name}={value}"
        for name, neutral in _NEUTRAL.items()
        if (value := getattr(config, name, None)) is not None and value not in neutral
    ]
    if long := [word for word in _bad_words(config) if len(word) > 1]:
        fields.append(f"bad_words_ids={long}")
    return fields


def _bad_words(config: Any) -> list[list[int]]:
    return getattr(config, "bad_words_ids", None) or []
