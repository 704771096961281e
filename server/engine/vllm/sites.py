"""The sites of a model as a vLLM worker holds it, and what a block's output means there.

vLLM's blocks return the residual stream, or a pair. Of most families the sum of the pair is the stream, added up by
whoever reads it next; of some the second half is ignored. Which it is, is found out by running the model with changed
outputs, without attention: no family is known by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from vllm.forward_context import set_forward_context

from server.engine.refusal import ModelRefused
from vectors.sites import activation_of, module_in, name_of_blocks
from vectors.vocabulary import SITES, Site

_NUM_TOKENS = 5
_ATTENTION_CORES = ("Attention", "MLAAttention")


@dataclass(frozen=True)
class WorkerSites:
    """`modules[site][layer]` of a model of `num_layers` blocks.

    `is_deferred`: a block's output is a pair whose sum is the stream.
    """

    num_layers: int
    hidden_size: int
    is_deferred: bool
    modules: Mapping[Site, Mapping[int, nn.Module]]


def find_worker_sites(model: nn.Module, vllm_config: Any) -> WorkerSites:
    """The sites of `model`, which vLLM has loaded. Raises `ModelRefused` when its blocks cannot be steered exactly."""
    config = vllm_config.model_config.hf_text_config
    num_layers, hidden_size = config.num_hidden_layers, config.hidden_size
    path = name_of_blocks(model, num_layers)
    if path is None:
        raise ModelRefused(f"{type(model).__name__} in vLLM: no list of {num_layers} blocks was found to steer")
    blocks = dict(enumerate(model.get_submodule(path).children()))
    found: dict[Site, dict[int, nn.Module]] = {}
    for site in SITES:
        modules = {layer: module for layer, block in blocks.items() if (module := module_in(block, site)) is not None}
        if len(set(modules.values())) == len(blocks):
            found[site] = modules
    try:
        probe = _Probe(model, vllm_config, hidden_size)
        sound = probe.sound_sites(found)
        is_deferred = probe.is_deferred(next(iter(blocks.values())))
    except ModelRefused:
        raise
    except Exception as error:  # whatever a model of vLLM's raises when it is run without a batch
        raise ModelRefused(f"{type(model).__name__} in vLLM: its blocks cannot be examined: {error}") from error
    if "residual" not in sound:
        raise ModelRefused(f"{type(model).__name__} in vLLM: a block's output is not one row a token")
    return WorkerSites(num_layers, hidden_size, is_deferred, {site: found[site] for site in sound})


class _Probe:
    """Runs a few tokens through the model without a KV cache: each attention gives its queries back."""

    def __init__(self, model: nn.Module, vllm_config: Any, hidden_size: int) -> None:
        self._model = model
        self._config = vllm_config
        self._hidden_size = hidden_size

    def sound_sites(self, modules: Mapping[Site, Mapping[int, nn.Module]]) -> tuple[Site, ...]:
        """The sites whose modules each run once a pass, give one row a token."""
        seen: dict[Site, list[Tensor]] = {site: [] for site in modules}

        def look(site: Site) -> Callable[[nn.Module, Any, Any], None]:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                activation = activation_of(output)
                if activation.shape == (_NUM_TOKENS, self._hidden_size):
                    seen[site].append(activation.to(torch.float32).clone())

            return hook

        self._run([(module, look(site)) for site, of_layer in modules.items() for module in of_layer.values()])
        return tuple(s for s in SITES if s in seen and len(seen[s]) == len(modules[s]))

    def is_deferred(self, block: nn.Module) -> bool:
        """True when `block` gives a pair whose sum is the stream; False when it gives the stream, alone or first."""
        pairs: list[bool] = []

        def change(index: int | None) -> Tensor:
            def hook(module: nn.Module, args: Any, output: Any) -> Any:
                is_pair = isinstance(output, tuple) and len(output) > 1 and isinstance(output[1], Tensor)
                pairs.append(is_pair)
                if index is None or not is_pair:
                    return output
                generator = torch.Generator().manual_seed(1)
                noise = torch.randn(output[0].shape, generator=generator).to(output[0])
                return tuple(each + noise if at == index else each for at, each in enumerate(output))

            return self._run([(block, hook)])

        plain = change(None)
        if not all(pairs):
            return False
        first, second = change(0), change(1)
        if _is_close(second, plain) and not _is_close(first, plain):
            return False
        if _is_close(first, second) and not _is_close(first, plain):
            return True
        raise ModelRefused(f"{type(block).__name__} in vLLM: what its pair of outputs means could not be told")

    @torch.inference_mode()
    def _run(self, hooks: list[tuple[nn.Module, Callable[[nn.Module, Any, Any], Any]]]) -> Tensor:
        """The final hidden states `[tokens, hidden]`, with `hooks` on their modules."""
        parameter = next(self._model.parameters())
        inputs: dict[str, Any] = {
            "input_ids": torch.arange(1, _NUM_TOKENS + 1, device=parameter.device),
            "positions": torch.arange(_NUM_TOKENS, device=parameter.device),
            "intermediate_tensors": None,
        }
        handles = [module.register_forward_hook(hook) for module, hook in hooks]
        cores: list[Any] = [core for core in self._model.modules() if type(core).__name__ in _ATTENTION_CORES]
        for core in cores:
            core.forward = lambda query, *args, **kwargs: query.clone()
        try:
            with set_forward_context(None, self._config, num_tokens=_NUM_TOKENS, skip_compiled=True):
                output = self._model(**inputs)
        finally:
            for core in cores:
                del core.forward
            for handle in handles:
                handle.remove()
        final: Tensor = output.to(torch.float32)
        return final


def _is_close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=2e-2, atol=2e-2 * float(one.abs().max()))
