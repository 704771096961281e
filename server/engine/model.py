"""Loads a causal language model with transformers and makes sure, by evidence, that the engine can run it.

The model's code stays transformers' own; it is handed our attention function. A probe step then proves that every
layer called it, once, and shows the shape of each layer's KV. It does not know batches, pages or steering.
"""

from __future__ import annotations

import inspect
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from server.engine.attention.stretches import ATTENTION_NAME, AttentionStep, Segment, attention_step
from server.engine.protocol import ModelInfo
from vectors.sites import ModelSites, SitesNotFound, activation_of, find_sites
from vectors.vocabulary import Site

_log = logging.getLogger(__name__)

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

_PROBE_LENGTH = 4


class ModelRefused(Exception):
    """The model cannot be loaded or cannot be run exactly; the message says why and what would help."""


@dataclass(frozen=True)
class LoadedModel:
    """A model that the engine can run.

    `kv_shapes[layer]` is (kv_heads, key_dim, value_dim). `info.max_model_len` is what its positions allow.
    """

    module: PreTrainedModel
    sites: ModelSites
    info: ModelInfo
    kv_shapes: tuple[tuple[int, int, int], ...]
    dtype: torch.dtype
    device: torch.device
    keeps_logits: bool

    def forward(self, tokens: Tensor, positions: Tensor, wanted: Tensor) -> Tensor:
        """One packed forward pass: int64 `[tokens]` each -> logits `[wanted, vocabulary]` in the model's dtype.

        Runs inside an `attention_step`.
        """
        kept: dict[str, Any] = {"logits_to_keep": wanted} if self.keeps_logits else {}
        output = self.module(
            input_ids=tokens.unsqueeze(0), position_ids=positions.unsqueeze(0), use_cache=False, **kept
        )
        logits: Tensor = output.logits[0]
        return logits if self.keeps_logits else logits.index_select(0, wanted)


def resolve_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda`, `cuda:N` or `mps` -> a device that is there; `ModelRefused` when it is not."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps") if torch.backends.mps.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ModelRefused(f"unknown device {name!r}; use auto, cpu, cuda, cuda:N or mps") from None
    counts = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= counts.get(device.type, 0):
        raise ModelRefused(f"device {name!r} is not available on this machine; try --device auto")
    return device


def load_model(
    source: str | Path,
    *,
    model_id: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    adapter: str | None = None,
    max_model_len: int | None = None,
    on_progress: Callable[[str], None] = lambda phase: None,
) -> LoadedModel:
    """Load from a folder or a hub id; `adapter` is a PEFT LoRA folder or hub id, merged into the weights.

    `on_progress` is told each phase as it begins. Code from the model's repository is never run. Raises `ModelRefused`.
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise ModelRefused(f"unknown dtype {dtype!r}; use auto, {', '.join(DTYPES)}")
    target = resolve_device(device)
    on_progress("reading the configuration")
    try:
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
        on_progress("loading the weights")
        module: Any = AutoModelForCausalLM.from_pretrained(
            source,
            config=config,
            revision=revision,
            dtype="auto" if dtype == "auto" else DTYPES[dtype],
            trust_remote_code=False,
            use_safetensors=True,
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise ModelRefused(f"{source}: transformers cannot load it: {_first_line(error)}") from error
    if adapter is not None:
        on_progress("merging the adapter")
        module = _merge_adapter(module, adapter)
    on_progress(f"moving to {target}")
    try:
        module = module.to(target).eval()
    except RuntimeError as error:
        raise ModelRefused(f"{source} does not fit on {target}: {_first_line(error)}") from error
    on_progress("probing the attention")
    name = model_id or (Path(source).name if Path(source).is_dir() else str(source))
    return prepare_model(module, model_id=name, max_model_len=max_model_len)


def prepare_model(module: PreTrainedModel, *, model_id: str = "model", max_model_len: int | None = None) -> LoadedModel:
    """Hand `module` our attention, prove by a probe step that it is used, and describe it. Raises `ModelRefused`."""
    try:
        sites = find_sites(module)
    except SitesNotFound as error:
        raise ModelRefused(str(error)) from error
    architecture = type(module).__name__
    text_config = module.config.get_text_config(decoder=True)
    parameter = next(module.parameters())
    step, sites = _probe(module, sites, parameter.device)
    length = _max_model_len(text_config, max_model_len)
    _check_windows(architecture, text_config, step.windows, length)
    parameters = list(module.parameters())
    info = ModelInfo(
        model_id=model_id,
        architecture=architecture,
        num_layers=sites.num_layers,
        hidden_size=sites.hidden_size,
        vocab_size=text_config.vocab_size,
        max_model_len=length,
        sites=sites.sites,
        eos_token_ids=_eos_token_ids(module),
        sampling_defaults=_sampling_defaults(module),
        num_parameters=sum(parameter.numel() for parameter in parameters),
        num_bytes=sum(parameter.numel() * parameter.element_size() for parameter in parameters),
        dtype=str(parameter.dtype).removeprefix("torch."),
        device=str(parameter.device),
    )
    keeps_logits = "logits_to_keep" in inspect.signature(module.forward).parameters
    kv_shapes = tuple(step.shapes[layer] for layer in range(sites.num_layers))
    return LoadedModel(module, sites, info, kv_shapes, parameter.dtype, parameter.device, keeps_logits)


def _probe(module: PreTrainedModel, sites: ModelSites, device: torch.device) -> tuple[AttentionStep, ModelSites]:
    """Run one tiny step; every layer must call our attention exactly once.

    Returns the step, with what it noted, and the sites whose modules gave one activation a token in every block.
    """
    num_layers = sites.num_layers
    architecture = type(module).__name__
    module.set_attn_implementation(ATTENTION_NAME)
    if module.config._attn_implementation != ATTENTION_NAME:
        raise ModelRefused(
            f"{architecture} does not take a custom attention function, so tiller cannot run it in batches; "
            "use a model whose transformers code supports the attention interface"
        )
    slots = torch.arange(_PROBE_LENGTH, device=device)
    step = AttentionStep([Segment(0, _PROBE_LENGTH, 0, ((0, _PROBE_LENGTH),))], slots)
    seen: Counter[Site] = Counter()

    def look(site: Site) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            activation = activation_of(output)
            seen[site] += activation.numel() == _PROBE_LENGTH * sites.hidden_size and activation.is_contiguous()

        return hook

    handles = [
        module.register_forward_hook(look(site)) for site, modules in sites.modules.items() for module in modules
    ]
    try:
        with torch.inference_mode(), attention_step(step):
            module(
                input_ids=torch.zeros_like(slots).unsqueeze(0),
                position_ids=slots.unsqueeze(0),
                use_cache=False,
            )
    except NotImplementedError as error:
        raise ModelRefused(f"{architecture}: {error}") from error
    finally:
        for handle in handles:
            handle.remove()
    if sorted(step.calls) != list(range(num_layers)):
        raise ModelRefused(
            f"{architecture}: {len(set(step.calls))} of {num_layers} layers called the attention function; "
            "models with other kinds of layers (linear attention, state spaces, shared KV) are not supported"
        )
    sound = {site: modules for site, modules in sites.modules.items() if seen[site] == num_layers}
    return step, replace(sites, modules=MappingProxyType(sound))


def _check_windows(architecture: str, config: Any, windows: Mapping[int, int | None], length: int) -> None:
    """Refuse a model whose attention is limited by a mask that is never built here.

    What the configuration says of each layer must have reached the attention function.
    """
    promised = getattr(config, "sliding_window", None)
    if getattr(config, "use_sliding_window", True) is False or not isinstance(promised, int) or promised >= length:
        promised = None
    kinds = getattr(config, "layer_types", None) or ["sliding_attention" if promised else "full_attention"] * len(
        windows
    )
    for layer, kind in enumerate(kinds[: len(windows)]):
        if kind not in ("full_attention", "sliding_attention"):
            raise ModelRefused(f"{architecture}: layer {layer} has {kind}, which paged attention lacks")
        if kind == "sliding_attention" and promised and windows[layer] is None:
            raise ModelRefused(
                f"{architecture}: layer {layer} keeps its sliding window of {promised} tokens in a mask of its own, "
                f"which paged attention lacks; with --max-model-len {promised} it can be served"
            )


def _max_model_len(config: Any, asked: int | None) -> int:
    """The context: what was asked, within what the position encoding computes exactly."""
    allowed = int(getattr(config, "max_position_embeddings", 0) or 0)
    rope: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    for entry in (rope, *rope.values()):
        if not isinstance(entry, dict) or entry.get("rope_type") not in ("dynamic", "longrope"):
            continue
        # their frequencies depend on the longest sequence of a batch, which would couple neighbours
        original = entry.get("original_max_position_embeddings") or getattr(
            config, "original_max_position_embeddings", None
        )
        allowed = min(allowed, int(original)) if original else allowed
        _log.warning("context limited to %d: dynamic rope scaling beyond that is not exact in a batch", allowed)
    if not allowed and not asked:
        raise ModelRefused("the model's configuration does not say how long its context is; give --max-model-len")
    if asked and allowed and asked > allowed:
        raise ModelRefused(f"--max-model-len {asked} is beyond the model's {allowed} positions")
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


def _merge_adapter(module: PreTrainedModel, adapter: str) -> PreTrainedModel:
    try:
        from peft import PeftModel
    except ImportError:
        raise ModelRefused("--adapter needs the 'peft' package: pip install 'tiller[adapter]'") from None
    try:
        merged: PreTrainedModel = PeftModel.from_pretrained(module, adapter).merge_and_unload()
    except (OSError, ValueError, KeyError, AttributeError, RuntimeError, SafetensorError) as error:
        raise ModelRefused(f"adapter {adapter}: {_first_line(error)}") from error
    return merged


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
