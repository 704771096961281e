"""Loads a causal language model with transformers and hands it to the engine's attention.

`evidence.py` verifies that the engine can run it, and `description.py` describes it.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel

from server.engine.adapter import merge_adapter
from server.engine.attention.choice import attention_for
from server.engine.attention.compiled import CompiledAttention
from server.engine.attention.interface import LayerAttention, PagedAttention, Reach, page_groups
from server.engine.context import known_context, settle_context
from server.engine.description import StoredWeights, describe_model
from server.engine.entry_points import EntryPoints
from server.engine.entry_probe import EntryProbe
from server.engine.evidence import (
    hand_over_attention,
    require_attention_interface,
    run_with_cache,
    working_sites,
)
from server.engine.fused_blocks import ORDER, ShortForward
from server.engine.fusion_probe import FusionProbe
from server.engine.packing import PackedLinear, pack_model
from server.engine.protocol import ModelInfo
from server.engine.recurrent.probe import hand_over_recurrence
from server.engine.recurrent.states import StateLayout
from server.engine.refusal import ModelRefused
from server.engine.self_test import check_exactness, make_prompts, rounding_of
from server.engine.towers import drop_unused_towers
from server.engine.weights import KERNELS, load_weights
from server.kernels.library import Kernels
from vectors.sites import ModelSites, SitesNotFound, find_sites

_log = logging.getLogger(__name__)

_WAY_OUT = "serve it with transformers"

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True)
class LoadedModel:
    """A model that the engine can run.

    `attention` is the implementation that computes its `attention_layers`; a layer without attention has None there.
    `states`: what its recurrent layers keep of a sequence. `head_name`: the linear module that gives the logits, if
    those of a few tokens can be computed alone. `allows_late_entry`: branches may enter late; see `late_entry.py`.
    `is_fused`: the kernels compute its blocks in one call; see `fused_blocks.py`. `short_forward`: what computes a pass
    without the model's own code, if that adds nothing.
    """

    module: PreTrainedModel
    sites: ModelSites
    info: ModelInfo
    attention_layers: tuple[LayerAttention | None, ...]
    attention: type[PagedAttention]
    dtype: torch.dtype
    device: torch.device
    keeps_logits: bool
    states: StateLayout = field(default_factory=StateLayout)
    head_name: str | None = None
    allows_late_entry: bool = False
    is_fused: bool = False
    short_forward: ShortForward | None = None

    @property
    def page_groups(self) -> tuple[Reach, ...]:
        """The groups of layers that have KV pages of their own: how far each sees, the farthest first."""
        return page_groups(self.attention_layers)

    @property
    def entry_points(self) -> EntryPoints:
        """Where branches may enter a pass, if they may."""
        return EntryPoints(self.info.num_layers, ORDER) if self.is_fused else EntryPoints(self.info.num_layers)

    @property
    def kv_bytes_per_token(self) -> tuple[int, ...]:
        """Bytes of KV per token, over all layers of each group of `page_groups`."""
        return self.attention.bytes_per_token(self.attention_layers, self.dtype)

    def forward(self, tokens: Tensor, positions: Tensor, wanted: Tensor, vocabulary: Tensor | None = None) -> Tensor:
        """One packed forward pass: int64 `[tokens]` each -> logits `[wanted, vocabulary]` in the model's dtype.

        `vocabulary`: the tokens whose logits are wanted, int64; None: all. Runs inside an `attention_step`.
        """
        if self.short_forward is not None and vocabulary is None:
            return self.short_forward(tokens, positions, wanted)
        given: dict[str, Any] = {
            "input_ids": tokens.unsqueeze(0),
            "position_ids": positions.unsqueeze(0),
            "use_cache": False,
        }
        if self.keeps_logits:
            given["logits_to_keep"] = wanted
        if vocabulary is None or self.head_name is None:
            logits: Tensor = self.module(**given).logits[0]
        else:
            partial = functional_call(self.module, self._head_of(vocabulary), (), given, tie_weights=False)
            logits = partial.logits[0, :, : len(vocabulary)]
        if not self.keeps_logits:
            logits = logits.index_select(0, wanted)
        return logits if vocabulary is None or self.head_name is not None else logits.index_select(1, vocabulary)

    def _head_of(self, vocabulary: Tensor) -> dict[str, Tensor]:
        """The head's tensors for the tokens of `vocabulary`, by name."""
        head = self.module.get_submodule(self.head_name or "")
        if isinstance(head, PackedLinear):
            found = head.of_outputs(vocabulary)
        else:
            found = {name: parameter.index_select(0, vocabulary) for name, parameter in head.named_parameters()}
        return {f"{self.head_name}.{name}": tensor for name, tensor in found.items()}


def resolve_device(name: str) -> torch.device:
    """The device named `auto`, `cpu`, `cuda`, `cuda:N` or `mps`. Raises `ModelRefused` when it is not available."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps") if torch.backends.mps.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ModelRefused(f"device: expected one of auto, cpu, cuda, cuda:N, mps, got {name!r}") from None
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
    kernels: str = "auto",
    on_progress: Callable[[str], None] = lambda phase: None,
) -> LoadedModel:
    """Load from a folder or a hub id; `adapter` is a PEFT LoRA folder or hub id, merged into the weights.

    `dtype` "auto" and `kernels` (one of `KERNELS`) as in `weights.py`: on a CPU, what is fastest there. `on_progress`
    is called at the start of each phase. Code from the model's repository is never run. Raises `ModelRefused`.
    """
    if kernels not in KERNELS:
        raise ModelRefused(f"kernels: expected one of {', '.join(KERNELS)}, got {kernels!r}")
    if dtype != "auto" and dtype not in DTYPES:
        raise ModelRefused(f"dtype: expected one of auto, {', '.join(DTYPES)}, got {dtype!r}")
    target = resolve_device(device)
    on_progress("loading the weights")
    module, compiled = load_weights(
        str(source), revision=revision, dtype=DTYPES.get(dtype), device=target, kernels=kernels
    )
    if adapter is not None:
        on_progress("merging the adapter")
        module = merge_adapter(module, adapter)
    on_progress(f"moving to {target}")
    try:
        _drop_towers(module)
        module.to(target).eval()  # type: ignore[arg-type]  # its decorator hides that `to` is a method
    except RuntimeError as error:
        raise ModelRefused(f"{source} does not fit on {target}: {error}") from error
    on_progress("probing the attention")
    name = model_id or (Path(source).name if Path(source).is_dir() else str(source))
    return prepare_model(module, model_id=name, max_model_len=max_model_len, kernels=compiled)


def _drop_towers(module: PreTrainedModel) -> None:
    try:
        dropped = drop_unused_towers(module, find_sites(module))
    except Exception:  # the model's own code may raise anything: `prepare_model` says what, and refuses it
        return
    if dropped:
        _log.warning("served as text: %s left out", ", ".join(dropped))


def prepare_model(
    module: PreTrainedModel,
    *,
    model_id: str = "model",
    max_model_len: int | None = None,
    kernels: Kernels | None = None,
) -> LoadedModel:
    """Give `module` our attention, verify that it computes the same, and describe it. Raises `ModelRefused`.

    `kernels`: the compiled ones that are to compute it, in float32; None for PyTorch's.
    """
    architecture = type(module).__name__
    try:
        return _prepare(module, model_id, max_model_len, kernels)
    except ModelRefused:
        raise
    except SitesNotFound as error:
        raise ModelRefused(f"{error}; {_WAY_OUT}") from error
    except NotImplementedError as error:
        raise ModelRefused(f"{architecture}: {error}; {_WAY_OUT}") from error
    except Exception as error:  # the model's own code may raise anything
        reason = f"{type(error).__name__}: {error}".rstrip(": ")
        raise ModelRefused(f"{architecture} cannot run in packed batches: {reason}; {_WAY_OUT}") from error


def _prepare(module: PreTrainedModel, model_id: str, max_model_len: int | None, kernels: Kernels | None) -> LoadedModel:
    stored = StoredWeights.of(module)
    if kernels is not None:
        pack_model(module, kernels)
    try:
        sites = find_sites(module)
    except SitesNotFound:
        require_attention_interface(module, module)  # which is the better reason
        raise
    require_attention_interface(module, sites.decoder)
    parameter = next(module.parameters())
    layers = hand_over_attention(module, sites.num_layers, context=known_context(module, max_model_len))
    states = hand_over_recurrence(module, functools.partial(run_with_cache, module))
    attention = attention_for(layers, parameter.dtype, parameter.device, is_compiled=kernels is not None)
    all_sites, sites = sites, working_sites(module, sites, attention, layers)
    context = settle_context(module, max_model_len)  # last, so that it asks only for what lets the model be served
    info = describe_model(module, sites, stored, model_id=model_id, max_model_len=context)
    keeps_logits = "logits_to_keep" in inspect.signature(module.forward).parameters
    model = LoadedModel(module, sites, info, layers, attention, parameter.dtype, parameter.device, keeps_logits, states)
    check_exactness(module, model.forward, all_sites, attention, layers, states, context)
    return _with_shortcuts(model, all_sites, context, kernels)


def _with_shortcuts(model: LoadedModel, sites: ModelSites, context: int, kernels: Kernels | None) -> LoadedModel:
    """`model` with the parts of a pass that its branches may leave out, each tried first."""
    if model.states:  # the probe runs no recurrent states
        return model
    prompt = make_prompts(model.module, context)[-1]

    def probe(tried: LoadedModel) -> EntryProbe:
        blocks = sites.modules["residual"]
        rounding = rounding_of(model.module)
        return EntryProbe(tried.forward, blocks, model.attention, model.attention_layers, prompt, model.dtype, rounding)

    head = model.module.get_output_embeddings()
    names = [name for name, module in model.module.named_modules() if module is head]
    if isinstance(head, nn.Linear | PackedLinear) and names:
        with_head = replace(model, head_name=names[0])
        model = with_head if probe(with_head).has_partial_head() else model
    allows_late_entry = probe(model).install()
    if not allows_late_entry:
        _log.info("branches compute every block: the blocks of this model pass on more than one stream")
    model = replace(model, allows_late_entry=allows_late_entry)
    if kernels is None or model.attention is not CompiledAttention:
        return model
    fusion = FusionProbe(model.forward, sites, model.attention_layers, prompt)
    fused = fusion.install(kernels)  # last: afterwards the blocks are not called
    if fused is None:
        return model
    short = fusion.short_forward(fused, head) if isinstance(head, nn.Module) else None
    return replace(model, is_fused=True, short_forward=short)
