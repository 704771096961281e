"""The families of transformers, and a tiny configuration of each: the common sizes, what is special, and a variant's
changes."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
)

from tests.families.sizes import TEXT, TOWER
from tests.families.special import ABSENT, SPECIAL
from tests.families.variants import VARIANTS

CAUSAL = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
"""Every model type that transformers has a causal language model for."""

MULTIMODAL = tuple(
    name for name in MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES if name not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
)
"""Those it has only a multimodal model for."""

NAMES = (*CAUSAL, *MULTIMODAL, *VARIANTS)
"""Everything that the sweep can run."""

_NO_TOWER = ("timm_wrapper", "timm_backbone")  # need a library of their own
_TOKENS = {
    "vision_start": 501, "vision_end": 502, "boa": 503, "eoa": 504, "boi": 505, "eoi": 506, "image": 507, "video": 508,
    "audio": 509,
}  # fmt: skip


def configuration(name: str) -> PreTrainedConfig:
    """The configuration of a family or variant. Raises what its class raises."""
    base, changes = VARIANTS.get(name, (name, {}))
    return _sized(_class_of(base), TEXT, changes)


def _class_of(model_type: str) -> type[PreTrainedConfig]:
    kind: type[PreTrainedConfig] = CONFIG_MAPPING[model_type]
    return kind


def _sized(kind: type[PreTrainedConfig], sizes: Mapping[str, Any], changes: Mapping[str, Any]) -> PreTrainedConfig:
    """A configuration of `kind`: of `sizes`, what it has a field for; then what is special to it; then `changes`."""
    changes = {**SPECIAL.get(kind.model_type, {}), **changes}
    parts = kind.sub_configs or {}
    fields = {field.name for field in dataclasses.fields(kind)}
    values = {name: size for name, size in sizes.items() if name in fields}
    for alias, real in (kind.attribute_map or {}).items():
        if alias in sizes and real in fields:
            values.setdefault(real, sizes[alias])
    for name in fields:
        word = name.removesuffix("_token_id").removesuffix("_token_index")
        if parts and word != name and word in _TOKENS:
            values[name] = _TOKENS[word]
    values |= {name: value for name, value in changes.items() if name not in parts}
    if parts:
        own = _defaults(kind)
        for part, declared in parts.items():
            values[part] = _part(part, declared, getattr(own, part, None), changes.get(part, {})).to_dict()
    return kind(**{name: copy.deepcopy(value) for name, value in values.items() if value != ABSENT})


def _part(name: str, declared: Any, default: PreTrainedConfig | None, changes: Mapping[str, Any]) -> PreTrainedConfig:
    """The part `name` of a composite: of the type that `changes` name, else of the one that it is by itself."""
    is_text = any(
        word in name for word in ("text", "llm", "language", "decoder", "encoder_config", "global", "patcher")
    )
    changes = dict(changes)
    if "model_type" in changes:
        kind = _class_of(changes.pop("model_type"))
    elif declared is not AutoConfig:  # the class itself
        kind = declared
    elif isinstance(default, PreTrainedConfig) and default.model_type not in _NO_TOWER:
        kind = type(default)
    else:
        kind = _class_of("qwen2" if is_text else "siglip_vision_model")
    return _sized(kind, TEXT if is_text else TOWER, changes)


def _defaults(kind: type[PreTrainedConfig]) -> PreTrainedConfig | None:
    """What `kind` is when nothing is said, which tells the types of its parts; None where it cannot be made so."""
    try:
        return kind()
    except Exception:  # whatever a class raises without arguments: its declared types are then all there is
        return None
