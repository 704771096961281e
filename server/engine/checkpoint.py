"""Loads a checkpoint with transformers, and refuses one of which the model would not get every weight, or more.

transformers fills what a checkpoint lacks with random numbers and drops what the model's code does not read, such as
the scales of a quantisation that it does not know. Both would be served without a word.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Iterator
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    PreTrainedModel,
)
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from server.engine.checkpoint_files import check_files
from server.engine.refusal import OWN_CODE, ModelRefused, needs_own_code

_log = logging.getLogger(__name__)

LOADING_ERRORS = (OSError, ValueError, KeyError, ImportError, RuntimeError, AttributeError, TypeError, SafetensorError)
"""What transformers raises for a checkpoint that it cannot load."""

_NUM_SHOWN = 4
_BUFFERS = ("inv_freq", "position_ids", "masked_bias", "_float_tensor", "num_batches_tracked")
"""Tensors that old checkpoints have and that every model computes itself."""

_KV_SCALES = ("k_scale", "v_scale", "kv_scale", "q_scale", "prob_output_scale")
"""Scales for a KV cache of 8 bits, which is not used here."""


def load_checkpoint(source: str, *, revision: str | None, dtype: torch.dtype | str) -> PreTrainedModel:
    """The causal language model in folder or hub id `source`, complete. `dtype` "auto": as the checkpoint says.

    A multimodal checkpoint gives the multimodal model. Code from the model's repository is never run. Raises
    `ModelRefused`.
    """
    check_files(source, revision=revision)
    with collected_warnings() as warned:
        try:
            config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
            check_quantisation(source, config)
            for candidate in _classes_for(source, config):
                module, report = candidate.from_pretrained(
                    source,
                    config=config,
                    revision=revision,
                    dtype=dtype,
                    trust_remote_code=False,
                    use_safetensors=True,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,  # they are refused below, by name
                )
                if not report["missing_keys"]:
                    break
        except LOADING_ERRORS as error:
            if needs_own_code(error):
                raise ModelRefused(f"transformers has no code for {source}: {OWN_CODE}") from error
            raise ModelRefused(f"transformers cannot load {source}: {reason_of(error, warned)}") from error
    check_weights(source, module, report)
    loaded: PreTrainedModel = module
    return loaded


def check_quantisation(source: str, config: Any) -> None:
    """Refuse a quantisation that transformers would leave out."""
    for described in (config, config.get_text_config(decoder=True)):
        quantisation = getattr(described, "quantization_config", None)
        if quantisation is None:
            continue
        method = quantisation.get("quant_method") if isinstance(quantisation, dict) else quantisation.quant_method
        name = str(getattr(method, "value", method))
        known = {*AUTO_QUANTIZATION_CONFIG_MAPPING, "bitsandbytes"}
        if name not in known:
            raise ModelRefused(
                f"{source} is quantised with {name!r}, which transformers does not know; expected one of "
                f"{', '.join(sorted(known))}; use the unquantised model or serve this one with vLLM"
            )


def _classes_for(source: str, config: Any) -> list[Any]:
    """The classes to try `config` with, in order: causal language models, then the multimodal one, served as text.

    Some families have both, and a checkpoint that only one of them reads.
    """
    automatic = (AutoModelForCausalLM, AutoModelForMultimodalLM, AutoModelForImageTextToText)
    known = [candidate for candidate in automatic if type(config) in candidate._model_mapping]
    named = _class_named(config)
    if named is not None and AutoModelForCausalLM not in known:
        return [named]
    if known:
        return known[:2]
    raise ModelRefused(
        f"{source}: transformers has no causal language model for model_type {config.model_type!r} "
        f"({', '.join(config.architectures or ['no architecture named'])}); serve a model that generates text"
    )


def _class_named(config: Any) -> Any:
    """The text class that the checkpoint names, for families that the automatic choice leaves out."""
    for name in config.architectures or ():
        named = getattr(transformers, name, None)
        if name.endswith("ForCausalLM") and isinstance(named, type) and issubclass(named, PreTrainedModel):
            return named
    return None


def check_weights(source: str, module: PreTrainedModel, report: Any) -> None:
    """Refuse a checkpoint that lacks weights of `module` or has some that its code does not read.

    `report`: the loading info of `from_pretrained`.
    """
    architecture = type(module).__name__
    missing = sorted(report["missing_keys"])
    unexpected = sorted(report["unexpected_keys"])
    mismatched = sorted(report["mismatched_keys"])
    if missing:
        raise ModelRefused(
            f"{source} lacks {len(missing)} of the weights of {architecture} ({name_some(missing)}), which would be "
            f"random; {_why_missing(module, missing, unexpected)}"
        )
    if mismatched:
        shapes = [f"{name} {list(found)} instead of {list(wanted)}" for name, found, wanted in mismatched]
        raise ModelRefused(
            f"{source}: {len(shapes)} weights have other shapes than config.json says ({name_some(shapes)}); "
            "use the config.json that belongs to these weights, or the unquantised model if they are packed"
        )
    unread = [name for name in unexpected if _belongs_to_text(module, name)]
    if unread:
        raise ModelRefused(
            f"{source} has {len(unread)} tensors that {architecture} does not read ({name_some(unread)}); "
            f"{_why_unread(unread)}"
        )
    if unexpected:
        _log.warning("%d tensors of other parts are not loaded: %s", len(unexpected), name_some(unexpected))


def _why_missing(module: PreTrainedModel, missing: Collection[str], unexpected: Collection[str]) -> str:
    """What may have happened, and what would help."""
    named = [name for name in module.config.architectures or () if name != type(module).__name__]
    if unexpected:
        for name in unexpected:
            for wanted in missing:
                if name.endswith(f".{wanted}") or wanted.removeprefix(f"{module.base_model_prefix}.") in name:
                    return (
                        f"it has {name!r} where {wanted!r} is expected: save the model itself, not one that wraps it, "
                        "with save_pretrained"
                    )
    if named:
        return f"config.json names {named[0]}: serve a checkpoint of a causal language model"
    return "download or save the checkpoint again, complete"


def _why_unread(unread: Collection[str]) -> str:
    if any("scale" in name.rpartition(".")[2] or "zero" in name.rpartition(".")[2] for name in unread):
        return (
            "its weights are quantised in a way that transformers does not apply; use the unquantised model or serve "
            "this one with vLLM"
        )
    return "use the config.json that belongs to these weights"


def _belongs_to_text(module: PreTrainedModel, name: str) -> bool:
    """True when the unread tensor `name` belongs to a part that the model has, so that it computes without it.

    Towers, heads and prediction layers that the model's code does not have at all are parts of their own.
    """
    *path, tensor = name.split(".")
    if tensor in _BUFFERS or tensor in _KV_SCALES or any(part in _KV_SCALES for part in path):
        return False
    current: nn.Module = module
    is_in_block = False
    for part in path:
        below = getattr(current, part, None)
        if not isinstance(below, nn.Module):
            if isinstance(current, nn.ModuleList):
                return not _is_prediction_layer(module, part)
            return is_in_block or not any(True for _ in current.children())
        current = below
        is_in_block = is_in_block or isinstance(current, nn.ModuleList)
    return True


def _is_prediction_layer(module: PreTrainedModel, part: str) -> bool:
    """True when block number `part` predicts further tokens, which models of some families have after the others."""
    config = module.config.get_text_config(decoder=True)
    further = getattr(config, "num_nextn_predict_layers", None) or getattr(config, "num_mtp_layers", None) or 0
    first = getattr(config, "num_hidden_layers", 0)
    return part.isdecimal() and first <= int(part) < first + further


def name_some(names: Collection[str]) -> str:
    """The first few of `names`, and how many there are beside them."""
    shown = list(names)[:_NUM_SHOWN]
    rest = len(names) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest else "")


class _Collector(logging.Handler):
    """Keeps the text of warnings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the record's text."""
        self.texts.append(record.getMessage())


@contextlib.contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """The warnings that transformers logs inside, which are otherwise not shown."""
    logger = logging.getLogger("transformers")
    collector = _Collector()
    level = logger.level
    logger.addHandler(collector)
    logger.setLevel(logging.WARNING)
    shown = [(handler, handler.level) for handler in logger.handlers if handler is not collector]
    propagates, logger.propagate = logger.propagate, False
    for handler, before in shown:
        handler.setLevel(max(before, level))
    try:
        yield collector.texts
    finally:
        logger.removeHandler(collector)
        logger.setLevel(level)
        logger.propagate = propagates
        for handler, before in shown:
            handler.setLevel(before)


def reason_of(error: Exception, warned: Collection[str] = ()) -> str:
    """The whole text of `error`, and after it the warnings that explain it."""
    text = str(error).strip() or type(error).__name__
    if isinstance(error, KeyError):
        text = f"KeyError: {text}"
    explained = [warning.strip() for warning in warned if "report" in text]
    return "\n".join([text, *explained])
