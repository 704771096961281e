"""Merges a PEFT adapter into a model's weights, and refuses one of which anything does not land."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from server.engine.checkpoint import LOADING_ERRORS, name_some, reason_of
from server.engine.refusal import ModelRefused


def merge_adapter(module: PreTrainedModel, adapter: str) -> PreTrainedModel:
    """`module` with the adapter in folder or hub id `adapter` merged into its weights. Raises `ModelRefused`."""
    try:
        from peft import PeftModel, get_peft_model_state_dict
        from peft.utils import load_peft_weights
    except ImportError:
        raise ModelRefused("--adapter needs the 'peft' package: pip install 'tiller[adapter]'") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what they say is verified below
        try:
            adapted = PeftModel.from_pretrained(module, adapter)
            given = load_peft_weights(adapter, device="cpu")
            _check_weights(adapter, given, get_peft_model_state_dict(adapted))
            if not hasattr(adapted.base_model, "merge_and_unload"):
                kind = next(iter(adapted.peft_config.values())).peft_type
                raise ModelRefused(f"the adapter {adapter} is of type {kind}, which cannot be merged into the weights")
            merged: PreTrainedModel = adapted.merge_and_unload()
        except LOADING_ERRORS as error:
            raise ModelRefused(f"cannot load the adapter {adapter}: {reason_of(error)}") from error
    return merged


def adapter_size(adapter: str) -> int | None:
    """The bytes of the weights' file and the configuration of an adapter that has been loaded.

    From its folder or, for a hub id, from the hub's cache; None where they are not found.
    """
    from huggingface_hub import try_to_load_from_cache

    def size(name: str) -> int | None:
        file = Path(adapter) / name if Path(adapter).is_dir() else try_to_load_from_cache(adapter, name)
        return Path(file).stat().st_size if isinstance(file, str | Path) and Path(file).is_file() else None

    config = size("adapter_config.json")
    weights = size("adapter_model.safetensors") or size("adapter_model.bin")
    return None if config is None or weights is None else config + weights


def _check_weights(adapter: str, given: dict[str, Any], taken: dict[str, Any]) -> None:
    """Compare the names in the adapter's file with those that the adapted model has."""
    unused = sorted(given.keys() - taken.keys())
    missing = sorted(taken.keys() - given.keys())
    if not given:
        raise ModelRefused(f"the adapter {adapter} has no weights")
    if unused:
        raise ModelRefused(
            f"the adapter {adapter} does not fit: {len(unused)} of its {len(given)} weights belong to no module of "
            f"this model ({name_some(unused)}); serve the base model that it was trained on"
        )
    if missing:
        raise ModelRefused(
            f"the adapter {adapter} is incomplete: it lacks {len(missing)} weights that its adapter_config.json asks "
            f"for ({name_some(missing)}); save or download it again"
        )
